"""Layer 7 as the control plane understands it: between the documents that say it and the Envoys that do it."""
