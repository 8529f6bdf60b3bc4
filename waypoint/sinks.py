"""Where Envoy sends its metrics besides being scraped: the setting STATS_SINKS, and what Envoy is told for it. Pure.

A sink gets every statistic that exists, at every flush, and most have no filter of their own; so what exists is cut to
what an operator watches (`PATTERNS`): its number grows with who talks to whom, not with the number of services.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from mesh.errors import OperatorError
from waypoint.clusters import cluster, is_address, socket_address

Json = dict[str, Any]
VARIABLE: Final = "STATS_SINKS"
HYSTRIX: Final = "hystrix"
OTLP_PATH: Final = "/v1/metrics"
# As much as an Ethernet frame takes, with the headers of IPv6 and UDP.
_DATAGRAM_BYTES: Final = 1432
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+")
_STATS: Final = "type.googleapis.com/envoy.config.metrics.v3"
_MORE: Final = "type.googleapis.com/envoy.extensions.stat_sinks"


class Kind(StrEnum):
    STATSD = "statsd"
    STATSD_TCP = "statsd+tcp"
    DOGSTATSD = "dogstatsd"
    GRAPHITE = "graphite"
    OTLP = "otlp"
    OTLP_HTTP = "otlp+http"
    METRICS_SERVICE = "metrics-service"
    HYSTRIX = HYSTRIX


_UDP: Final = (Kind.STATSD, Kind.DOGSTATSD, Kind.GRAPHITE)
_GRPC: Final = (Kind.OTLP, Kind.METRICS_SERVICE)
_PREFIXED: Final = (*_UDP, Kind.STATSD_TCP, Kind.OTLP, Kind.OTLP_HTTP)

# Prefixes of statistics. The words before the first dot are Envoy's, "istio" that of the stats loggers.
PATTERNS: Final = ("istio.", "server.", "listener_manager.", "cluster_manager.", "control_plane.", "overload.")
# What the Hystrix stream is made of, per cluster.
_HYSTRIX_PATTERNS: Final = ("upstream_rq", "membership_total")


@dataclass(frozen=True, slots=True)
class Sink:
    """`host` of a sink on UDP is an address. `prefix` "": Envoy's own."""

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    prefix: str = ""


def parse(text: str) -> tuple[Sink, ...]:
    """`KIND://HOST:PORT` or `hystrix`, several with commas between. Raises OperatorError."""
    found: list[Sink] = []
    for word in filter(None, (each.strip() for each in text.split(","))):
        sink = Sink(Kind.HYSTRIX) if word == HYSTRIX else _sink(word)
        if sink in found:
            raise _wrong(word, "is there twice")
        found.append(sink)
    return tuple(found)


def _sink(word: str) -> Sink:
    kinds: list[Kind] = [each for each in Kind if each is not Kind.HYSTRIX]
    try:
        parts = urlsplit(word)
        kind, port = kinds[kinds.index(Kind(parts.scheme))], parts.port
    except ValueError:
        said = f"is neither KIND://HOST:PORT with one of {', '.join(kinds)}, nor {HYSTRIX}"
        raise _wrong(word, said) from None
    host = parts.hostname or ""
    if not host or not port or parts.username is not None or parts.fragment:
        raise _wrong(word, f"is not {kind}://HOST:PORT")
    if kind in _UDP and not is_address(host):
        raise _wrong(word, f"names {host}, but {kind} goes by UDP and needs an IP address")
    if parts.path not in ("", "/") and kind is not Kind.OTLP_HTTP:
        raise _wrong(word, f"has the path {parts.path}, which only {Kind.OTLP_HTTP} takes")
    path = (parts.path if parts.path not in ("", "/") else OTLP_PATH) if kind is Kind.OTLP_HTTP else ""
    return Sink(kind, host, port, path, _prefix(word, kind, parts.query))


def _prefix(word: str, kind: Kind, query: str) -> str:
    options = parse_qs(query, keep_blank_values=True)
    values = options.pop("prefix", [""] if not query else [])
    if options or len(values) != 1 or (query and not _PREFIX.fullmatch(values[0])):
        raise _wrong(word, "takes ?prefix=NAME (letters, digits, '_', '.', '-') and no other option")
    if query and kind not in _PREFIXED:
        raise _wrong(word, f"has a prefix, which {kind} does not take")
    return values[0]


def _wrong(word: str, why: str) -> OperatorError:
    return OperatorError(f"{word!r} {why}", where=VARIABLE)


def has_hystrix(sinks: tuple[Sink, ...]) -> bool:
    return Sink(Kind.HYSTRIX) in sinks


def patterns(sinks: tuple[Sink, ...]) -> list[Json]:
    """What is to be counted when there is a sink: matchers of Envoy's statistics. None: nothing is said."""
    if not sinks:
        return []
    more = _HYSTRIX_PATTERNS if has_hystrix(sinks) else ()
    return [{"prefix": each} for each in PATTERNS] + [{"contains": each} for each in more]


def sinks_of(sinks: tuple[Sink, ...], proxy: str) -> list[Json]:
    """Of the bootstrap. `proxy`: by which name a collector knows us."""
    return [_told(sink, _cluster_name(number), proxy) for number, sink in enumerate(sinks)]


def clusters_of(sinks: tuple[Sink, ...]) -> list[Json]:
    """Where those sinks that do not go by UDP connect to."""
    return [
        cluster(_cluster_name(number), socket_address(sink.host, sink.port), http2=sink.kind in _GRPC)
        for number, sink in enumerate(sinks)
        if sink.kind not in (*_UDP, Kind.HYSTRIX)
    ]


def _cluster_name(number: int) -> str:
    return f"stats-sink-{number}"


def _told(sink: Sink, name: str, proxy: str) -> Json:
    udp = {"socket_address": {"protocol": "UDP", "address": sink.host, "port_value": sink.port}}
    prefix = {"prefix": sink.prefix} if sink.prefix else {}
    grpc = {"grpc_service": {"envoy_grpc": {"cluster_name": name}}}
    match sink.kind:
        case Kind.STATSD:
            return _typed("statsd", f"{_STATS}.StatsdSink", {"address": udp, **prefix})
        case Kind.STATSD_TCP:
            return _typed("statsd", f"{_STATS}.StatsdSink", {"tcp_cluster_name": name, **prefix})
        case Kind.DOGSTATSD:
            said = {"address": udp, "max_bytes_per_datagram": _DATAGRAM_BYTES, **prefix}
            return _typed("dog_statsd", f"{_STATS}.DogStatsdSink", said)
        case Kind.GRAPHITE:
            said = {"address": udp, "max_bytes_per_datagram": _DATAGRAM_BYTES, **prefix}
            return _typed("graphite_statsd", f"{_MORE}.graphite_statsd.v3.GraphiteStatsdSink", said)
        case Kind.METRICS_SERVICE:
            said = {**grpc, "transport_api_version": "V3", "emit_tags_as_labels": True}
            return _typed("metrics_service", f"{_STATS}.MetricsServiceConfig", said)
        case Kind.OTLP:
            return _otlp(grpc, prefix, proxy)
        case Kind.OTLP_HTTP:
            host = f"[{sink.host}]" if ":" in sink.host else sink.host
            uri = {"uri": f"http://{host}:{sink.port}{sink.path}", "cluster": name, "timeout": "5s"}
            return _otlp({"http_service": {"http_uri": uri}}, prefix, proxy)
        case Kind.HYSTRIX:
            return _typed("hystrix", f"{_STATS}.HystrixSink", {"num_buckets": 10})


def _otlp(service: Json, prefix: Json, proxy: str) -> Json:
    detectors = "envoy.tracers.opentelemetry.resource_detectors"
    kind = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig"
    who = {"@type": f"type.googleapis.com/{kind}", "attributes": {"service.name": proxy}}
    said = {**service, **prefix, "resource_detectors": [{"name": f"{detectors}.static_config", "typed_config": who}]}
    return _typed("open_telemetry", f"{_MORE}.open_telemetry.v3.SinkConfig", said)


def _typed(name: str, kind: str, config: Json) -> Json:
    return {"name": f"envoy.stat_sinks.{name}", "typed_config": {"@type": kind, **config}}
