"""The peer to beat: two Envoys as tunnel ends, CONNECT over HTTP/2 over mutual TLS 1.3, with Istio's windows.

Configuration only; `contenders.py` runs it. Envoy v3 API; JSON is YAML enough for it. No session resumption, as in
HBONE: a cold tunnel is the first one to a peer, for which there is no session yet.

As a program it is one end of such a pair, to try PEER with somebody whose figures are known:
`python -m bench.envoy certificates DIR`, then `client DIR ADDRESS` and `server DIR`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import certificates

TYPE = "type.googleapis.com/envoy.extensions."
WINDOWS = {"initial_stream_window_size": 4 << 20, "initial_connection_window_size": 16 << 20, "allow_connect": True}
UNLIMITED = {"thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}]}


def typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": TYPE + name, **fields}


def _tls(kind: str, certs: Path, name: str, validation: dict[str, Any], **fields: Any) -> dict[str, Any]:
    common = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(certs / f"{name}.pem")},
                "private_key": {"filename": str(certs / f"{name}.key")},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(certs / "ca.pem")}, **validation},
    }
    return {
        "name": "tls",
        "typed_config": typed(f"transport_sockets.tls.v3.{kind}", common_tls_context=common, **fields),
    }


def client_end(certs: Path, peer: str, peer_identity: str) -> str:
    """Captured connections (REDIRECT to 15001) go to `peer`:15008 with their original destination as authority."""
    san = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer_identity}}]}
    options = typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": WINDOWS})
    tcp_proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="out",
        cluster="hbone",
        idle_timeout="0s",
        tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
    )
    listener = {
        "name": "outbound",
        "address": _address("0.0.0.0", 15001),
        "listener_filters": [
            {"name": "original_dst", "typed_config": typed("filters.listener.original_dst.v3.OriginalDst")}
        ],
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp_proxy}]}],
    }
    cluster = {
        "name": "hbone",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": UNLIMITED,
        "load_assignment": {
            "cluster_name": "hbone",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(peer, 15008)}}]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "transport_socket": _tls("UpstreamTlsContext", certs, "client", san, max_session_keys=0),
        "upstream_bind_config": _marked(),
    }
    return _bootstrap("a", listener, cluster)


def server_end(certs: Path) -> str:
    """CONNECT on 15008 is authenticated and joined to its authority."""
    routes = [
        {
            "match": {"connect_matcher": {}},
            "route": {
                "cluster": "authority",
                "timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
            },
        }
    ]
    hcm = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options={**WINDOWS, "max_concurrent_streams": 2147483647},
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("filters.http.router.v3.Router", suppress_envoy_headers=True),
            }
        ],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    )
    listener = {
        "name": "inbound",
        "address": _address("0.0.0.0", 15008),
        "filter_chains": [
            {
                "transport_socket": _tls(
                    "DownstreamTlsContext",
                    certs,
                    "server",
                    {},
                    require_client_certificate=True,
                    disable_stateless_session_resumption=True,
                    disable_stateful_session_resumption=True,
                ),
                "filters": [{"name": "hcm", "typed_config": hcm}],
            }
        ],
    }
    cluster = {
        "name": "authority",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": UNLIMITED,
        "upstream_bind_config": _marked(),
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
    }
    return _bootstrap("b", listener, cluster)


def _address(ip: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def _marked() -> dict[str, Any]:
    """SO_MARK 0x539 (SOL_SOCKET 1, option 36), so that Envoy's own sockets pass the same rules as ours."""
    return {"socket_options": [{"level": 1, "name": 36, "int_value": 0x539, "state": "STATE_PREBIND"}]}


def _bootstrap(name: str, listener: dict[str, Any], cluster: dict[str, Any]) -> str:
    static = {"listeners": [listener], "clusters": [cluster]}
    return json.dumps({"node": {"id": name, "cluster": name}, "static_resources": static}, indent=1)


# As a program -------------------------------------------------------------------------------------------------------

NAMES = {name: f"spiffe://cluster.local/ns/bench/sa/{name}" for name in ("client", "server")}


def command(config: Path) -> list[str]:
    """One worker: an end has one core."""
    binary = Path(sys.executable).parent / "envoy"
    return [str(binary), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]


def main(what: str, directory: Path, peer: str = "") -> None:
    """Becomes Envoy. `peer`: the far end's address, perhaps with its port."""
    if what == "certificates":
        certificates.write(directory, NAMES)
        return
    text = server_end(directory) if what == "server" else client_end(directory, peer.split(":")[0], NAMES["server"])
    path = directory / f"{what}.json"
    path.write_text(text)
    os.execv(command(path)[0], command(path))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), *sys.argv[3:])
