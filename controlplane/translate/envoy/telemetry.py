"""Istio's standard metrics from Envoy's stats logger, access logs, traces. Pure.

Tags are bounded values only: never a raw host or path. The names come out as `envoy_istio_…`; the waypoint's own
`/metrics` takes the prefix away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from controlplane.l7.model import Proxy, Role
from controlplane.l7.telemetry import AccessLog, MetricOverride, Tag, Telemetry, Tracer, TracerKind, Tracing
from controlplane.translate.envoy.common import (
    BAGGAGE,
    LABELS,
    OWN,
    SOURCE,
    Json,
    extension,
    filter_state,
    outbound,
    typed,
)

# Filter state: what the source's tunnel said of it; by the part of its `baggage` header.
SOURCE_LABELS: Final = {
    "nodemesh.src.workload": "k8s.(?:deployment|pod|job|cronjob).name",
    "nodemesh.src.namespace": "k8s.namespace.name",
    "nodemesh.src.app": "service.name",
    "nodemesh.src.version": "service.version",
    "nodemesh.src.cluster": "k8s.cluster.name",
}
# Of Envoy's own process, set by `waypoint/`: read once, when a configuration is loaded.
PRINCIPAL: Final = "NODEMESH_PRINCIPAL"
CLUSTER_ID: Final = "CLUSTER_ID"
_CLUSTER_NAME: Final = "%UPSTREAM_METADATA({}:{})%"
_OF_CLUSTER: Final = "%CLUSTER_METADATA({}:{})%"
_TYPED_STRUCT: Final = "type.googleapis.com/xds.type.v3.TypedStruct"
_STATS_LOGGER: Final = "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config"
_METRICS: Final = {
    "REQUEST_COUNT": "requests_total",
    "REQUEST_DURATION": "request_duration_milliseconds",
    "REQUEST_SIZE": "request_bytes",
    "RESPONSE_SIZE": "response_bytes",
    "TCP_OPENED_CONNECTIONS": "tcp_connections_opened_total",
    "TCP_CLOSED_CONNECTIONS": "tcp_connections_closed_total",
    "TCP_SENT_BYTES": "tcp_sent_bytes_total",
    "TCP_RECEIVED_BYTES": "tcp_received_bytes_total",
}
_FIELDS: Final = {
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "authority": "%REQ(:AUTHORITY)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "route_name": "%ROUTE_NAME%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "source_principal": f"%FILTER_STATE({SOURCE}:PLAIN)%",
    "source_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "destination_workload": _CLUSTER_NAME.format(LABELS, "workload"),
    "destination_version": _CLUSTER_NAME.format(LABELS, "version"),
    "trace_id": "%TRACE_ID%",
}


def baggage(proxy: Proxy) -> str:
    """What a gateway says of itself to the other end of its tunnels, as a node's tunnel does for a pod."""
    found = {
        "k8s.cluster.name": f"%ENVIRONMENT({CLUSTER_ID})%",
        "k8s.namespace.name": proxy.namespace,
        "k8s.deployment.name": proxy.name,
        "service.name": proxy.name,
        "service.version": "latest",
    }
    return ",".join(f"{key}={value}" for key, value in found.items())


def source_states() -> list[Json]:
    """For the listener that ends tunnels."""
    found = []
    for key, name in SOURCE_LABELS.items():
        pattern = f"(?:^|.*,){name}=([^,]*).*"
        text = f"%CEL(re.extract(request.headers['baggage'], '{pattern}', r'\\1'))%"
        found.append(filter_state(key, text, "envoy.hashable_string"))
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """`service`: key of the one that is addressed; "" at a gateway, where the route says it. `proxy`: who tells."""

    telemetry: Telemetry
    service: str
    proxy: Proxy
    tracer: Tracer | None = None
    protocol: str = "http"

    def manager(self) -> Json:
        """Fields of a connection manager."""
        found: Json = {"access_log": [*map(_log, self.telemetry.logs), *self._metrics(http=True)]}
        tracing = self.telemetry.tracing
        if tracing and self.tracer:
            found["tracing"] = _tracing(tracing, self.tracer, self.proxy.role.value)
        return found

    def tcp(self) -> Json:
        """Fields of a tcp_proxy."""
        logs = [*map(_log, self.telemetry.logs), *self._metrics(http=False)]
        return {"access_log": logs, "access_log_options": {"flush_access_log_on_connected": True}}

    def _metrics(self, http: bool) -> list[Json]:
        if not self.telemetry.metrics:
            return []
        if http:
            counters: list[tuple[str, str | None]] = [("REQUEST_COUNT", None)]
            sizes = [
                ("REQUEST_DURATION", "Milliseconds", "%DURATION%"),
                ("REQUEST_SIZE", "Bytes", "%BYTES_RECEIVED%"),
                ("RESPONSE_SIZE", "Bytes", "%BYTES_SENT%"),
            ]
            return [self._logger(counters, sizes, True)]
        opened = self._logger([("TCP_OPENED_CONNECTIONS", None)], [], False)
        ends: list[tuple[str, str | None]] = [
            ("TCP_CLOSED_CONNECTIONS", None),
            ("TCP_SENT_BYTES", "%BYTES_SENT%"),
            ("TCP_RECEIVED_BYTES", "%BYTES_RECEIVED%"),
        ]
        closed = self._logger(ends, [], False)
        return [
            {**opened, "filter": {"log_type_filter": {"types": ["TcpUpstreamConnected"]}}},
            {**closed, "filter": {"log_type_filter": {"types": ["TcpConnectionEnd"]}}},
        ]

    def _logger(
        self, counters: list[tuple[str, str | None]], histograms: list[tuple[str, str, str]], http: bool
    ) -> Json:
        said: Json = {
            "stats_scope": {"prefix": "istio"},
            "counters": [
                {"stat": self._stat(metric, http), **({"value_format": of} if of else {"value_fixed": 1})}
                for metric, of in counters
                if not self._disabled(metric)
            ],
            "histograms": [
                {"stat": self._stat(metric, http), "unit": unit, "value_format": of}
                for metric, unit, of in histograms
                if not self._disabled(metric)
            ],
        }
        # As a TypedStruct, because the schema that we cut from is older than `stats_scope`.
        config = {"@type": _TYPED_STRUCT, "type_url": _STATS_LOGGER, "value": said}
        return {"name": "envoy.access_loggers.stats", "typed_config": config}

    def _overrides(self, metric: str) -> list[MetricOverride]:
        return [each for each in self.telemetry.overrides if each.metric in ("", "ALL_METRICS", metric)]

    def _disabled(self, metric: str) -> bool:
        return any(each.disabled for each in self._overrides(metric))

    def _stat(self, metric: str, http: bool) -> Json:
        tags = self._tags(http)
        for each in self._overrides(metric):
            for name, value in each.tags.items():
                if value is None:
                    tags.pop(name, None)
                else:
                    tags[name] = f"%CEL({value})%"
        listed = [{"name": name, "value_format": value} for name, value in tags.items()]
        return {"name": _METRICS[metric], "tags": listed}

    def _tags(self, http: bool) -> dict[str, str]:
        """Istio's labels. Unknown ones are "-", Envoy's word for nothing; the waypoint's /metrics says `unknown`."""
        namespace, _, host = self.service.partition("/")
        found = {
            "reporter": "waypoint",
            "source_workload": "%FILTER_STATE(nodemesh.src.workload:PLAIN)%",
            "source_workload_namespace": "%FILTER_STATE(nodemesh.src.namespace:PLAIN)%",
            "source_principal": f"%FILTER_STATE({SOURCE}:PLAIN)%",
            "source_app": "%FILTER_STATE(nodemesh.src.app:PLAIN)%",
            "source_version": "%FILTER_STATE(nodemesh.src.version:PLAIN)%",
            "source_canonical_service": "%FILTER_STATE(nodemesh.src.app:PLAIN)%",
            "source_canonical_revision": "%FILTER_STATE(nodemesh.src.version:PLAIN)%",
            "source_cluster": "%FILTER_STATE(nodemesh.src.cluster:PLAIN)%",
            "destination_workload": _CLUSTER_NAME.format(LABELS, "workload"),
            "destination_workload_namespace": _CLUSTER_NAME.format(LABELS, "namespace"),
            "destination_principal": _CLUSTER_NAME.format(LABELS, "principal"),
            "destination_app": _CLUSTER_NAME.format(LABELS, "app"),
            "destination_version": _CLUSTER_NAME.format(LABELS, "version"),
            "destination_canonical_service": _CLUSTER_NAME.format(LABELS, "service"),
            "destination_canonical_revision": _CLUSTER_NAME.format(LABELS, "revision"),
            "destination_cluster": _CLUSTER_NAME.format(LABELS, "cluster"),
            "destination_service": host,
            "destination_service_name": host.partition(".")[0],
            "destination_service_namespace": namespace,
            "request_protocol": self.protocol if http else "tcp",
            "response_flags": "%RESPONSE_FLAGS%",
            "connection_security_policy": "mutual_tls",
        }
        if self.proxy.role is Role.GATEWAY:
            found |= self._gateway_tags()
        if http:
            found["response_code"] = "%RESPONSE_CODE%"
            found["grpc_response_status"] = "%GRPC_STATUS_NUMBER%"
        return found

    def _gateway_tags(self) -> dict[str, str]:
        """It is the source of what it sends on, and only the route knows to which service."""
        name = self.proxy.name
        return {
            "reporter": "source",
            "source_workload": name,
            "source_workload_namespace": self.proxy.namespace,
            "source_principal": f"%ENVIRONMENT({PRINCIPAL})%",
            "source_app": name,
            "source_version": "latest",
            "source_canonical_service": name,
            "source_canonical_revision": "latest",
            "source_cluster": f"%ENVIRONMENT({CLUSTER_ID})%",
            "destination_service": _OF_CLUSTER.format(LABELS, "host"),
            "destination_service_name": _OF_CLUSTER.format(LABELS, "name"),
            "destination_service_namespace": _OF_CLUSTER.format(LABELS, "namespace"),
            "connection_security_policy": "unknown",
        }


def _log(log: AccessLog) -> Json:
    if log.format:
        said: Json = {
            "text_format_source": {"inline_string": log.format if log.format.endswith("\n") else f"{log.format}\n"}
        }
    else:
        said = {"json_format": dict(log.json) or _FIELDS}
    found = extension(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=log.path,
        log_format=said,
    )
    if log.filter:
        kind = "extensions.access_loggers.filters.cel.v3.ExpressionFilter"
        cel = extension("envoy.access_loggers.extension_filters.cel", kind, expression=log.filter)
        found["filter"] = {"extension_filter": cel}
    return found


def _tracing(tracing: Tracing, tracer: Tracer, reporter: str) -> Json:
    tags: list[Json] = [
        {"tag": "source.principal", "value": f"%FILTER_STATE({SOURCE}:PLAIN)%"},
        {"tag": "proxy.principal", "value": f"%FILTER_STATE({OWN}:PLAIN)%"},
        {"tag": "proxy.role", "literal": {"value": reporter}},
        *map(_tag, tracing.tags),
    ]
    return {
        "random_sampling": {"value": tracing.percent},
        "spawn_upstream_span": True,
        "custom_tags": tags,
        "provider": _provider(tracer),
    }


def _tag(tag: Tag) -> Json:
    if tag.header:
        return {"tag": tag.name, "request_header": {"name": tag.header, "default_value": tag.default}}
    if tag.environment:
        return {"tag": tag.name, "environment": {"name": tag.environment, "default_value": tag.default}}
    return {"tag": tag.name, "literal": {"value": tag.literal or tag.default}}


def _provider(tracer: Tracer) -> Json:
    cluster = outbound(tracer.target)
    host = tracer.target.service.partition("/")[2]
    match tracer.kind:
        case TracerKind.ZIPKIN:
            return extension(
                "envoy.tracers.zipkin",
                "config.trace.v3.ZipkinConfig",
                collector_cluster=cluster,
                collector_hostname=f"{host}:{tracer.target.port}",
                collector_endpoint=tracer.path or "/api/v2/spans",
                collector_endpoint_version="HTTP_JSON",
                trace_id_128bit=True,
                shared_span_context=False,
                trace_context_option="USE_B3_WITH_W3C_PROPAGATION",
            )
        case TracerKind.OTLP_HTTP:
            uri = f"http://{host}:{tracer.target.port}{tracer.path or '/v1/traces'}"
            service: dict[str, Any] = {"http_service": {"http_uri": {"uri": uri, "cluster": cluster, "timeout": "1s"}}}
        case _:
            service = {"grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": "1s"}}
    return extension(
        "envoy.tracers.opentelemetry", "config.trace.v3.OpenTelemetryConfig", service_name="nodemesh", **service
    )


__all__ = ["BAGGAGE", "Said", "source_states", "typed"]
