"""A stand-in for the Kubernetes API server: what list, watch, patch, tokens and RBAC mean, over HTTPS, as a process.

docs/kubernetes.md has its contract: what it does like the real one, and what it leaves out.
"""
