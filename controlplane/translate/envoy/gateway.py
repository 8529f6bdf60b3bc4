"""A gateway's servers: listeners by port, TLS by server name, route tables. Pure.

Servers that share a port are chains of one listener: told apart by SNI, or as virtual hosts of one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, product
from typing import Final
from urllib.parse import urlsplit

from controlplane.l7.model import Role, Rules, Server, ServerTlsMode, VirtualHost
from controlplane.l7.routes import L4Match, Share, Target
from controlplane.translate.envoy import chains, limits, listeners, patches, telemetry
from controlplane.translate.envoy.common import HASHABLE, OWN, SOURCE, Json, extension, filter_state, unique
from controlplane.translate.envoy.routes import TrafficOf, routes, targets_of
from controlplane.translate.envoy.secrets import names_of, server_tls
from controlplane.translate.hosts import intersection

Ports = dict[str, tuple[Server, ...]]
_WEB: Final = ["h2", "http/1.1"]


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
    found: list[Json] = []
    plain = [server for server in servers if not server.tls]
    if any(server.http for server in plain):
        found.append({"filters": [_manager(name, said)]})
    for server in plain:
        if not server.http:
            found += _l4_chains(server, rules, said)
    for server in servers:
        if server.tls:
            found += _tls_chains(name, server, rules, said)
    if not found:
        # Envoy refuses a listener without chains, and would go on with what it had: a route that was taken away.
        found = [{"filters": [listeners.tcp_proxy(name, (Share(Target("")),), said)]}]
    made: Json = {"name": name, "address": {"socket_address": address}, "filter_chains": list(_distinct(found))}
    if any(server.tls for server in servers):
        made["listener_filters"] = [listeners.INSPECTOR]
    return patches.listener(made, rules.patches, Role.GATEWAY, first.port)


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
    return [{**chain, "transport_socket": socket} for chain in _l4_chains(server, rules, said)]


def _l4_chains(server: Server, rules: Rules, said: telemetry.Said) -> list[Json]:
    found: list[Json] = []
    for route in server.l4:
        filters = listeners.tcp_filters(f"{server.name}|{route.name}", route.shares, rules, said, server.port)
        for match in route.matches or (L4Match(),):
            names = _names(match, server)
            # Nobody comes from a namespace here: who calls a gateway is no workload.
            if match.port in (0, server.port) and not match.source_namespace and names != []:
                found += [{**one, "filters": filters} for one in _by_address(match, names)]
    return found


def _names(match: L4Match, server: Server) -> list[str] | None:
    """Server names as they are matched, of those that the server has; None is any."""
    if not server.tls:
        return [] if match.sni else None
    if server.tls.mode is not ServerTlsMode.PASSTHROUGH or not match.sni:
        return None if "*" in server.hosts else list(server.hosts)
    both = (intersection(one, other) for one in match.sni for other in server.hosts)
    found = unique(name for name in both if name)
    return None if "*" in found else found


def _by_address(match: L4Match, names: list[str] | None) -> Iterator[Json]:
    """Each network by itself, so that two chains with one in common differ in the rest."""
    for network, source in product(match.networks or (None,), match.sources or (None,)):
        found: Json = {"server_names": names} if names else {}
        found |= {"prefix_ranges": [chains.cidr(network)]} if network else {}
        found |= {"source_prefix_ranges": [chains.cidr(source)]} if source else {}
        yield {"filter_chain_match": found} if found else {}


def _distinct(listed: Iterable[Json]) -> Iterator[Json]:
    """Of chains for the same the first is kept: Envoy would refuse the whole listener for the second."""
    taken: set[tuple[str, str]] = set()
    for chain in listed:
        match = chain.get("filter_chain_match", {})
        where = str({**match, "server_names": ()})
        names = match.get("server_names", [""])
        free = [name for name in names if (name, where) not in taken]
        taken.update((name, where) for name in free)
        if free == names:
            yield chain
        elif free:
            yield {**chain, "filter_chain_match": {**match, "server_names": free}}


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
    if wanted := limits.actions(rules.limits):
        found["rate_limits"] = wanted
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
