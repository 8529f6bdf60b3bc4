"""Which kinds the stand-in serves, and what is special about each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_GATEWAY_API: Final = "gateway.networking.k8s.io"
_CLUSTER_SCOPED: Final = ("GatewayClass",)
# Lists that a strategic merge patch merges by this member of their items; every other list is replaced.
MERGE_KEYS: Final = {"conditions": "type", "containers": "name", "podIPs": "ip", "ownerReferences": "uid"}


@dataclass(frozen=True, slots=True)
class Kind:
    """`status`: has a subresource of that name, so that neither half is written through the other. `custom`: told by a
    CustomResourceDefinition, so there is no strategic patch."""

    group: str
    version: str
    plural: str
    name: str
    namespaced: bool = True
    status: bool = False
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def merge_keys(self) -> Mapping[str, str]:
        """Of the lists that are merged item by item. Istio's definitions name none."""
        if not self.custom:
            return MERGE_KEYS
        return {"conditions": "type", "listeners": "name"} if self.group == _GATEWAY_API else {}


def _custom(group: str, versions: tuple[str, ...], *names: str) -> list[Kind]:
    return [
        Kind(group, version, _plural(name), name, name not in _CLUSTER_SCOPED, status=True, custom=True)
        for name in names
        for version in versions
    ]


def _plural(name: str) -> str:
    if name.endswith("y") and name != "Gateway":
        return f"{name[:-1]}ies".lower()
    return f"{name}es".lower() if name.endswith("s") else f"{name}s".lower()


_RBAC: Final = "rbac.authorization.k8s.io"
KINDS: Final = (
    Kind("", "v1", "namespaces", "Namespace", namespaced=False, status=True),
    Kind("", "v1", "nodes", "Node", namespaced=False, status=True),
    Kind("", "v1", "pods", "Pod", status=True),
    Kind("", "v1", "services", "Service", status=True),
    Kind("", "v1", "serviceaccounts", "ServiceAccount"),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "events", "Event"),
    Kind("apps", "v1", "daemonsets", "DaemonSet", status=True),
    Kind("apps", "v1", "deployments", "Deployment", status=True),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Kind(_RBAC, "v1", "roles", "Role"),
    Kind(_RBAC, "v1", "rolebindings", "RoleBinding"),
    *_custom(
        "security.istio.io", ("v1", "v1beta1"), "AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"
    ),
    *_custom(
        "networking.istio.io",
        ("v1", "v1beta1", "v1alpha3"),
        *("VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "WorkloadEntry"),
    ),
    *_custom(_GATEWAY_API, ("v1",), "GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "BackendTLSPolicy"),
)
BY_PATH: Final = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
