"""The node agent: brings this node's pods into the mesh and keeps them there. Privileged, holds no keys."""
