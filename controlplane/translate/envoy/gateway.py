"""A gateway's servers: listeners by port, TLS by server name, route tables. Pure.

Servers that share a port are chains of one listener: told apart by SNI, or as virtual hosts of one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final
from urllib.parse import urlsplit

from controlplane.l7.model import Role, Rules, Server, ServerTlsMode, VirtualHost
from controlplane.l7.routes import L4Route, Target
from controlplane.translate.envoy import listeners, patches, telemetry
from controlplane.translate.envoy.common import HASHABLE, OWN, SOURCE, Json, extension, filter_state, unique
from controlplane.translate.envoy.routes import TrafficOf, routes, targets_of
from controlplane.translate.envoy.secrets import names_of, server_tls

Ports = dict[str, tuple[Server, ...]]
_WEB: Final = ["h2", "http/1.1"]
_INSPECTOR: Final = extension(
    "envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector"
)


def by_port(servers: Iterable[Server]) -> Ports:
    """By the listener's name; order within a port is the model's."""

    def key(server: Server) -> tuple[str, int]:
        return str(server.bind or ""), server.port

    return {f"gateway|{bind}|{port}": tuple(all_) for (bind, port), all_ in groupby(sorted(servers, key=key), key)}


def listener(name: str, servers: tuple[Server, ...], rules: Rules, said: telemetry.Said) -> Json:
    first = servers[0]
    address: Json = {"address": str(first.bind or "::"), "port_value": first.port}
    if not first.bind:
        address["ipv4_compat"] = True
    chains: list[Json] = []
    plain = [server for server in servers if not server.tls]
    if any(server.http for server in plain):
        chains.append({"filters": [_manager(name, said)]})
    for server in plain:
        if not server.http:
            chains += _l4_chains(server, rules, said)
    for server in servers:
        if server.tls:
            chains += _tls_chains(name, server, rules, said)
    found: Json = {"name": name, "address": {"socket_address": address}, "filter_chains": chains}
    if any(server.tls for server in servers):
        found["listener_filters"] = [_INSPECTOR]
    return patches.listener(found, rules.patches, Role.GATEWAY, first.port)


def _tls_chains(name: str, server: Server, rules: Rules, said: telemetry.Said) -> list[Json]:
    assert server.tls
    if server.tls.mode is ServerTlsMode.PASSTHROUGH:
        return _l4_chains(server, rules, said)
    names = [host for host in server.hosts if host != "*"]
    match: Json = {"filter_chain_match": {"server_names": names}} if names and len(names) == len(server.hosts) else {}
    if server.http:
        socket = server_tls(server.tls, _WEB)
        return [{**match, "transport_socket": socket, "filters": [_manager(_table(name, server), said)]}]
    socket = server_tls(server.tls, [])
    return [{**match, **chain, "transport_socket": socket} for chain in _l4_chains(server, rules, said, by_sni=False)]


def _l4_chains(server: Server, rules: Rules, said: telemetry.Said, by_sni: bool = True) -> list[Json]:
    found: list[Json] = []
    for route in server.l4:
        for names in _sni(route, server) if by_sni else [()]:
            match: Json = {"filter_chain_match": {"server_names": list(names)}} if names else {}
            filters = listeners.tcp_filters(f"{server.name}|{route.name}", route.shares, rules, said, server.port)
            chain = {**match, "filters": filters}
            if match not in [{k: v for k, v in one.items() if k == "filter_chain_match"} for one in found]:
                found.append(chain)
    return found


def _sni(route: L4Route, server: Server) -> list[tuple[str, ...]]:
    """Server names as they are matched; none is any."""
    if not server.tls:
        return [()]
    listed = [match.sni for match in route.matches if match.port in (0, server.port)] or [server.hosts]
    return [tuple(name for name in names if name != "*") for names in listed]


def _manager(table: str, said: telemetry.Said) -> Json:
    who = extension(
        "identity",
        "extensions.filters.http.set_filter_state.v3.Config",
        on_request_headers=[
            _optional(filter_state(SOURCE, "%DOWNSTREAM_PEER_URI_SAN%", HASHABLE)),
            _optional(filter_state(OWN, "%DOWNSTREAM_LOCAL_URI_SAN%", HASHABLE)),
        ],
    )
    return listeners.manager(
        table,
        said,
        who,
        use_remote_address=True,
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"subject": True, "uri": True, "dns": True},
        http2_protocol_options={"max_concurrent_streams": 100},
        common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST", "idle_timeout": "3600s"},
        request_headers_timeout="30s",
    )


def _optional(state: Json) -> Json:
    """Nothing is set when there is no certificate."""
    state["format_string"]["omit_empty_values"] = True
    return {**state, "skip_if_empty": True}


def _table(name: str, server: Server) -> str:
    return f"{name}|{server.name}"


def tables(
    name: str, servers: tuple[Server, ...], rules: Rules, traffic_of: TrafficOf, providers: Iterable[str]
) -> dict[str, Callable[[], Json]]:
    """How each route table of this listener is made, by its name."""
    used = tuple(providers)
    found: dict[str, Callable[[], Json]] = {}
    plain = tuple(server for server in servers if server.http and not server.tls)
    if plain:
        found[name] = lambda: _routes(name, plain, rules, traffic_of, used)
    for server in servers:
        if server.http and server.tls and server.tls.mode is not ServerTlsMode.PASSTHROUGH:
            table = _table(name, server)
            found[table] = lambda table=table, server=server: _routes(table, (server,), rules, traffic_of, used)  # type: ignore[misc]
    return found


def _routes(
    table: str, servers: tuple[Server, ...], rules: Rules, traffic_of: TrafficOf, providers: tuple[str, ...]
) -> Json:
    hosts: list[Json] = []
    taken: set[str] = set()
    for server in servers:
        listed = server.virtual_hosts
        if server.redirect_to_https and not listed:
            listed = (VirtualHost(f"{server.name}|redirect", server.hosts, ()),)
        for each in listed:
            domains = [name for name in unique(each.domains) if name not in taken]
            taken.update(domains)
            if domains:
                hosts.append(_virtual_host(table, server, each, domains, rules, traffic_of, providers))
    found: Json = {
        "name": table,
        "virtual_hosts": hosts,
        "ignore_port_in_host_matching": True,
        "validate_clusters": False,
    }
    return patches.table(found, rules.patches, Role.GATEWAY, servers[0].port)


def _virtual_host(
    table: str,
    server: Server,
    each: VirtualHost,
    domains: list[str],
    rules: Rules,
    traffic_of: TrafficOf,
    providers: tuple[str, ...],
) -> Json:
    made = [route for one in each.routes for route in routes(one, traffic_of, server.port)]
    found: Json = {"name": each.name, "domains": domains, "routes": made, "include_request_attempt_count": True}
    if server.redirect_to_https:
        found["require_tls"] = "ALL"
    if filters := listeners.host_filters(table, rules, server.port, providers):
        found["typed_per_filter_config"] = filters
    return found


def targets(servers: Iterable[Server]) -> list[Target]:
    found: list[Target] = []
    for server in servers:
        for host in server.virtual_hosts:
            found += targets_of(host.routes)
        found += [share.target for route in server.l4 for share in route.shares]
    return found


def secret_names(servers: Iterable[Server]) -> set[str]:
    found: set[str] = set()
    for server in servers:
        if server.tls:
            for credential in (*server.tls.credentials, server.tls.client_ca):
                found |= names_of(credential)
    return found


def jwks(uri: str) -> Json:
    """The cluster that keys of a JWKS URI are fetched from."""
    parts = urlsplit(uri)
    host, secure = parts.hostname or "", parts.scheme == "https"
    name = f"jwks|{parts.scheme}|{parts.netloc}"
    address = {"socket_address": {"address": host, "port_value": parts.port or (443 if secure else 80)}}
    found: Json = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if secure:
        roots = {"trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"}}
        names = [{"san_type": "DNS", "matcher": {"exact": host}}]
        found["transport_socket"] = extension(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=host,
            common_tls_context={"validation_context": {**roots, "match_typed_subject_alt_names": names}},
        )
    return found
