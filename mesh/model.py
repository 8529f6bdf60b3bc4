"""The mesh as immutable values: workloads, services, compiled policies, and the world that holds them all.

Owns the vocabulary that every source is translated into and every push is translated from. Knows neither documents
(YAML, Kubernetes, Istio) nor the wire (protobuf); both are `controlplane/translate/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Any, Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

HOSTNAME_SUFFIX: Final = "svc.cluster.local"
EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class AppProtocol(StrEnum):
    UNKNOWN = "UNKNOWN"
    HTTP11 = "HTTP11"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    TCP = "TCP"
    TLS = "TLS"


class WorkloadType(StrEnum):
    DEPLOYMENT = "DEPLOYMENT"
    CRONJOB = "CRONJOB"
    POD = "POD"
    JOB = "JOB"


class LoadBalancingScope(StrEnum):
    REGION = "REGION"
    ZONE = "ZONE"
    SUBZONE = "SUBZONE"
    NODE = "NODE"
    CLUSTER = "CLUSTER"
    NETWORK = "NETWORK"


class LoadBalancingMode(StrEnum):
    UNSPECIFIED = "UNSPECIFIED_MODE"
    STRICT = "STRICT"
    FAILOVER = "FAILOVER"
    PASSTHROUGH = "PASSTHROUGH"


class Spread(StrEnum):
    """How endpoints that are equally near share the connections."""

    RANDOM = "random"
    LEAST_REQUEST = "least-request"
    CLIENT_ADDRESS = "client-address"


class OutboundPolicy(StrEnum):
    """What becomes of a connection to an address that the mesh does not know. UNSET: as the tunnel's setting says."""

    UNSET = ""
    ALLOW_ANY = "ALLOW_ANY"
    REGISTRY_ONLY = "REGISTRY_ONLY"


class IPFamilies(StrEnum):
    AUTOMATIC = "AUTOMATIC"
    IPV4_ONLY = "IPV4_ONLY"
    IPV6_ONLY = "IPV6_ONLY"
    DUAL = "DUAL"


class Scope(StrEnum):
    GLOBAL = "GLOBAL"
    NAMESPACE = "NAMESPACE"
    WORKLOAD_SELECTOR = "WORKLOAD_SELECTOR"


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    # Decides nothing; what matches is reported.
    AUDIT = "AUDIT"


class Comparison(StrEnum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENCE = "presence"


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """`target_port` 0: a named port, each endpoint says which number it is."""

    service_port: int
    target_port: int
    protocol: AppProtocol = AppProtocol.UNKNOWN


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    scopes: tuple[LoadBalancingScope, ...] = ()
    mode: LoadBalancingMode = LoadBalancingMode.UNSPECIFIED
    allow_unhealthy: bool = False
    spread: Spread = Spread.RANDOM


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a waypoint or another network's gateway listens: an address in a network, or a service's name."""

    namespace: str = ""
    hostname: str = ""
    network: str = ""
    address: IPAddress | None = None
    port: int = 15008


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """What the application wants instead of plain connections to the asked port. `port` 0: as asked."""

    proxy: bool
    port: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Something with an address and an identity. Without an address and hostname it is known, but not reachable yet."""

    uid: str
    name: str
    namespace: str
    addresses: tuple[IPAddress, ...] = ()
    hostname: str = ""
    network: str = ""
    cluster_id: str = ""
    # "": cluster.local, as on the wire.
    trust_domain: str = ""
    service_account: str = "default"
    node: str = ""
    # Reachable through a tunnel; `native_tunnel`: it terminates the tunnel itself, no node does it for it.
    hbone: bool = False
    native_tunnel: bool = False
    host_network: bool = False
    healthy: bool = True
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_name: str = ""
    workload_type: WorkloadType = WorkloadType.POD
    locality: Locality | None = None
    capacity: int | None = None
    waypoint: Gateway | None = None
    network_gateway: Gateway | None = None
    application_tunnel: ApplicationTunnel | None = None
    outbound: OutboundPolicy = OutboundPolicy.UNSET
    # "namespace/hostname" of a service -> how its ports are served here.
    services: Mapping[str, tuple[Port, ...]] = field(default_factory=lambda: EMPTY)
    # "namespace/name" of the selector-scoped policies that apply.
    policies: tuple[str, ...] = ()
    # The same of the policies about whom it may call.
    egress_policies: tuple[str, ...] = ()
    # By which subsets of a service are told apart; tunnels are not told.
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual address, or a range of them."""

    network: str
    prefix: IPNetwork


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    namespace: str
    hostname: str
    vips: tuple[Vip, ...] = ()
    ports: tuple[Port, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    load_balancing: LoadBalancing | None = None
    waypoint: Gateway | None = None
    # With their shares; they go before `waypoint`.
    weighted_waypoints: tuple[tuple[Gateway, int], ...] = ()
    ip_families: IPFamilies = IPFamilies.AUTOMATIC
    # Wins among services of one address when none is in the client's namespace.
    canonical: bool = False
    # Only for clients in its own namespace.
    namespace_only: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class StringMatch:
    comparison: Comparison
    value: str = ""


@dataclass(frozen=True, slots=True)
class AccountMatch:
    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Match:
    """True when, for each attribute, (no positive value or any matches) and no negative one does."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[AccountMatch, ...] = ()
    not_service_accounts: tuple[AccountMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    # Hostname of the addressed service; only the client's side knows it.
    services: tuple[StringMatch, ...] = ()
    not_services: tuple[StringMatch, ...] = ()


# A clause is true when any match is; a rule when all clauses are (without a clause: always); a policy when any rule is.
Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    namespace: str
    scope: Scope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is known, at one moment. Keys: uid, "namespace/hostname", "namespace/name"."""

    version: int = 0
    workloads: Mapping[str, Workload] = field(default_factory=lambda: EMPTY)
    services: Mapping[str, Service] = field(default_factory=lambda: EMPTY)
    policies: Mapping[str, Policy] = field(default_factory=lambda: EMPTY)
    joining: frozenset[tuple[str, str, str]] = frozenset()
    """Node, namespace and account of pods on their way into the mesh: their tunnel needs certificates already."""
    network: str = ""
    """Our own."""
