"""The mesh's control plane: configuration in, resources and certificates out."""

import os

# Read by gRPC when it is first imported. We never fork; its fork handlers cost and can deadlock. Its own log lines are
# not sentences for an operator: what matters is raised.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
