"""Destinations to clusters and their endpoints. Pure.

A mesh endpoint is reached through a tunnel that must prove the endpoint's identity; one outside the mesh directly.
Active health checks do not pass internal listeners, so health is what the world says, and outlier detection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controlplane.l7.routes import Target
from controlplane.l7.traffic import Balance, Destination, Outlier, Pool, Resolution, Traffic
from controlplane.translate.envoy import far
from controlplane.translate.envoy.common import (
    ADS,
    HBONE_PORT,
    IDENTITY,
    LABELS,
    ORIGINAL_DST,
    ORIGINATE,
    Json,
    authority,
    extension,
    outbound,
    seconds,
    socket_address,
    without_empty,
)
from controlplane.translate.envoy.locality import Place, grouped
from controlplane.translate.envoy.secrets import upstream_tls
from controlplane.translate.envoy.tunnels import internal_upstream
from controlplane.translate.envoy.world import Serving, View
from mesh.model import AppProtocol, Service

_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_PASSED: Final = (ORIGINAL_DST, IDENTITY)
_MOST: Final = 4294967295
_TUNNELLED: Final[Json] = {"tunnel": "hbone"}
_POLICIES: Final = {
    Balance.LEAST_REQUEST: "LEAST_REQUEST",
    Balance.ROUND_ROBIN: "ROUND_ROBIN",
    Balance.RANDOM: "RANDOM",
    Balance.RING_HASH: "RING_HASH",
    Balance.MAGLEV: "MAGLEV",
    Balance.PASSTHROUGH: "CLUSTER_PROVIDED",
}


@dataclass(frozen=True, slots=True)
class Called:
    """A target with everything that decides how it is called. `service` None: the world does not know it."""

    target: Target
    service: Service | None
    destination: Destination
    # Endpoints are reached through the service's waypoint (from a gateway), whose routes and policies then count.
    by_waypoint: bool = False

    @property
    def traffic(self) -> Traffic:
        of, port = self.destination, self.target.port
        subset = of.subsets.get(self.target.subset)
        if subset and not self.by_waypoint:
            return subset.ports.get(port, subset.traffic)
        return of.ports.get(port, of.traffic)

    @property
    def protocol(self) -> AppProtocol:
        ports = self.service.ports if self.service else ()
        return next((p.protocol for p in ports if p.service_port == self.target.port), AppProtocol.UNKNOWN)

    @property
    def by_name(self) -> bool:
        return self.destination.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)


def service_labels(key: str) -> Json:
    """What metrics say of a service by `namespace/hostname`."""
    namespace, _, host = key.partition("/")
    return {"service": key, "host": host, "name": host.partition(".")[0], "namespace": namespace}


def cluster(called: Called, view: View) -> Json:
    name, traffic = outbound(called.target), called.traffic
    found: Json = {
        "name": name,
        "alt_stat_name": f"{name};",
        "connect_timeout": seconds(traffic.pool.connect_timeout_s or 10),
        "circuit_breakers": {"thresholds": [_breakers(traffic.pool)]},
        "typed_extension_protocol_options": {_OPTIONS: _protocol(called)},
        "metadata": {"filter_metadata": {LABELS: service_labels(called.target.service)}},
        "common_lb_config": {"healthy_panic_threshold": {"value": _panic(traffic.outlier)}},
        **_balance(traffic),
        **_kind(called, view),
        **_sockets(called),
    }
    if traffic.outlier:
        found["outlier_detection"] = _outlier(traffic.outlier)
    if traffic.locality and traffic.locality.distribute:
        found["common_lb_config"]["locality_weighted_lb_config"] = {}
    return found


def _kind(called: Called, view: View) -> Json:
    name = outbound(called.target)
    if has_endpoints(called):
        return {"type": "EDS", "eds_cluster_config": {"eds_config": ADS, "service_name": name}}
    if called.by_name:
        kind = "LOGICAL_DNS" if called.destination.resolution is Resolution.DNS_ROUND_ROBIN else "STRICT_DNS"
        return {
            "type": kind,
            "dns_lookup_family": "V4_PREFERRED",
            # A name that does not resolve must not hold up everything else.
            "wait_for_warm_on_init": False,
            "load_assignment": endpoints(called, view, Place()),
        }
    return {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}


def has_endpoints(called: Called) -> bool:
    """Whether there is an EDS resource for it."""
    by_address = called.traffic.balance is Balance.PASSTHROUGH or called.destination.resolution is Resolution.NONE
    return not by_address and (called.by_waypoint or not called.by_name)


def _balance(traffic: Traffic) -> Json:
    found: Json = {"lb_policy": _POLICIES[traffic.balance]}
    if traffic.warmup_s and traffic.balance in (Balance.LEAST_REQUEST, Balance.ROUND_ROBIN):
        key = f"{traffic.balance.value.lower()}_lb_config"
        found[key] = {"slow_start_config": {"slow_start_window": seconds(traffic.warmup_s)}}
    return found


def _breakers(pool: Pool) -> Json:
    found: Json = {
        "max_connections": pool.max_connections or _MOST,
        "max_pending_requests": pool.max_pending_requests or _MOST,
        "max_requests": pool.max_requests or _MOST,
        "max_retries": pool.max_retries or _MOST,
        "track_remaining": True,
    }
    if pool.retry_budget_percent is not None:
        budget: Json = {"budget_percent": {"value": pool.retry_budget_percent}}
        if pool.retry_budget_minimum is not None:
            budget["min_retry_concurrency"] = pool.retry_budget_minimum
        found["retry_budget"] = budget
    return found


def _protocol(called: Called) -> Json:
    pool = called.traffic.pool
    common = without_empty(
        {
            "idle_timeout": seconds(pool.idle_timeout_s) if pool.idle_timeout_s else None,
            "max_requests_per_connection": pool.max_requests_per_connection,
            "max_connection_duration": seconds(pool.max_connection_duration_s)
            if pool.max_connection_duration_s
            else None,
        }
    )
    http2 = without_empty({"max_concurrent_streams": pool.max_concurrent_streams})
    two = pool.http2 if pool.http2 is not None else called.protocol in (AppProtocol.HTTP2, AppProtocol.GRPC)
    found: Json = {"@type": f"type.googleapis.com/{_OPTIONS}"}
    if common:
        found["common_http_protocol_options"] = common
    if pool.use_client_protocol:
        found["use_downstream_protocol_config"] = {"http_protocol_options": {}, "http2_protocol_options": http2}
    elif two:
        found["explicit_http_config"] = {"http2_protocol_options": http2}
    else:
        found["explicit_http_config"] = {"http_protocol_options": {}}
    return found


def _panic(outlier: Outlier | None) -> int:
    return outlier.min_health_percent if outlier else 0


def _outlier(outlier: Outlier) -> Json:
    found = without_empty(
        {
            "consecutive_5xx": outlier.consecutive_5xx,
            "consecutive_gateway_failure": outlier.consecutive_gateway,
            "consecutive_local_origin_failure": outlier.consecutive_local,
            "interval": seconds(outlier.interval_s) if outlier.interval_s else None,
            "base_ejection_time": seconds(outlier.ejection_s) if outlier.ejection_s else None,
            "max_ejection_percent": outlier.max_ejection_percent,
        }
    )
    found["enforcing_success_rate"] = 0
    found["split_external_local_origin_errors"] = outlier.split_local
    for key, number in (
        ("enforcing_consecutive_5xx", outlier.consecutive_5xx),
        ("enforcing_consecutive_gateway_failure", outlier.consecutive_gateway),
    ):
        if number is not None:
            found[key] = 100 if number else 0
    if outlier.ejection_s and outlier.ejection_s > 300:
        found["max_ejection_time"] = seconds(outlier.ejection_s)
    return found


def _sockets(called: Called) -> Json:
    """Through a tunnel or not is the endpoint's to say; TLS to the application is inside."""
    traffic = called.traffic
    inner = upstream_tls(traffic.tls) if traffic.tls and not called.by_waypoint else None
    if traffic.proxy_protocol:
        raw = extension("envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer")
        inner = extension(
            "envoy.transport_sockets.upstream_proxy_protocol",
            "extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
            config={"version": "V2"},
            transport_socket=inner or raw,
        )
    found: Json = {}
    if inner:
        found["transport_socket"] = inner
    if called.by_name or called.destination.resolution is Resolution.NONE:
        return found
    tunnel = {"name": "tunnel", "match": _TUNNELLED, "transport_socket": internal_upstream(inner, _PASSED)}
    return {**found, "transport_socket_matches": [tunnel]}


def endpoints(called: Called, view: View, here: Place) -> Json:
    """A ClusterLoadAssignment. `here`: where the proxy is."""
    chosen = [each for each in _serving(called, view) if not view.is_far(each.workload) or _hop(called, view, each)]
    traffic = called.traffic
    groups = grouped(chosen, here, traffic.locality if traffic.outlier else None, traffic.locality)
    listed: list[Json] = []
    for group in groups:
        found: Json = {"lb_endpoints": [_endpoint(called, each, view) for each in group.members]}
        if any(group.place):
            region, zone, subzone = group.place
            found["locality"] = without_empty({"region": region, "zone": zone, "sub_zone": subzone})
        if group.priority:
            found["priority"] = group.priority
        if group.weight:
            found["load_balancing_weight"] = group.weight
        listed.append(found)
    return {"cluster_name": outbound(called.target), "endpoints": listed}


def _serving(called: Called, view: View) -> Iterable[Serving]:
    target = called.target
    if called.by_waypoint and called.service and called.service.waypoint:
        return view.waypoints(called.service.waypoint)
    if called.destination.subsets and target.subset and target.subset not in called.destination.subsets:
        return ()
    subset = called.destination.subsets.get(target.subset)
    if target.subset and not subset:
        return ()
    return view.serving(target.service, target.port, subset.labels if subset else None)


def _hop(called: Called, view: View, each: Serving) -> far.Hop | None:
    """A waypoint of another network is nobody's way: what is behind it is reached through that network's gateway."""
    return None if called.by_waypoint or called.by_name else far.hop(view, called.service, called.target, each)


def _endpoint(called: Called, each: Serving, view: View) -> Json:
    workload = each.workload
    found: Json = {"endpoint": {}, "metadata": {"filter_metadata": {LABELS: _labels(each)}}}
    metadata = found["metadata"]["filter_metadata"]
    host = str(workload.addresses[0]) if workload.addresses else workload.hostname
    if view.is_far(workload) and (hop := _hop(called, view, each)):
        found["endpoint"] = far.endpoint(hop, workload.uid)
        metadata[IDENTITY] = far.about(hop)
        metadata["envoy.transport_socket_match"] = _TUNNELLED
    elif called.by_waypoint or workload.hbone:
        wanted = _addressed(called, each, host)
        found["endpoint"]["address"] = {
            "envoy_internal_address": {"server_listener_name": ORIGINATE, "endpoint_id": f"{wanted}@{host}"}
        }
        metadata[ORIGINAL_DST] = {"local": wanted, "waypoint": authority(host, _tunnel_port(called))}
        metadata[IDENTITY] = {"san": each.identity}
        metadata["envoy.transport_socket_match"] = _TUNNELLED
    else:
        found["endpoint"]["address"] = socket_address(host, each.port)
    if workload.capacity is not None:
        found["load_balancing_weight"] = max(workload.capacity, 1)
    if not workload.healthy and not (called.service and _allows_unhealthy(called.service)):
        found["health_status"] = "UNHEALTHY"
    return found


def _addressed(called: Called, each: Serving, host: str) -> str:
    """What the tunnel's other end is asked for: the workload itself, or at a waypoint the service's address."""
    if called.by_waypoint and called.service and called.service.vips:
        vip = called.service.vips[0].prefix.network_address
        return authority(str(vip), called.target.port)
    return authority(host, each.port)


def _tunnel_port(called: Called) -> int:
    if called.by_waypoint and called.service and called.service.waypoint:
        return called.service.waypoint.port
    return HBONE_PORT


def _allows_unhealthy(service: Service) -> bool:
    return bool(service.load_balancing and service.load_balancing.allow_unhealthy)


def _labels(each: Serving) -> dict[str, str]:
    """What metrics and logs say of an endpoint."""
    workload = each.workload
    return {
        "workload": workload.workload_name,
        "namespace": workload.namespace,
        "app": workload.labels.get("app", workload.canonical_name),
        "version": workload.labels.get("version", workload.canonical_revision),
        "service": workload.canonical_name,
        "revision": workload.canonical_revision,
        "cluster": workload.cluster_id,
        "principal": each.identity if workload.hbone else "",
    }
