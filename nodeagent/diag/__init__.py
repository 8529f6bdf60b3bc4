"""Looks on from the kernel, for a person on demand: who connects where, how long it takes, what is sent again."""
