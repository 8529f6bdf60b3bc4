"""How a destination is called: balancing, pools, ejection, locality, TLS. Part of the model of `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.model import EMPTY


class Balance(StrEnum):
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    RING_HASH = "RING_HASH"
    MAGLEV = "MAGLEV"
    # To the address that the client asked for.
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True)
class Hash:
    """Exactly one source. `cookie_ttl_s` None: a cookie is used but never made."""

    header: str = ""
    query: str = ""
    source_ip: bool = False
    cookie: str = ""
    cookie_path: str = ""
    cookie_ttl_s: float | None = None
    cookie_attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """None: unlimited, or Envoy's default."""

    max_connections: int | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    max_concurrent_streams: int | None = None
    connect_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    tcp_idle_timeout_s: float | None = None
    max_connection_duration_s: float | None = None
    retry_budget_percent: float | None = None
    retry_budget_minimum: int | None = None
    # None: by the port's protocol. True: HTTP/2, also for requests that come as HTTP/1.1.
    http2: bool | None = None
    use_client_protocol: bool = False


@dataclass(frozen=True, slots=True)
class Outlier:
    """Zero: that kind does not count. None: Envoy's default."""

    consecutive_5xx: int | None = None
    consecutive_gateway: int | None = None
    consecutive_local: int | None = None
    split_local: bool = False
    interval_s: float | None = None
    ejection_s: float | None = None
    max_ejection_percent: int | None = None
    min_health_percent: int = 0


@dataclass(frozen=True, slots=True)
class LocalityRules:
    """`distribute`: from -> (to, percent). `failover`: region -> region; or `priority`: labels, the first one first.
    Localities as `region/zone/subzone`, `*` at the end."""

    distribute: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    priority: tuple[str, ...] = ()
    enabled: bool = True


class TlsMode(StrEnum):
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"


@dataclass(frozen=True, slots=True)
class Credential:
    """Either a name in `L7.secrets`, or files on the proxy's own machine."""

    secret: str = ""
    chain_file: str = ""
    key_file: str = ""
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS to the application, inside a tunnel if there is one. Without `ca`: the system's roots. `sni` "": the
    request's host."""

    mode: TlsMode
    sni: str = ""
    subject_alt_names: tuple[str, ...] = ()
    ca: Credential | None = None
    client: Credential | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a service (or subset, or port) is called."""

    balance: Balance = Balance.LEAST_REQUEST
    hash: Hash | None = None
    warmup_s: float | None = None
    pool: Pool = Pool()
    outlier: Outlier | None = None
    locality: LocalityRules | None = None
    tls: UpstreamTls | None = None
    proxy_protocol: bool = False


@dataclass(frozen=True, slots=True)
class Subset:
    """Settled: subset over service, block by block."""

    labels: Mapping[str, str]
    traffic: Traffic = Traffic()
    ports: Mapping[int, Traffic] = field(default_factory=dict)


class Resolution(StrEnum):
    """Whose addresses are tried: the world's endpoints', what the name resolves to, or the one that was asked for."""

    ENDPOINTS = "ENDPOINTS"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"
    NONE = "NONE"


@dataclass(frozen=True, slots=True)
class Destination:
    """A service (key: `namespace/hostname`, as in the world) as something that is called, from wherever.

    One that is not here is called with `Traffic()`. `external`: outside the mesh.
    """

    traffic: Traffic = Traffic()
    ports: Mapping[int, Traffic] = field(default_factory=dict)
    subsets: Mapping[str, Subset] = field(default_factory=lambda: EMPTY)
    resolution: Resolution = Resolution.ENDPOINTS
    external: bool = False
