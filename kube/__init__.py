"""A client of the Kubernetes API for whoever reads its cluster from there: the node agent and the control plane.

Owns no decision about a mesh. `reflect.py` is the list-and-watch conversation without I/O, `objects.py` what is kept of
an object, `client.py` the requests, `informer.py` the loop that goes on for as long as its daemon does.
"""
