"""Who may ask for what: authorization rules, tokens, external authorizers. Part of the model of `model.py`."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.l7.routes import Target, Text
from mesh.model import Action, IPNetwork


@dataclass(frozen=True, slots=True)
class Values:
    """True when (`any` is empty or one of them matches) and none of `none` does."""

    any: tuple[Text, ...] = ()
    none: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class Networks:
    any: tuple[IPNetwork, ...] = ()
    none: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """Principals without `spiffe://`. Service accounts as `namespace/name`. Request principals as `issuer/subject`."""

    principals: Values = Values()
    request_principals: Values = Values()
    namespaces: Values = Values()
    service_accounts: Values = Values()
    trust_domains: Values = Values()
    ips: Networks = Networks()
    remote_ips: Networks = Networks()


@dataclass(frozen=True, slots=True)
class Operation:
    hosts: Values = Values()
    methods: Values = Values()
    paths: Values = Values()
    ports: Values = Values()


@dataclass(frozen=True, slots=True)
class Condition:
    """`key` as AuthorizationPolicy's `when` spells it: `request.headers[x]`, `request.auth.claims[a][b]`,
    `request.auth.audiences`, `connection.sni`, `destination.port`… IP conditions are in `networks`."""

    key: str
    values: Values = Values()
    networks: Networks = Networks()


@dataclass(frozen=True, slots=True)
class AuthorizationRule:
    """Any source (none: everybody), any operation (none: everything), every condition."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Authorization:
    """`action` None: CUSTOM, decided by `provider` (a key of `L7.authorizers`). Without rules it matches nobody, so an
    ALLOW without rules denies all."""

    name: str
    namespace: str
    action: Action | None
    rules: tuple[AuthorizationRule, ...] = ()
    provider: str = ""
    dry_run: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class JwtRule:
    """A token that is there must be valid (401); none is fine. Exactly one of `jwks` (inline) and `jwks_uri`.
    `headers`: (name, prefix)."""

    issuer: str
    audiences: tuple[str, ...] = ()
    jwks: str = ""
    jwks_uri: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    params: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()
    keep_token: bool = False


@dataclass(frozen=True, slots=True)
class Authorizer:
    """An external one (ext_authz). `path_prefix`, `include_headers`: of the HTTP form only."""

    target: Target
    grpc: bool = True
    timeout_s: float = 0.6
    fail_open: bool = False
    status_on_error: int = 403
    path_prefix: str = ""
    include_headers: tuple[str, ...] = ()
    headers_upstream: tuple[str, ...] = ()
    headers_downstream: tuple[str, ...] = ()
