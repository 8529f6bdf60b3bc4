"""What Envoy is told at its start: who it is, where its configuration and its identity come from. Pure.

Everything else comes from the control plane. Configuration by delta ADS over TLS with the proxy's token; certificates
by SDS from the process beside it, over a socket that only we may open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from waypoint import sinks
from waypoint.clusters import cluster, is_address, socket_address
from waypoint.settings import Settings

Json = dict[str, Any]
_ADS: Final[Json] = {"ads": {}, "resource_api_version": "V3"}
_HEAP: Final = "fixed_heap"
# Everything else is counted only to be looked at with the admin interface's own filter.
_STATS: Final = (
    "istio",
    "listener_manager",
    "cluster_manager",
    "control_plane",
    "server.",
    "rbac",
    "ext_authz",
    "jwt_authn",
)
_STATS_MORE: Final = (
    "circuit_breakers",
    "outlier_detection",
    "upstream_rq_retry",
    "ratelimit",
    "rate_limit",
    "fault",
    "ssl.",
    "overload.envoy",
    "hbone.downstream_rq_overload_close",
    "global_cx_overflow",
)


def bootstrap(settings: Settings, token: str, admin: Path, identity: Path, heap: int) -> Json:
    """`admin`, `identity`: paths of Unix sockets. `heap`: bytes."""
    return {
        "node": {
            "id": f"{settings.proxy}@{settings.identity}",
            "cluster": settings.proxy,
            "locality": {
                "region": settings.place["REGION"],
                "zone": settings.place["ZONE"],
                "sub_zone": settings.place["SUBZONE"],
            },
            "metadata": {key: value for key, value in settings.place.items() if value},
        },
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
                },
            }
        ],
        "admin": {
            "address": {"pipe": {"path": str(admin), "mode": 0o600}},
            "ignore_global_conn_limit": True,  # who looks why it refuses must get in
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": _STREAM,
                        "initial_metadata": [{"key": "authorization", "value": f"Bearer {token}"}],
                    }
                ],
            },
            "cds_config": _ADS,
            "lds_config": _ADS,
        },
        "static_resources": {
            "clusters": [_controlplane(settings), _identity(identity), *sinks.clusters_of(settings.sinks)]
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _counted(settings)}}},
        "stats_sinks": sinks.sinks_of(settings.sinks, settings.proxy),
        "stats_flush_interval": f"{settings.flush_s}s",
        "overload_manager": _overload(settings.max_connections, heap),
    }


def _counted(settings: Settings) -> list[Json]:
    return sinks.patterns(settings.sinks) or [{"contains": text} for text in (*_STATS, *_STATS_MORE)]


_STREAM: Final[Json] = {
    "cluster_name": "controlplane",
    "max_receive_message_length": 64 << 20,
    # By itself Envoy would wait for up to half a minute after the control plane is back.
    "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "2s"}},
}
_RUNTIME: Final[Json] = {
    "tracing.zipkin.flush_interval_ms": 500,
    "tracing.zipkin.min_flush_spans": 10,
    "tracing.opentelemetry.flush_interval_ms": 500,
    "tracing.opentelemetry.min_flush_spans": 10,
}


def _overload(connections: int, heap: int) -> Json:
    """Before memory ends: what is freed is given back, then new requests are answered 503; what is open goes on."""
    actions = {"shrink_heap": 0.9, "stop_accepting_requests": 0.98}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            _monitor(
                "global_downstream_max_connections",
                "downstream_connections.v3.DownstreamConnectionsConfig",
                {"max_active_downstream_connections": connections},
            ),
            _monitor(_HEAP, "fixed_heap.v3.FixedHeapConfig", {"max_heap_size_bytes": heap}),
        ],
        "actions": [
            {
                "name": f"envoy.overload_actions.{name}",
                "triggers": [{"name": f"envoy.resource_monitors.{_HEAP}", "threshold": {"value": share}}],
            }
            for name, share in actions.items()
        ],
    }


def _monitor(name: str, kind: str, config: Json) -> Json:
    typed = {"@type": f"type.googleapis.com/envoy.extensions.resource_monitors.{kind}", **config}
    return {"name": f"envoy.resource_monitors.{name}", "typed_config": typed}


def _controlplane(settings: Settings) -> Json:
    host, port = settings.server
    kind = "IP_ADDRESS" if is_address(host) else "DNS"
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "validation_context": {
                "trusted_ca": {"filename": str(settings.roots)},
                "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}],
            },
        },
        **({} if is_address(host) else {"sni": host}),
    }
    return {
        **cluster("controlplane", socket_address(host, port)),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }


def _identity(path: Path) -> Json:
    return cluster("identity", {"pipe": {"path": str(path)}})
