"""What is done with a request: matches, routes, their actions, rate limits. Part of the model of `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.model import EMPTY, IPNetwork


class Compare(StrEnum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    # RE2, of the whole text.
    REGEX = "regex"
    PRESENT = "present"
    # Of a path: the prefix ends where a segment ends (/foo is not a prefix of /foobar).
    SEGMENTS = "segments"
    # Of a path: `{*}` is one segment, `{**}` any number.
    TEMPLATE = "template"


@dataclass(frozen=True, slots=True)
class Text:
    how: Compare
    value: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class NamedText:
    """A header, query parameter or cookie. `absent`: true when it is missing or does not match."""

    name: str
    text: Text
    absent: bool = False


@dataclass(frozen=True, slots=True)
class ClaimText:
    """A claim of a verified JWT: `("group", "name")` is group.name; a list matches when an item does."""

    path: tuple[str, ...]
    text: Text
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A service's port and, if any, a subset of its endpoints. `service` "": it does not exist; answered with 500."""

    service: str
    port: int = 0
    subset: str = ""


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """`set` replaces, `add` appends; values are literal (no command operators)."""

    set: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    add: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """`weight`: relative to the sum of its route's."""

    target: Target
    weight: int = 1
    request: HeaderChanges = HeaderChanges()
    response: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class HttpMatch:
    """All that is given must be true. `port`: the service's at a waypoint, the server's at a gateway; 0 is any."""

    path: Text | None = None
    method: Text | None = None
    authority: Text | None = None
    scheme: Text | None = None
    headers: tuple[NamedText, ...] = ()
    query: tuple[NamedText, ...] = ()
    claims: tuple[ClaimText, ...] = ()
    port: int = 0
    source_namespace: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """At least one share."""

    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Redirect:
    """ "" or 0: as requested. `prefix`: replaces the matched prefix; at most one of it and `path`."""

    status: int = 301
    scheme: str = ""
    authority: str = ""
    port: int = 0
    path: str = ""
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class DirectResponse:
    status: int
    body: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """At most one of `prefix` (of what matched), `path` (the whole) and `regex` (pattern, substitution)."""

    prefix: str | None = None
    path: str = ""
    regex: tuple[str, str] | None = None
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Retries:
    """`attempts`: after the first one. `conditions`: Envoy's words."""

    attempts: int = 2
    conditions: tuple[str, ...] = ("connect-failure", "refused-stream", "unavailable", "cancelled")
    statuses: tuple[int, ...] = (503,)
    per_try_timeout_s: float | None = None
    backoff_s: float | None = None
    other_hosts: bool = True
    other_localities: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    percent: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Abort:
    """Exactly one status."""

    percent: float
    http_status: int | None = None
    grpc_status: int | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    target: Target
    percent: float = 100.0


@dataclass(frozen=True, slots=True)
class Cors:
    origins: tuple[Text, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age_s: int | None = None
    credentials: bool | None = None
    forward_unmatched_preflights: bool = True


@dataclass(frozen=True, slots=True)
class Session:
    """A client stays with the endpoint that answered first, as long as that is healthy; it is told which by a cookie or
    header. `ttl_s` 0: as long as the browser runs."""

    name: str
    header: bool = False
    ttl_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """`matches`: any of them; none is always. `timeout_s` None: unlimited. `retries` None: never."""

    name: str
    action: Forward | Redirect | DirectResponse
    matches: tuple[HttpMatch, ...] = ()
    rewrite: Rewrite | None = None
    request: HeaderChanges = HeaderChanges()
    response: HeaderChanges = HeaderChanges()
    timeout_s: float | None = None
    retries: Retries | None = Retries()
    delay: Delay | None = None
    abort: Abort | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    limits: tuple[Limit, ...] = ()
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class L4Match:
    """`sni`: exact or `*.suffix`, lower case; none is any. `networks`: of the destination, `sources`: of the client."""

    port: int = 0
    sni: tuple[str, ...] = ()
    networks: tuple[IPNetwork, ...] = ()
    sources: tuple[IPNetwork, ...] = ()
    source_namespace: str = ""


@dataclass(frozen=True, slots=True)
class L4Route:
    """TCP, or TLS that is not terminated. `matches`: any of them; none is always."""

    name: str
    shares: tuple[Share, ...]
    matches: tuple[L4Match, ...] = ()


class Per(StrEnum):
    """What each counts for itself."""

    PRINCIPAL = "principal"
    HEADER = "header"
    PATH = "path"
    METHOD = "method"
    CLIENT_ADDRESS = "client-address"


@dataclass(frozen=True, slots=True)
class Dimension:
    """`key`: the descriptor's. `header`: whose value, for `Per.HEADER`. `value`: only requests with that one."""

    key: str
    per: Per
    header: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """`tokens` per `every_s`. HTTP: requests (answered 429); TCP: new connections.

    `service` None: counted in each Envoy by itself; else asked of that rate-limit service (`domain`), which then knows
    the numbers. `place`: which of the proxy's rate-limit services that is. `dimensions`: none is one bucket for all.
    """

    name: str
    tokens: int = 0
    every_s: float = 1.0
    dimensions: tuple[Dimension, ...] = ()
    service: Target | None = None
    domain: str = ""
    fail_open: bool = False
    place: int = 0
    matches: tuple[HttpMatch, ...] = ()
