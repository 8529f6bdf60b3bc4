"""Enrolment: how a pod joins and leaves the mesh, from the plugin's request to the answer."""
