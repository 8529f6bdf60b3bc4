"""The node's tunnel: a Python shell around the Rust core. The shell decides; no byte of a connection passes it."""

import os

# Read by gRPC when it is first imported. Its fork handlers break the core's threads, and nothing here forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
