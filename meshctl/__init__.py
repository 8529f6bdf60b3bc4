"""The command line. Speaks to processes through their admin sockets and owns no state."""
