"""The mesh's configuration (a ConfigMap `istio` in the root namespace, as Istio's): authorizers, tracers, logs, and
what goes where no document says anything. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controlplane.l7.routes import Target
from controlplane.l7.security import Authorizer
from controlplane.l7.telemetry import AccessLog, Tracer, TracerKind
from controlplane.translate.hosts import Hosts

Tree = Mapping[str, Any]
_ZIPKIN_PATH: Final = "/api/v2/spans"
_OTLP_PATH: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Providers:
    """By name. `default_*`: which are used where nothing is said."""

    authorizers: Mapping[str, Authorizer] = field(default_factory=dict)
    tracers: Mapping[str, Tracer] = field(default_factory=dict)
    logs: Mapping[str, AccessLog] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    default_tracer: str = ""
    default_logs: tuple[AccessLog, ...] = (AccessLog(),)

    @property
    def names(self) -> set[str]:
        return {*self.authorizers, *self.tracers, *self.logs, *self.metrics}


def providers(mesh: Tree, hosts: Hosts, root: str) -> Providers:
    """A provider whose service does not exist stays: what asks it is refused, or goes without a trace."""
    authorizers: dict[str, Authorizer] = {}
    tracers: dict[str, Tracer] = {}
    logs: dict[str, AccessLog] = {"envoy": _own_log(mesh)}
    metrics = ["prometheus"]
    for each in mesh.get("extensionProviders", ()):
        name = each["name"]
        if http := each.get("envoyExtAuthzHttp"):
            authorizers[name] = _http(http, _target(http, hosts, root))
        elif grpc := each.get("envoyExtAuthzGrpc"):
            authorizers[name] = _grpc(grpc, _target(grpc, hosts, root))
        elif zipkin := each.get("zipkin"):
            tracers[name] = Tracer(TracerKind.ZIPKIN, _target(zipkin, hosts, root), zipkin.get("path", _ZIPKIN_PATH))
        elif otlp := each.get("opentelemetry"):
            kind = TracerKind.OTLP_HTTP if "http" in otlp else TracerKind.OTLP_GRPC
            path = otlp.get("http", {}).get("path", _OTLP_PATH if kind is TracerKind.OTLP_HTTP else "")
            tracers[name] = Tracer(kind, _target(otlp, hosts, root), path)
        elif "envoyFileAccessLog" in each:
            logs[name] = _log(each["envoyFileAccessLog"])
        elif "prometheus" in each:
            metrics.append(name)
    defaults: Tree = mesh.get("defaultProviders", {})
    asked = [name for name in defaults.get("tracing", ()) if name in tracers]
    return Providers(
        authorizers,
        tracers,
        logs,
        tuple(metrics),
        default_tracer=asked[0] if asked else "",
        default_logs=_default_logs(mesh, defaults, logs),
    )


def _default_logs(mesh: Tree, defaults: Tree, logs: Mapping[str, AccessLog]) -> tuple[AccessLog, ...]:
    """Written unless it is said that they are not."""
    if "accessLogging" in defaults:
        return tuple(logs[name] for name in defaults["accessLogging"] if name in logs)
    return (logs["envoy"],) if mesh.get("accessLogFile", "/dev/stdout") else ()


def _own_log(mesh: Tree) -> AccessLog:
    as_text = mesh.get("accessLogEncoding") == "TEXT"
    return AccessLog(
        path=mesh.get("accessLogFile") or "/dev/stdout", format=mesh.get("accessLogFormat", "") if as_text else ""
    )


def _log(given: Tree) -> AccessLog:
    shape: Tree = given.get("logFormat", {})
    labels = shape.get("labels") or {}
    return AccessLog(
        path=given.get("path", "/dev/stdout"),
        format=shape.get("text", ""),
        json={str(name): str(value) for name, value in labels.items()},
    )


def _target(given: Tree, hosts: Hosts, root: str) -> Target:
    """`service` is a host, or `namespace/host`."""
    namespace, _, host = given["service"].rpartition("/")
    service = hosts.find(host, namespace or root)
    port = hosts.port(service, given["port"]) if service else None
    return Target(service.key, port) if service and port else Target("")


def _status(given: Tree) -> int:
    text = str(given.get("statusOnError", "403"))
    return int(text) if text.isdecimal() else 403


def _http(given: Tree, target: Target) -> Authorizer:
    return Authorizer(
        target=target,
        grpc=False,
        timeout_s=given.get("timeout", 0.6),
        fail_open=given.get("failOpen", False),
        status_on_error=_status(given),
        path_prefix=given.get("pathPrefix", ""),
        include_headers=tuple(given.get("includeRequestHeadersInCheck", given.get("includeHeadersInCheck", ()))),
        headers_upstream=tuple(given.get("headersToUpstreamOnAllow", ())),
        headers_downstream=tuple(given.get("headersToDownstreamOnDeny", ())),
    )


def _grpc(given: Tree, target: Target) -> Authorizer:
    return Authorizer(
        target=target,
        timeout_s=given.get("timeout", 0.6),
        fail_open=given.get("failOpen", False),
        status_on_error=_status(given),
    )
