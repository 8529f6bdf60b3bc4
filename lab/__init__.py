"""A cluster in one kernel: nodes and pods are network namespaces, the CNI plugins and daemons are the real ones.

Owns namespaces, processes and files of a lab, and takes all of them away again. Owns nothing of the mesh itself: it
only drives its processes, as a container runtime, a kubelet and a service manager would.
"""
