"""JWT rules and external authorizers to Envoy's filters, delivered by ECDS: open connections feel a change. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from controlplane.l7.routes import Target
from controlplane.l7.security import Authorizer, JwtRule
from controlplane.translate.envoy.common import (
    OWN,
    SOURCE,
    Json,
    outbound,
    seconds,
    typed,
    without_empty,
)
from controlplane.translate.envoy.rbac import CUSTOM_PREFIX
from controlplane.translate.envoy.routes import JWT_PAYLOAD

JWT: Final = "jwt"
# A proxy's listeners have this many places for external authorizers.
AUTHORIZERS: Final = ("authorizer.0", "authorizer.1")
# And as many for rate-limit services; each is told of what is meant for it alone.
LIMITERS: Final = ("limiter.0", "limiter.1")
_HTTP: Final = "extensions.filters.http"
KINDS: Final = {
    JWT: f"{_HTTP}.jwt_authn.v3.JwtAuthentication",
    **dict.fromkeys(AUTHORIZERS, f"{_HTTP}.ext_authz.v3.ExtAuthz"),
    **dict.fromkeys(LIMITERS, f"{_HTTP}.ratelimit.v3.RateLimit"),
}
NOTHING: Final[Json] = typed(f"{_HTTP}.rbac.v3.RBAC")
"""What stands in such a place when there is nothing to do."""


def authentication(rules_of: Mapping[str, tuple[JwtRule, ...]]) -> Json:
    """One filter for all listeners of a proxy. `rules_of`: by the name that a route asks for."""
    providers: Json = {}
    requirements: Json = {}
    for name, rules in rules_of.items():
        names = []
        for number, rule in enumerate(rules):
            provider = f"{name}#{number}"
            providers[provider] = _provider(rule)
            names.append({"provider_name": provider})
        any_ = {"requires_any": {"requirements": [*names, {"allow_missing": {}}]}} if names else {}
        if any_:
            requirements[name] = any_
    if not requirements:
        return NOTHING
    return typed(f"{_HTTP}.jwt_authn.v3.JwtAuthentication", providers=providers, requirement_map=requirements)


def required(name: str, rules: Iterable[JwtRule]) -> Json:
    """A route's `typed_per_filter_config`."""
    if not tuple(rules):
        return {}
    return {JWT: typed(f"{_HTTP}.jwt_authn.v3.PerRouteConfig", requirement_name=name)}


def _provider(rule: JwtRule) -> Json:
    found: Json = {
        "issuer": rule.issuer,
        "audiences": list(rule.audiences),
        "payload_in_metadata": JWT_PAYLOAD,
        "forward": rule.keep_token,
        "clear_route_cache": True,
        "from_headers": [{"name": name, "value_prefix": prefix} for name, prefix in rule.headers],
        "from_params": list(rule.params),
        "from_cookies": list(rule.cookies),
        "forward_payload_header": rule.payload_header,
        "claim_to_headers": [{"header_name": header, "claim_name": claim} for header, claim in rule.claim_headers],
    }
    if rule.jwks:
        found["local_jwks"] = {"inline_string": rule.jwks}
    else:
        uri = {"uri": rule.jwks_uri, "cluster": jwks_cluster(rule.jwks_uri), "timeout": "5s"}
        found["remote_jwks"] = {"http_uri": uri, "async_fetch": {"fast_listener": True}}
    return without_empty(found)


def jwks_cluster(uri: str) -> str:
    """By its server."""
    parts = urlsplit(uri)
    return f"jwks|{parts.scheme}|{parts.netloc}"


def authorizer(provider: str, of: Authorizer) -> Json:
    """Asked only when a CUSTOM policy of this provider matches; says so by the metadata of the filter before it."""
    asked = {
        "filter": "envoy.filters.http.rbac",
        "path": [{"key": f"{CUSTOM_PREFIX}shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": f"custom|{provider}|"}},
    }
    found: Json = {
        "transport_api_version": "V3",
        "failure_mode_allow": of.fail_open,
        "status_on_error": {"code": of.status_on_error},
        "filter_enabled_metadata": asked,
        "metadata_context_namespaces": ["envoy.filters.http.jwt_authn"],
    }
    cluster = outbound(of.target)
    if of.grpc:
        found["grpc_service"] = {"envoy_grpc": {"cluster_name": cluster}, "timeout": seconds(of.timeout_s)}
    else:
        found["http_service"] = _http_service(of, cluster)
        if of.include_headers:
            found["allowed_headers"] = _names(of.include_headers)
    return typed(f"{_HTTP}.ext_authz.v3.ExtAuthz", **found)


def _http_service(of: Authorizer, cluster: str) -> Json:
    host = of.target.service.partition("/")[2]
    found: Json = {
        "server_uri": {"uri": f"http://{host}:{of.target.port}", "cluster": cluster, "timeout": seconds(of.timeout_s)}
    }
    if of.path_prefix:
        found["path_prefix"] = of.path_prefix
    if of.headers_upstream:
        found["authorization_response"] = {"allowed_upstream_headers": _names(of.headers_upstream)}
    if of.headers_downstream:
        found.setdefault("authorization_response", {})["allowed_client_headers"] = _names(of.headers_downstream)
    return found


def _names(names: Iterable[str]) -> Json:
    return {"patterns": [{"exact": name, "ignore_case": True} for name in names]}


def identity_headers() -> Json:
    """`x-forwarded-client-cert` as an authorizer and the application may believe it: overwritten, never passed on."""
    value = f"By=%FILTER_STATE({OWN}:PLAIN)%;URI=%FILTER_STATE({SOURCE}:PLAIN)%"
    header = {
        "header": {"key": "x-forwarded-client-cert", "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    return typed(f"{_HTTP}.header_mutation.v3.HeaderMutation", mutations={"request_mutations": [{"append": header}]})


def slots(authorizers: Mapping[str, Authorizer], used: Iterable[str]) -> dict[str, tuple[str, Authorizer]]:
    """Which provider is in which place; those that find none are refused (`rbac.http_filters`)."""
    names = sorted({name for name in used if name in authorizers and authorizers[name].target.service})
    return {place: (name, authorizers[name]) for place, name in zip(AUTHORIZERS, names, strict=False)}


def targets(authorizers: Iterable[Authorizer]) -> list[Target]:
    return [each.target for each in authorizers]
