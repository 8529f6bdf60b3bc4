"""What the agent writes into the cluster: marks and events on its pods, the taint of its node. Owns no pod."""
