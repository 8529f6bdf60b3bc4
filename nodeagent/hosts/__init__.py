"""Workloads that are control groups of this host: systemd slices or services with identity and address of their own."""
