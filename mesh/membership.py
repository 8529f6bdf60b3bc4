"""Which pods are meant for the mesh, and which files of a configuration directory count.

Here because the node agents and the control plane must never differ in it: a pod that one captures and the other
does not know as captured loses its traffic, or sends it in the clear. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

MODE_LABEL: Final = "istio.io/dataplane-mode"
SIDECAR_ANNOTATION: Final = "sidecar.istio.io/status"
HOST_NODE: Final = "nodemesh/node"
HOST_CGROUP: Final = "nodemesh/cgroup"
HOST_ADDRESSES: Final = "nodemesh/addresses"
"""Annotations of a WorkloadEntry that is a control group of a host: which host, which group, further addresses."""
# Nodes must be able to start what the mesh itself needs.
EXCLUDED_NAMESPACES: Final = frozenset({"kube-system"})
TUNNEL_LABEL: Final = ("app", "ztunnel")

_SUFFIXES: Final = (".yaml", ".yml", ".json")
_HIDDEN: Final = (".", "#", "~")

Labels = Mapping[str, str]


def is_member(
    namespace: str, labels: Labels, annotations: Labels, *, host_network: bool, namespace_labels: Callable[[], Labels]
) -> bool:
    """Istio's default selectors: the pod's own label decides; without one, its namespace's, asked only then."""
    if host_network or namespace in EXCLUDED_NAMESPACES or SIDECAR_ANNOTATION in annotations:
        return False
    if TUNNEL_LABEL in labels.items():
        return False
    match labels.get(MODE_LABEL):
        case "ambient":
            return True
        case "none":
            return False
    return namespace_labels().get(MODE_LABEL) == "ambient"


def is_hidden(name: str) -> bool:
    """Of a file or a directory: editors' files, and the directories that Kubernetes swaps under a mounted ConfigMap."""
    return name.startswith(_HIDDEN)


def is_document(name: str) -> bool:
    """Of a file."""
    return name.endswith(_SUFFIXES) and not is_hidden(name)
