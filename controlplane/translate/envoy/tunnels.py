"""HBONE on both sides of a proxy: the listener that ends tunnels, the one that begins them, and their TLS. Pure.

A CONNECT's authority is the name of a cluster, which leads to the internal listener of that service and port: adding a
service touches nothing that others have. Each endpoint brings the identity that its tunnel must prove.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.l7.model import Proxy, Role
from controlplane.translate.envoy.common import (
    ADS,
    CONNECT,
    HASHABLE,
    HBONE_PORT,
    IDENTITY,
    IDENTITY_CLUSTER,
    ORIGINAL_DST,
    ORIGINATE,
    OWN,
    SOURCE,
    TERMINATE,
    TUNNELS,
    Json,
    extension,
    filter_state,
    to_internal,
)
from controlplane.translate.envoy.telemetry import baggage, source_states

DIRECT: Final = "direct"
# No other cluster of ours is called so: theirs have a `|`, or no port.
AUTHORITY: Final = r"(\[[0-9a-f:.]+\]|[0-9A-Za-z._-]+):[0-9]+"
_CONNECTED: Final[Json] = {"timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}
_HCM: Final = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER: Final = extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
_WINDOWS: Final[Json] = {"initial_stream_window_size": 4 << 20, "initial_connection_window_size": 16 << 20}
_KEEPALIVE: Final[Json] = {"interval": "10s", "timeout": "20s"}
_FROM_RUNNER: Final[Json] = {
    "api_config_source": {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": IDENTITY_CLUSTER}}],
        "set_node_on_first_message_only": True,
    },
    "resource_api_version": "V3",
    "initial_fetch_timeout": "0s",
}


def tls_context(names: Iterable[Json] = ()) -> Json:
    """Our SVID, and peers of the trust domains that we know: one bundle each, so that none can vouch for another."""
    matchers = list(names)
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [{"name": "identity", "sds_config": _FROM_RUNNER}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": matchers} if matchers else {},
            "validation_context_sds_secret_config": {"name": "trust", "sds_config": _FROM_RUNNER},
        },
    }


def terminate(port: int = HBONE_PORT) -> Json:
    """The listener at the proxy's own address."""
    state = extension(
        "tunnel",
        "extensions.filters.http.set_filter_state.v3.Config",
        on_request_headers=[
            filter_state(f"{ORIGINAL_DST}.local_ip", "%REQ(:AUTHORITY)%"),
            filter_state(f"{ORIGINAL_DST}.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
            filter_state(SOURCE, "%DOWNSTREAM_PEER_URI_SAN%", HASHABLE),
            filter_state(OWN, "%DOWNSTREAM_LOCAL_URI_SAN%", HASHABLE),
            *source_states(),
        ],
    )
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        _HCM,
        stat_prefix=TERMINATE,
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        generate_request_id=False,
        http2_protocol_options={
            **_WINDOWS,
            "allow_connect": True,
            "max_concurrent_streams": 1000,
            "connection_keepalive": _KEEPALIVE,
        },
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        rds={"config_source": ADS, "route_config_name": CONNECT},
        http_filters=[state, _ROUTER],
    )
    tls = extension(
        "tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=tls_context(),
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return {
        "name": TERMINATE,
        "address": {"socket_address": {"address": "::", "port_value": port, "ipv4_compat": True}},
        "filter_chains": [{"transport_socket": tls, "filters": [manager]}],
    }


def connect_table() -> Json:
    """Whoever is asked for is the name of a cluster: one more service is one more cluster, and no table of all of them.

    Peers choose what is asked for, so only what an address and a port can look like is a name here.
    """
    to_it = {
        "match": {
            "connect_matcher": {},
            "headers": [{"name": ":authority", "string_match": {"safe_regex": {"regex": AUTHORITY}}}],
        },
        "route": {"cluster_header": ":authority", "cluster_not_found_response_code": "NOT_FOUND", **_CONNECTED},
    }
    return {"name": CONNECT, "virtual_hosts": [{"name": "asked", "domains": ["*"], "routes": [to_it]}]}


def connect_host(domain: str, cluster: str) -> Json:
    """A virtual host for what no cluster can be called after (`10.0.0.1:*`, `*.example.com:80`)."""
    route = {"match": {"connect_matcher": {}}, "route": {"cluster": cluster, **_CONNECTED}}
    return {"name": domain, "domains": [domain], "routes": [route]}


def internal_cluster(listener: str, name: str) -> Json:
    """Leads to an internal listener."""
    address = {"envoy_internal_address": {"server_listener_name": listener}}
    return {
        "name": name,
        "alt_stat_name": f"{to_internal(listener)};",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "transport_socket": internal_upstream(),
    }


def internal_upstream(inner: Json | None = None, passed: Iterable[str] = ()) -> Json:
    """`passed`: metadata of the endpoint that the internal listener shall see."""
    raw = extension("envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    return extension(
        "envoy.transport_sockets.internal_upstream",
        "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        transport_socket=inner or raw,
        passthrough_metadata=[{"kind": {"host": {}}, "name": name} for name in passed],
    )


def originate(proxy: Proxy) -> Json:
    """The internal listener that wraps what it gets into a CONNECT to its original destination."""
    expected = filter_state("envoy.network.upstream_subject_alt_names", f"%DYNAMIC_METADATA({IDENTITY}:san)%")
    # Rendered as "-" when missing, which would then be the name expected.
    expected["format_string"]["omit_empty_values"] = True
    found = wrapping(
        ORIGINATE, TUNNELS, [{**expected, "skip_if_empty": True}], connect(proxy, "%DOWNSTREAM_LOCAL_ADDRESS%")
    )
    return {**found, "use_original_dst": False, "listener_filters": [original_dst()]}


def connect(proxy: Proxy, asked: str) -> Json:
    """What a CONNECT says. A waypoint has nothing to say of itself: it speaks for who came to it."""
    said = [{"header": {"key": "baggage", "value": baggage(proxy)}}] if proxy.role is Role.GATEWAY else []
    return {"hostname": asked, **({"headers_to_add": said} if said else {})}


def wrapping(name: str, cluster: str, states: list[Json], tunneling: Json) -> Json:
    """An internal listener that wraps what it gets into a CONNECT. `states`: what is set before, for the cluster."""
    kind = "extensions.filters.network.set_filter_state.v3.Config"
    tcp = extension(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=name,
        cluster=cluster,
        idle_timeout="0s",
        tunneling_config=tunneling,
    )
    filters = [extension("names", kind, on_new_connection=states), tcp]
    return {"name": name, "internal_listener": {}, "filter_chains": [{"filters": filters}]}


def direct() -> Json:
    """The cluster of connections that leave the mesh for where their client wanted to go."""
    return {
        "name": DIRECT,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": unlimited(),
    }


def original_dst() -> Json:
    return extension(ORIGINAL_DST, "extensions.filters.listener.original_dst.v3.OriginalDst")


def tunnels() -> Json:
    """The cluster of all tunnels that we begin; an endpoint's metadata says where its tunnel is."""
    return {
        "name": TUNNELS,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "cleanup_interval": "60s",
        "original_dst_lb_config": {"metadata_key": {"key": ORIGINAL_DST, "path": [{"key": "waypoint"}]}},
        "circuit_breakers": unlimited(),
        "typed_extension_protocol_options": http2(),
        "transport_socket": upstream_tls(),
    }


def http2() -> Json:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {**_WINDOWS, "allow_connect": True, "connection_keepalive": _KEEPALIVE}
    explicit = {"explicit_http_config": {"http2_protocol_options": options}}
    return {name: {"@type": f"type.googleapis.com/{name}", **explicit}}


def upstream_tls() -> Json:
    """Of a tunnel that we begin; whose it must be, filter state says."""
    kind = "extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    return extension("tls", kind, common_tls_context=tls_context(), max_session_keys=0)


def unlimited() -> Json:
    most = 4294967295
    threshold = {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most}
    return {"thresholds": [threshold]}
