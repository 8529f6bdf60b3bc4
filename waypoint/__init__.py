"""Waypoints and gateways: the life of one Envoy, its identity, what it is told at its start."""
