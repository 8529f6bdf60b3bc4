"""Capture: what the kernel does with a pod's packets, as one plan, its text form, and the way into a namespace."""
