"""Words that every plane shares: names, errors, settings, log phrases, the delta-xDS conversation. No I/O, no clock.

Imports nothing of ours; `mesh.gen` is generated from `proto/`.
"""
