"""What is told about requests: access logs, metrics, traces. Part of the model of `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.l7.routes import Target
from mesh.model import EMPTY


class TracerKind(StrEnum):
    ZIPKIN = "zipkin"
    OTLP_HTTP = "otlp-http"
    OTLP_GRPC = "otlp-grpc"


@dataclass(frozen=True, slots=True)
class Tracer:
    kind: TracerKind
    target: Target
    path: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """Exactly one of them. `header`: of the request, else `default`."""

    name: str
    literal: str = ""
    header: str = ""
    environment: str = ""
    default: str = ""


@dataclass(frozen=True, slots=True)
class Tracing:
    """`percent` 0: only what comes sampled."""

    tracer: str
    percent: float = 1.0
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessLog:
    """`path`: of a file, `/dev/stdout` too. `filter`: CEL. `format`: a text, else JSON with our fields."""

    path: str = "/dev/stdout"
    filter: str = ""
    format: str = ""
    json: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class MetricOverride:
    """`metric`: as REQUEST_COUNT; "" is all. `tags`: name -> CEL value, None takes the tag away."""

    metric: str = ""
    disabled: bool = False
    tags: Mapping[str, str | None] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Telemetry:
    tracing: Tracing | None = None
    logs: tuple[AccessLog, ...] = (AccessLog(),)
    metrics: bool = True
    overrides: tuple[MetricOverride, ...] = ()
