"""What waypoints and gateways shall do, as immutable values.

Owns the vocabulary between documents (Istio's, the Gateway API's) and Envoy: `translate/` makes it of the objects in
force, `translate/envoy*.py` makes resources of it. Everything here is decided: names are resolved to services, defaults
are applied, precedence is settled, order counts. Knows neither YAML nor Envoy. What an endpoint is, is in `mesh.model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.l7.patches import Patch
from controlplane.l7.routes import HttpRoute, L4Route, Limit
from controlplane.l7.security import Authorization, Authorizer, JwtRule
from controlplane.l7.telemetry import Telemetry, Tracer
from controlplane.l7.traffic import Credential, Destination
from mesh.model import EMPTY, IPAddress


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of a request before it is routed."""

    authorizations: tuple[Authorization, ...] = ()
    jwt: tuple[JwtRule, ...] = ()
    limits: tuple[Limit, ...] = ()
    telemetry: Telemetry = field(default_factory=Telemetry)
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """A service behind a waypoint. Without routes its requests go to itself. `rules`: the waypoint's are in them."""

    service: str
    http: tuple[HttpRoute, ...] = ()
    l4: tuple[L4Route, ...] = ()
    rules: Rules = Rules()


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """`domains`: as in Host headers, without a port; `*.suffix`, `*`. Routes in order; nothing matches: 404."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[HttpRoute, ...]


class ServerTlsMode(StrEnum):
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    OPTIONAL_MUTUAL = "OPTIONAL_MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """ISTIO_MUTUAL: the gateway's own identity, clients by theirs. `minimum`, `maximum`: as TLSv1_2, "" is Envoy's."""

    mode: ServerTlsMode
    credentials: tuple[Credential, ...] = ()
    client_ca: Credential | None = None
    subject_alt_names: tuple[str, ...] = ()
    minimum: str = ""
    maximum: str = ""
    ciphers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """One of a gateway's. With `virtual_hosts` HTTP (over TLS, if `tls` terminates it), else layer 4.

    `hosts`: SNI names when there is TLS. Several servers may share a port; they then differ in hosts.
    """

    name: str
    port: int
    hosts: tuple[str, ...] = ("*",)
    http: bool = True
    tls: ServerTls | None = None
    redirect_to_https: bool = False
    bind: IPAddress | None = None
    virtual_hosts: tuple[VirtualHost, ...] = ()
    l4: tuple[L4Route, ...] = ()


class Role(StrEnum):
    WAYPOINT = "waypoint"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An Envoy, or several with one configuration. `port`: a waypoint's, for HBONE.

    `services`, `rules`: a waypoint's; `rules` go for connections to workloads' own addresses. `servers`, `rules`: a
    gateway's. `destinations`: those that it calls otherwise than `L7.destinations` says.
    """

    name: str
    namespace: str
    role: Role
    service_account: str
    port: int = 15008
    services: tuple[Served, ...] = ()
    servers: tuple[Server, ...] = ()
    workloads: bool = False
    rules: Rules = Rules()
    destinations: Mapping[str, Destination] = field(default_factory=lambda: EMPTY)

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Secret:
    """PEM. A CA alone is one, too."""

    chain: str = ""
    key: str = field(default="", repr=False)
    ca: str = ""


@dataclass(frozen=True, slots=True)
class L7:
    """Everything beyond layer 4. Keys: `namespace/name` of proxies, `namespace/hostname` of destinations, names of the
    rest. A proxy may call only what its routes, rules and telemetry name."""

    proxies: Mapping[str, Proxy] = field(default_factory=lambda: EMPTY)
    destinations: Mapping[str, Destination] = field(default_factory=lambda: EMPTY)
    authorizers: Mapping[str, Authorizer] = field(default_factory=lambda: EMPTY)
    tracers: Mapping[str, Tracer] = field(default_factory=lambda: EMPTY)
    secrets: Mapping[str, Secret] = field(default_factory=lambda: EMPTY)
