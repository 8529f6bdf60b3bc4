"""Envoy clusters of its own bootstrap: one endpoint each. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final

Json = dict[str, Any]
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, address: Json, *, http2: bool = True) -> Json:
    """`address`: a pipe, or a socket address, whose name is resolved again and again."""
    host = address.get("socket_address", {}).get("address", "")
    found: Json = {
        "name": name,
        "type": "STRICT_DNS" if host and not is_address(host) else "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if http2:
        keepalive: Json = {"http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}}
        options = {"@type": f"type.googleapis.com/{_OPTIONS}", "explicit_http_config": keepalive}
        found["typed_extension_protocol_options"] = {_OPTIONS: options}
    return found


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
