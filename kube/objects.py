"""What is kept of the API's objects: only the declared fields are decoded, the rest never becomes a Python object.

Owns the shapes and where in the API they are. Numerous kinds are cut to what the mesh reads; rare ones come whole.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec import Struct, field

# A copy of the whole object that kubectl leaves on it.
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Key(NamedTuple):
    """An object's name among those of its kind; `namespace` is "" for cluster-scoped kinds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Shape(Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Fields in camelCase on the wire; what is null or absent there is the default here."""


class OwnerReference(Shape, frozen=True):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Metadata(Shape, frozen=True):
    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    def __post_init__(self) -> None:
        if self.annotations:
            self.annotations.pop(_LAST_APPLIED, None)


class Object(Shape, frozen=True):
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def key(self) -> Key:
        return Key(self.metadata.namespace or "", self.metadata.name)

    @property
    def version(self) -> str:
        return self.metadata.resource_version or ""


class Whole(Object, frozen=True):
    """Of a kind that is rare, or whose unknown fields are mistakes. `managedFields` stay behind."""

    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None


class PodPort(Shape, frozen=True):
    container_port: int | None = None
    name: str | None = None
    protocol: str | None = None


class Container(Shape, frozen=True):
    restart_policy: str | None = None
    ports: list[PodPort] | None = None


class DnsConfig(Shape, frozen=True):
    searches: list[str] | None = None


class PodSpec(Shape, frozen=True):
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool | None = None
    dns_config: DnsConfig | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class Condition(Shape, frozen=True):
    type: str = ""
    status: str = ""


class PodIP(Shape, frozen=True):
    ip: str | None = None


class PodStatus(Shape, frozen=True):
    phase: str | None = None
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = field(default=None, name="podIPs")
    conditions: list[Condition] | None = None


class Pod(Object, frozen=True):
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus | None = None


class Taint(Shape, frozen=True):
    key: str = ""
    value: str | None = None
    effect: str = ""
    time_added: str | None = None


class NodeSpec(Shape, frozen=True):
    taints: list[Taint] | None = None


class NodeInfo(Shape, frozen=True):
    boot_id: str | None = field(default=None, name="bootID")


class NodeStatus(Shape, frozen=True):
    node_info: NodeInfo | None = None


class Node(Object, frozen=True):
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus | None = None


class Target(Shape, frozen=True):
    kind: str | None = None
    name: str | None = None


class EndpointConditions(Shape, frozen=True):
    ready: bool | None = None


class Endpoint(Shape, frozen=True):
    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    target_ref: Target | None = None
    node_name: str | None = None
    zone: str | None = None


class EndpointPort(Shape, frozen=True):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(Object, frozen=True):
    address_type: str | None = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint] | None = None


T = TypeVar("T", bound=Object)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind at one version, as its URL has it."""

    group: str
    version: str
    plural: str
    kind: str
    shape: type[T]
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(("namespaces", namespace) if namespace and self.namespaced else ()), self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


PODS: Final = Resource("", "v1", "pods", "Pod", Pod)
NODES: Final = Resource("", "v1", "nodes", "Node", Node, namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", Whole, namespaced=False)
SERVICES: Final = Resource("", "v1", "services", "Service", Whole)
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount", Whole)
EVENTS: Final = Resource("", "v1", "events", "Event", Whole)
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", EndpointSlice)
TOKEN_REVIEWS: Final = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", Whole, namespaced=False)
