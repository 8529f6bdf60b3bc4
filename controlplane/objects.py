"""Configuration documents as typed values: what was written, checked, nothing derived.

Owns the shape of every accepted kind. Reading it from a document is `translate/kubernetes.py` and `translate/istio.py`;
what it means for the mesh is `translate/{workloads,services,policies}.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from controlplane.l7.security import Authorization
from mesh.model import (
    Action,
    AppProtocol,
    IPAddress,
    IPFamilies,
    IPNetwork,
    LoadBalancing,
    Locality,
    OutboundPolicy,
    Rule,
)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mesh:
    """What no document says. `trust_domain` in full, also when it is the default."""

    cluster_id: str = "Kubernetes"
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    marked: bool = False
    """Agents write on each pod that it is captured (`ambient.istio.io/redirection`): before, nobody comes by HBONE."""
    shared: bool = False
    """Other controllers' objects may be among ours: a Gateway's class says whose it is."""


@dataclass(frozen=True, slots=True)
class Meta:
    """`created`: RFC 3339, "" when unknown; among equals the oldest object wins, unknown last, and of these the first
    as they are written. `place`: the file and the number in it, of layer 7's documents in files."""

    name: str
    namespace: str = ""
    labels: Labels = field(default_factory=dict)
    annotations: Labels = field(default_factory=dict)
    created: str = ""
    place: tuple[str, int] = ("", 0)

    @property
    def age_order(self) -> tuple[bool, str, tuple[str, int], str, str]:
        return (not self.created, self.created, ("", 0) if self.created else self.place, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Namespace:
    meta: Meta
    outbound: OutboundPolicy = OutboundPolicy.UNSET


@dataclass(frozen=True, slots=True)
class Node:
    meta: Meta


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    meta: Meta


@dataclass(frozen=True, slots=True)
class Owner:
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Pod:
    """`ports`: container port by name. `ready` is false only when the Ready condition says so, or it is going away."""

    meta: Meta
    owner: Owner | None
    node: str
    service_account: str
    host_network: bool
    ports: Mapping[str, int]
    phase: str
    ips: tuple[IPAddress, ...]
    ready: bool


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target`: a number, or the name of a container port."""

    name: str
    number: int
    target: int | str
    protocol: AppProtocol


@dataclass(frozen=True, slots=True)
class KubernetesService:
    meta: Meta
    selector: Labels
    cluster_ips: tuple[IPAddress, ...]
    ports: tuple[ServicePort, ...]
    load_balancing: LoadBalancing | None
    ip_families: IPFamilies
    external_name: bool


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    addresses: tuple[IPAddress, ...]
    ready: bool
    pod: str
    node: str
    zone: str


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """`ports`: number by port name."""

    meta: Meta
    service: str
    ports: Mapping[str, int]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A WorkloadEntry's spec, also inline in a ServiceEntry. Exactly one of `address` and `hostname` is set."""

    address: IPAddress | None
    hostname: str
    ports: Mapping[str, int]
    labels: Labels
    network: str
    locality: Locality | None
    weight: int | None
    service_account: str

    @property
    def text(self) -> str:
        return str(self.address) if self.address else self.hostname


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    meta: Meta
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class KubernetesGateway:
    """`addresses`: as its status says, else its spec; `hostnames` likewise. `port`: of its HBONE listener. `spec`: as a
    `Resource` has it."""

    meta: Meta
    gateway_class: str
    addresses: tuple[IPAddress, ...]
    hostnames: tuple[str, ...]
    port: int
    spec: Mapping[str, Any] = field(default_factory=dict)


class Resolution(StrEnum):
    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """`selector` None: the endpoints are inline. `external`: outside the mesh."""

    meta: Meta
    hosts: tuple[str, ...]
    addresses: tuple[IPNetwork, ...]
    ports: tuple[ServicePort, ...]
    resolution: Resolution
    endpoints: tuple[Endpoint, ...]
    selector: Labels | None
    subject_alt_names: tuple[str, ...]
    namespace_only: bool
    load_balancing: LoadBalancing | None
    external: bool = True


@dataclass(frozen=True, slots=True)
class TargetRef:
    """What a policy is attached to; it lies in the policy's own namespace."""

    group: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """Rules are already layer 4. `action` None: not for the tunnel (CUSTOM, or attached by `targets`). `egress`: about
    whom the selected workloads may call, not who may call them. `l7`: the whole of it."""

    meta: Meta
    selector: Labels
    action: Action | None
    rules: tuple[Rule, ...]
    dry_run: bool
    egress: bool = False
    targets: tuple[TargetRef, ...] = ()
    l7: Authorization | None = None


class MtlsMode(StrEnum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    meta: Meta
    selector: Labels
    mode: MtlsMode
    port_modes: Mapping[int, MtlsMode]


@dataclass(frozen=True, slots=True)
class Resource:
    """A document of layer 7. `spec`: what is present, by the field tables (`schema/decode.py`); not to be changed."""

    kind: str
    meta: Meta
    spec: Mapping[str, Any]

    @property
    def key(self) -> str:
        return f"{self.meta.namespace}/{self.meta.name}"


@dataclass(frozen=True, slots=True)
class Secret:
    """PEM, "" what it does not hold."""

    meta: Meta
    chain: str
    key: str = field(repr=False)
    ca: str = ""


Object = (
    Namespace
    | Node
    | ServiceAccount
    | Pod
    | KubernetesService
    | EndpointSlice
    | KubernetesGateway
    | WorkloadEntry
    | ServiceEntry
    | AuthorizationPolicy
    | PeerAuthentication
    | Resource
    | Secret
)
