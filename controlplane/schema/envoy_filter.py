"""Which patches of an EnvoyFilter are applied, and what is wrong with one: judged by Envoy's own schema.

A patch may add to what the mesh does, and change how; it may not come before the filters that say who asks and whether
he may, nor lead requests elsewhere. What would do that is an error; what is for sidecars, or cannot be told where it
belongs, is a warning and not applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from controlplane.l7.patches import Operation, Part, Patch
from controlplane.schema.decode import seconds
from controlplane.schema.rules import exclude, rule
from controlplane.validate import Field
from mesh import envoy

Tree = Mapping[str, Any]
Place = tuple[str, ...]
MESSAGES: Final = {
    Part.HTTP_FILTER: "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    Part.NETWORK_FILTER: "envoy.config.listener.v3.Filter",
    Part.HTTP_ROUTE: "envoy.config.route.v3.Route",
    Part.VIRTUAL_HOST: "envoy.config.route.v3.VirtualHost",
    Part.CLUSTER: "envoy.config.cluster.v3.Cluster",
}
_MERGED: Final = tuple(each for each in Part if each is not Part.HTTP_FILTER)
GUARDS: Final = (
    *("identity", "jwt", "rbac.custom", "authorizer.0", "authorizer.1", "rbac.audit", "rbac.deny", "rbac.allow"),
    *("limiter.0", "limiter.1", "envoy.filters.http.local_ratelimit"),
)
"""Our own filters, which say who asks, whether he may and how much; by their names in the chain."""
# As EnvoyFilters that were written for Istio's proxies call them.
_ISTIOS: Final = (
    *(f"envoy.filters.http.{each}" for each in ("jwt_authn", "rbac", "ext_authz", "set_filter_state")),
    *("istio_authn", "istio.alpn", "istio.metadata_exchange"),
)
AUTHORIZED: Final = "envoy.filters.http.rbac"
ROUTER: Final = "envoy.filters.http.router"
_ANCHORS: Final = (ROUTER, *(f"envoy.filters.http.{each}" for each in ("grpc_stats", "fault", "cors")))
_HTTP: Final = "envoy.extensions.filters.http"
_INSERTED: Final = frozenset(
    f"{_HTTP}.{each}"
    for each in (
        "lua.v3.Lua", "header_mutation.v3.HeaderMutation", "buffer.v3.Buffer", "compressor.v3.Compressor",
        "grpc_web.v3.GrpcWeb", "csrf.v3.CsrfPolicy", "bandwidth_limit.v3.BandwidthLimit",
        "adaptive_concurrency.v3.AdaptiveConcurrency", "admission_control.v3.AdmissionControl",
    )
)  # fmt: skip
_MANAGER: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_HTTP_MANAGER: Final = "envoy.filters.network.http_connection_manager"
NETWORK_FILTERS: Final = {
    _HTTP_MANAGER: _MANAGER,
    "envoy.filters.network.tcp_proxy": _TCP_PROXY,
}
_HEADERS: Final = tuple(f"{who}_headers_to_{what}" for who in ("request", "response") for what in ("add", "remove"))
# What a merge may touch: nothing that chooses where a request goes or what is asked of it.
_ALLOWED: Final[Mapping[Part, frozenset[str]]] = {
    Part.HTTP_ROUTE: frozenset(
        (*_HEADERS, "route", "metadata", "decorator", "tracing", "per_request_buffer_limit_bytes", "stat_prefix")
    ) | {"typed_per_filter_config"},
    Part.VIRTUAL_HOST: frozenset(
        (*_HEADERS, "retry_policy", "hedge_policy", "include_request_attempt_count", "typed_per_filter_config")
    ) | {"include_attempt_count_in_response", "per_request_buffer_limit_bytes"},
    Part.CLUSTER: frozenset(
        ("connect_timeout", "per_connection_buffer_limit_bytes", "circuit_breakers", "outlier_detection")
    ) | {"upstream_connection_options", "dns_refresh_rate", "respect_dns_ttl", "track_cluster_stats",
         "close_connections_on_host_health_failure", "ignore_health_on_host_removal"},
    Part.NETWORK_FILTER: frozenset(("name", "typed_config")),
}  # fmt: skip
_ACTION: Final = frozenset(
    ("timeout", "idle_timeout", "retry_policy", "max_stream_duration", "hash_policy", "priority", "upgrade_configs")
) | {"prefix_rewrite", "regex_rewrite", "host_rewrite_literal", "append_x_forwarded_host", "hedge_policy"}
_FILTER_FIELDS: Final = {
    _TCP_PROXY: frozenset(("idle_timeout", "max_connect_attempts", "max_downstream_connection_duration")),
    _MANAGER: frozenset(
        ("stream_idle_timeout", "request_timeout", "request_headers_timeout", "max_request_headers_kb", "drain_timeout",
         "delayed_close_timeout", "common_http_protocol_options", "http_protocol_options", "http2_protocol_options",
         "server_name", "server_header_transformation", "merge_slashes", "path_with_escaped_slashes_action",
         "local_reply_config", "preserve_external_request_id", "always_set_request_id_in_response",
         "xff_num_trusted_hops", "generate_request_id", "via")
    ),
}  # fmt: skip
_ANY: Final = envoy.TYPE
_STRUCTS: Final = tuple(f"{_ANY}{each}.type.v1.TypedStruct" for each in ("udpa", "xds"))
_UNAPPLIED: Final = "is not applied: {}; see docs/traffic.md"


class _Refused(ValueError):
    def __init__(self, place: Place, why: str) -> None:
        super().__init__(why)
        self.place = place


class _Unapplied(ValueError):
    """The patch is left out, and that is said."""


@rule("EnvoyFilter.configPatches")
def _patch(field: Field, value: Tree) -> None:
    if local_limit(value) is not None:
        return
    try:
        patch(value, "")
    except _Unapplied as error:
        field.warn(_UNAPPLIED.format(error))
    except _Refused as error:
        found = field
        for name in error.place:
            found = found.get(name)
        found.fail(str(error))


@rule("EnvoyFilter")
def _envoy_filter(field: Field, value: Tree) -> None:
    exclude(field, value, "targetRefs", "workloadSelector")
    if not value.get("configPatches"):
        field.warn("has no configPatches")


def patches(spec: Tree, name: str) -> Iterator[Patch]:
    """Of a document that is valid: those that are applied."""
    for index, each in enumerate(spec.get("configPatches", ())):
        if local_limit(each) is None:
            try:
                yield patch(each, f"{name}/{index}")
            except _Unapplied:
                continue


def patch(given: Tree, name: str) -> Patch:
    """Raises _Refused, _Unapplied."""
    part, operation = _kind(given)
    match: Tree = given.get("match", {})
    context = match.get("context", "ANY")
    if context.startswith("SIDECAR"):
        raise _Unapplied("there are no sidecars here")
    where = _where(part, match)
    value = _value(part, given["patch"].get("value"))
    if part is Part.HTTP_FILTER:
        _check_inserted(operation, where.get("filter", ""), value)
    else:
        _check_merged(part, where.get("filter", ""), value)
    role = {"GATEWAY": "gateway", "WAYPOINT": "waypoint"}.get(context, "")
    return Patch(name, part, operation, json.dumps(value, sort_keys=True), role, **where)


def _kind(given: Tree) -> tuple[Part, Operation]:
    to, how = given.get("applyTo", ""), given.get("patch", {}).get("operation", "")
    inserts = to == Part.HTTP_FILTER and how in (Operation.FIRST, Operation.BEFORE, Operation.AFTER)
    if inserts or (to in _MERGED and how == Operation.MERGE):
        return Part(to), Operation(how)
    merged = ", ".join(_MERGED)
    raise _Unapplied(f"HTTP_FILTER is inserted and {merged} are merged, not {to or 'nothing'} {how}".rstrip())


def _where(part: Part, match: Tree) -> dict[str, Any]:
    """Raises _Unapplied: by something that is not looked at here; the patch would go too far."""
    allowed = {
        Part.HTTP_FILTER: ("listener", "waypoint"),
        Part.NETWORK_FILTER: ("listener", "waypoint"),
        Part.HTTP_ROUTE: ("routeConfiguration", "waypoint"),
        Part.VIRTUAL_HOST: ("routeConfiguration", "waypoint"),
        Part.CLUSTER: ("cluster",),
    }[part]
    found: dict[str, Any] = {}
    for path, value in _leaves(match):
        if path == ("context",):
            continue
        name = _SAID.get(path, "")
        if (part, name, value) == (Part.HTTP_FILTER, "filter", _HTTP_MANAGER):
            continue
        if part is Part.HTTP_FILTER:
            name = {"filter": "", "subFilter": "filter"}.get(name, name)
        if name in ("", "subFilter") or path[0] not in allowed:
            raise _Unapplied(f"match.{'.'.join(path)} is not looked at")
        found[name] = value
    if found.get("action") == "ANY":
        del found["action"]
    return found


_SAID: Final[Mapping[Place, str]] = {
    **{(each, "portNumber"): "port" for each in ("listener", "waypoint", "routeConfiguration", "cluster")},
    ("listener", "filterChain", "filter", "name"): "filter",
    ("listener", "filterChain", "filter", "subFilter", "name"): "subFilter",
    ("waypoint", "filter", "name"): "filter",
    ("waypoint", "filter", "subFilter", "name"): "subFilter",
    ("waypoint", "route", "name"): "route",
    ("routeConfiguration", "vhost", "name"): "host",
    ("routeConfiguration", "vhost", "domainName"): "host",
    ("routeConfiguration", "vhost", "route", "name"): "route",
    ("routeConfiguration", "vhost", "route", "action"): "action",
    ("cluster", "service"): "host",
    ("cluster", "subset"): "subset",
}


def _leaves(tree: Tree, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _value(part: Part, given: Any) -> dict[str, Any]:
    """By Envoy's schema, in its field names."""
    place = ("patch", "value")
    if not isinstance(given, Mapping):
        raise _Refused(place, "is required: what shall be inserted or merged?")
    for where, kind in _types(given, place):
        if not envoy.knows(kind.removeprefix(_ANY)):
            raise _Refused(where, f"{kind.removeprefix(_ANY)!r} is not a type that can be configured here")
    try:
        return envoy.normal(MESSAGES[part], _plain(given))
    except ValueError as error:
        raise _Refused(place, f"is not a {MESSAGES[part].rpartition('.')[2]} of Envoy: {error}") from None


def _types(tree: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Each `@type`, and the nearest field that has a line. A TypedStruct is what it stands for."""
    if isinstance(tree, Mapping):
        kind = tree.get("@type")
        if isinstance(kind, str):
            yield place, str(tree.get("type_url", tree.get("typeUrl", ""))) if kind in _STRUCTS else kind
        for name, value in tree.items():
            yield from _types(value, (*place, name))
    elif isinstance(tree, list):
        for each in tree:
            yield from _types(each, place)


def _plain(tree: Any) -> Any:
    """TypedStructs as the messages that they stand for."""
    if isinstance(tree, list):
        return [_plain(each) for each in tree]
    if not isinstance(tree, Mapping):
        return tree
    if tree.get("@type") in _STRUCTS:
        return {"@type": tree.get("type_url", tree.get("typeUrl", "")), **_plain(tree.get("value") or {})}
    return {name: _plain(value) for name, value in tree.items()}


def _check_inserted(operation: Operation, anchor: str, value: Tree) -> None:
    name, config = value.get("name", ""), value.get("typed_config", {})
    place = ("patch", "value")
    if not name or name in GUARDS or name in _ANCHORS:
        raise _Refused((*place, "name"), f"{name!r} cannot be the name of a filter of one's own")
    kind = config.get("@type", "").removeprefix(_ANY)
    if kind not in _INSERTED:
        known = ", ".join(sorted(each.split(".")[-3] for each in _INSERTED))
        raise _Refused((*place, "typed_config"), f"{kind or 'nothing'} is not inserted; known: {known}")
    if anchor and (anchor in GUARDS or anchor in _ISTIOS) and (operation, anchor) != (Operation.AFTER, AUTHORIZED):
        why = f"{operation} {anchor} would come before the mesh's own policies; what is inserted comes after them"
        raise _Refused(("match",), why)
    if (operation, anchor) == (Operation.AFTER, ROUTER):
        raise _Refused(("match",), "nothing comes after the router")
    if anchor and anchor not in (*_ANCHORS, AUTHORIZED):
        raise _Unapplied(f"no filter is called {anchor!r}; known: {', '.join(_ANCHORS)}, {AUTHORIZED}")


def _check_merged(part: Part, name: str, value: Tree) -> None:
    _only(value, _ALLOWED[part], ("patch", "value"))
    _only(value.get("route", {}), _ACTION, ("patch", "value", "route"))
    for each in value.get("typed_per_filter_config", {}):
        if each in GUARDS or each in _ISTIOS:
            place = ("patch", "value", "typed_per_filter_config")
            raise _Refused(place, f"{each!r} is for the mesh's own policies alone")
    if part is Part.NETWORK_FILTER:
        kind = value.get("typed_config", {}).get("@type", "").removeprefix(_ANY)
        wanted = NETWORK_FILTERS.get(name)
        if wanted is None or kind != wanted:
            known = ", ".join(f"{one} ({what})" for one, what in NETWORK_FILTERS.items())
            why = f"needs a filter to merge with, named in match, and its type: {known}"
            raise _Refused(("patch", "value", "typed_config"), why)
        fields = {each: inner for each, inner in value["typed_config"].items() if each != "@type"}
        _only(fields, _FILTER_FIELDS[kind], ("patch", "value", "typed_config"))


def _only(value: Tree, allowed: frozenset[str], place: Place) -> None:
    for each in value:
        if each not in allowed:
            raise _Refused((*place, each), f"is not merged here; allowed: {', '.join(sorted(allowed))}")


def local_limit(given: Tree) -> tuple[int, float] | None:
    """Tokens and seconds of the local rate limit that a patch inserts, if it is one of those."""
    inserts = given.get("patch", {}).get("operation", "").startswith("INSERT_")
    config = given.get("patch", {}).get("value")
    if given.get("applyTo") != "HTTP_FILTER" or not inserts or not isinstance(config, dict):
        return None
    if "local_ratelimit" not in str(config.get("name", "")):
        return None
    bucket = _inner(_inner(config, "typed_config", "value") or _inner(config, "typed_config"), "token_bucket")
    tokens, every = str(bucket.get("tokens_per_fill", bucket.get("max_tokens", ""))), bucket.get("fill_interval", "1s")
    duration = seconds(every) if isinstance(every, str) else None
    return (int(tokens), duration) if tokens.isascii() and tokens.isdecimal() and duration else None


def _inner(config: Tree, *path: str) -> Tree:
    """{}: it is not there, or something else."""
    for name in path:
        found = config.get(name)
        config = found if isinstance(found, dict) else {}
    return config
