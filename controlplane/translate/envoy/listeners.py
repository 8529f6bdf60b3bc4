"""What one port of a service is behind a waypoint: an internal listener, and for HTTP its route table. Pure.

The listener depends on protocol and telemetry only; routes, faults and policies are in the table, tokens and external
authorizers in filters that are delivered by themselves. So whatever an operator changes often cuts no connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from controlplane.l7.model import Role, Rules
from controlplane.l7.routes import Forward, HttpRoute, L4Route, Share, Target
from controlplane.translate.envoy import chains, limits, patches, rbac, telemetry, tokens
from controlplane.translate.envoy.common import (
    ADS,
    HBONE_PORT,
    TUNNELS,
    Json,
    authority,
    extension,
    filter_state,
    outbound,
    typed,
)
from controlplane.translate.envoy.routes import CORS, FAULT, SESSION, TrafficOf, routes
from controlplane.translate.envoy.tunnels import DIRECT, original_dst
from controlplane.translate.envoy.world import Serving
from mesh.model import AppProtocol, Workload

HCM: Final = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP: Final = "extensions.filters.http"
INSPECTOR: Final = extension(
    "envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector"
)
_LAYER7: Final = frozenset({AppProtocol.HTTP11, AppProtocol.HTTP2, AppProtocol.GRPC})


def _discovered(name: str) -> Json:
    """A place whose filter comes by itself; until then, and when it never does, requests are refused."""
    kinds = [f"type.googleapis.com/envoy.{kind}" for kind in (tokens.KINDS[name], f"{_HTTP}.rbac.v3.RBAC")]
    return {"name": name, "config_discovery": {"config_source": ADS, "type_urls": kinds}}


def http_filters(first: Json | None = None) -> list[Json]:
    """In the order in which they are asked: who is it, may it, how much, what then."""
    return [
        first or {"name": "identity", "typed_config": tokens.identity_headers()},
        _discovered(tokens.JWT),
        extension(rbac.CUSTOM, f"{_HTTP}.rbac.v3.RBAC", shadow_rules_stat_prefix=rbac.CUSTOM_PREFIX),
        *(_discovered(name) for name in tokens.AUTHORIZERS),
        extension(rbac.AUDIT, f"{_HTTP}.rbac.v3.RBAC"),
        extension(rbac.DENY, f"{_HTTP}.rbac.v3.RBAC", shadow_rules_stat_prefix="istio_dry_run_deny_"),
        extension(rbac.ALLOW, f"{_HTTP}.rbac.v3.RBAC", shadow_rules_stat_prefix="istio_dry_run_allow_"),
        extension(limits.LOCAL, f"{_HTTP}.local_ratelimit.v3.LocalRateLimit", stat_prefix="local"),
        *(_discovered(name) for name in tokens.LIMITERS),
        extension("envoy.filters.http.grpc_stats", f"{_HTTP}.grpc_stats.v3.FilterConfig", emit_filter_state=True),
        extension(FAULT, f"{_HTTP}.fault.v3.HTTPFault"),
        extension(CORS, f"{_HTTP}.cors.v3.Cors"),
        extension(SESSION, f"{_HTTP}.stateful_session.v3.StatefulSession"),
        extension("envoy.filters.http.router", f"{_HTTP}.router.v3.Router"),
    ]


def manager(name: str, said: telemetry.Said, first: Json | None = None, **fields: object) -> Json:
    """The connection manager whose routes are the table of that name. `first`: the filter that says who it is."""
    return extension(
        "envoy.filters.network.http_connection_manager",
        HCM,
        stat_prefix=name.replace(".", "_"),
        rds={"config_source": ADS, "route_config_name": name},
        http_filters=http_filters(first),
        stream_idle_timeout="0s",
        normalize_path=True,
        server_header_transformation="PASS_THROUGH",
        http_protocol_options={"accept_http_10": True},
        upgrade_configs=[{"upgrade_type": "websocket"}],
        **said.manager(),
        **fields,
    )


def listener(
    name: str, protocol: AppProtocol, l4: Sequence[L4Route], rules: Rules, said: telemetry.Said, target: Target
) -> Json:
    """The internal listener of one port."""
    found: Json = {"name": name, "internal_listener": {}, "listener_filters": [original_dst()]}
    if protocol in _LAYER7:
        found["filter_chains"] = [{"filters": [manager(name, said)]}]
        return patches.listener(found, rules.patches, Role.WAYPOINT, target.port)
    web: Json | None = None
    if protocol is AppProtocol.UNKNOWN:
        kind = "extensions.filters.listener.http_inspector.v3.HttpInspector"
        found["listener_filters"].append(extension("envoy.filters.listener.http_inspector", kind))
        # A server that speaks first must not wait for its client for ever.
        found |= {"listener_filters_timeout": "0.5s", "continue_on_listener_filters_timeout": True}
        web = {"filters": [manager(name, said)]}
    ways = chains.ways(l4, target, protocol)
    if chains.by_name(ways):
        found["listener_filters"].append(INSPECTOR)
    plain = [(way, {"filters": tcp_filters(name, way.shares, rules, said, target.port)}) for way in ways]
    found |= chains.chosen(web, plain) if len(ways) > 1 else _undivided(web, plain[0][1])
    return patches.listener(found, rules.patches, Role.WAYPOINT, target.port)


def _undivided(web: Json | None, tcp: Json) -> Json:
    match = {"application_protocols": ["http/1.0", "http/1.1", "h2c"]}
    return {"filter_chains": [{"filter_chain_match": match, **web}, tcp] if web else [tcp]}


def any_port(name: str, workload: Workload, rules: Rules, said: telemetry.Said) -> Json:
    """The internal listener for a workload's ports that no service names. What it asks for is passed on as it came."""
    filters = guards(rules, 0)
    if workload.hbone:
        tunnel = authority(str(workload.addresses[0]), HBONE_PORT)
        states = [
            filter_state("envoy.network.upstream_subject_alt_names", Serving(workload, 0).identity),
            filter_state("envoy.network.transport_socket.original_dst_address", tunnel),
        ]
        kind = "extensions.filters.network.set_filter_state.v3.Config"
        filters.append(extension("tunnel", kind, on_new_connection=states))
    more: Json = {"tunneling_config": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"}} if workload.hbone else {}
    filters.append(
        extension(
            "envoy.filters.network.tcp_proxy",
            "extensions.filters.network.tcp_proxy.v3.TcpProxy",
            stat_prefix=name.replace(".", "_"),
            idle_timeout="3600s",
            cluster=TUNNELS if workload.hbone else DIRECT,
            **more,
            **said.tcp(),
        )
    )
    return {
        "name": name,
        "internal_listener": {},
        "listener_filters": [original_dst()],
        "filter_chains": [{"filters": filters}],
    }


def tcp_filters(name: str, chosen: tuple[Share, ...], rules: Rules, said: telemetry.Said, port: int) -> list[Json]:
    return [*guards(rules, port), tcp_proxy(name, chosen, said)]


def guards(rules: Rules, port: int) -> list[Json]:
    """What is asked of a connection before it is passed on. `port` 0: whichever the client asked for."""
    found: list[Json] = []
    for filter_name, config in rbac.network_rules(rules.authorizations, port):
        kind = "extensions.filters.network.rbac.v3.RBAC"
        found.append(extension(filter_name, kind, stat_prefix="tcp_", **config))
    found += limits.tcp_filters(rules.limits)
    return found


def tcp_proxy(name: str, chosen: tuple[Share, ...], said: telemetry.Said) -> Json:
    live = [share for share in chosen if share.weight] or list(chosen[:1])
    if len(live) == 1:
        where: Json = {"cluster": outbound(live[0].target)}
    else:
        weighted = [{"name": outbound(share.target), "weight": share.weight} for share in live]
        where = {"weighted_clusters": {"clusters": weighted}}
    return extension(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=name.replace(".", "_"),
        idle_timeout="3600s",
        **where,
        **said.tcp(),
    )


def route_table(
    name: str, each: Iterable[HttpRoute], rules: Rules, traffic_of: TrafficOf, target: Target, providers: Iterable[str]
) -> Json:
    """Without routes of its own everything goes to the service itself."""
    listed = list(each) or [HttpRoute("default", Forward((Share(target),)))]
    made = [route for one in listed for route in routes(one, traffic_of, target.port)]
    host: Json = {"name": name, "domains": ["*"], "routes": made, "include_request_attempt_count": True}
    per_filter = host_filters(name, rules, target.port, providers)
    if per_filter:
        host["typed_per_filter_config"] = per_filter
    if wanted := limits.actions(rules.limits):
        host["rate_limits"] = wanted
    found = {"name": name, "virtual_hosts": [host], "validate_clusters": False}
    return patches.table(found, rules.patches, Role.WAYPOINT, target.port)


def host_filters(name: str, rules: Rules, port: int, providers: Iterable[str]) -> Json:
    return {
        **rbac.http_filters(rules.authorizations, port, providers),
        **tokens.required(name, rules.jwt),
        **limits.per_route(rules.limits),
    }


def place(config: Json, name: str) -> Json:
    """An ECDS resource."""
    return {"name": name, "typed_config": config or typed(f"{_HTTP}.rbac.v3.RBAC")}
