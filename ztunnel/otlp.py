"""Spans of sampled connections to an OpenTelemetry collector: OTLP over HTTP in its JSON encoding.

The core keeps finished spans in a bounded queue; this takes them every second, keeps what could not be sent for a
while, and drops the oldest beyond the bound. Nothing here is on a connection's path. Off unless an endpoint is set.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import aiohttp

from mesh import log
from mesh.backoff import Backoff
from ztunnel.dataplane import Dataplane
from ztunnel.metrics import Metrics
from ztunnel.settings import Collector

PERIOD_S: Final = 1.0
MOST: Final = 4096
BATCH: Final = 512
_TIMEOUT_S: Final = 10.0
_SERVER, _CLIENT, _ERROR = 2, 3, 2  # SpanKind and StatusCode of opentelemetry.proto.trace.v1
_ABOUT_THE_SPAN: Final = frozenset(
    {"level", "time", "scope", "message", "trace_id", "span", "parent_span", "duration_ns", "error"}
)

_log = log.get("otlp")

Span = Mapping[str, Any]


class Exporter:
    def __init__(
        self, collector: Collector, dataplane: Dataplane, metrics: Metrics, resource: Mapping[str, str]
    ) -> None:
        self._collector, self._dataplane, self._metrics = collector, dataplane, metrics
        self._resource = [_attribute(key, value) for key, value in resource.items() if value]
        self._waiting: deque[Span] = deque()
        self._backoff = Backoff(first_s=PERIOD_S, cap_s=60.0)

    async def run(self) -> None:
        """For ever."""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        headers = {**dict(self._collector.headers), "Content-Type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while True:
                wait_s = await self.turn(session)
                await asyncio.sleep(wait_s)

    async def turn(self, session: aiohttp.ClientSession) -> float:
        """Takes what is there and sends it; seconds until the next turn."""
        self._waiting.extend(json.loads(span) for span in self._dataplane.core.take_spans())
        while len(self._waiting) > MOST:
            self._waiting.popleft()
            self._metrics.count("nodemesh_spans_total", result="dropped")
        while self._waiting:
            batch = [self._waiting[n] for n in range(min(BATCH, len(self._waiting)))]
            why = await self._send(session, batch)
            if why:
                wait_s = self._backoff.failed()
                _log.warning("spans not sent", address=self._collector.url, why=why, retry_s=wait_s)
                return wait_s
            for _ in batch:
                self._waiting.popleft()
            self._metrics.count("nodemesh_spans_total", len(batch), result="sent")
            self._backoff.worked()
        return PERIOD_S

    async def _send(self, session: aiohttp.ClientSession, batch: list[Span]) -> str:
        """Why it was not taken; "" when it was, or when it never will be: then it counts as refused."""
        body = json.dumps(request(self._resource, batch)).encode()
        try:
            async with session.post(self._collector.url, data=body) as answer:
                if answer.status < 300:
                    return ""
                why = f"status {answer.status}"
                if answer.status in (429, 502, 503, 504):  # the OTLP specification's list of what to try again
                    return why
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return str(error) or type(error).__name__
        _log.warning("spans refused", address=self._collector.url, why=why)
        self._metrics.count("nodemesh_spans_total", len(batch), result="refused")
        return ""


def request(resource: list[dict[str, Any]], spans: list[Span]) -> dict[str, Any]:
    """`ExportTraceServiceRequest`."""
    scoped = {"scope": {"name": "nodemesh"}, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [scoped]}]}


def _span(of: Span) -> dict[str, Any]:
    end_ns = int(datetime.fromisoformat(of["time"]).timestamp() * 1e6) * 1000
    parent = of.get("parent_span", "")
    where = of.get("dst.service") or of.get("dst.workload") or of.get("dst.addr", "")
    made: dict[str, Any] = {
        "traceId": of["trace_id"],
        "spanId": of["span"],
        "name": f"tcp {where}",
        "kind": _CLIENT if of.get("direction") == "outbound" else _SERVER,
        "startTimeUnixNano": str(end_ns - of["duration_ns"]),
        "endTimeUnixNano": str(end_ns),
        "attributes": [_attribute(key, value) for key, value in of.items() if key not in _ABOUT_THE_SPAN],
    }
    if parent.strip("0"):
        made["parentSpanId"] = parent
    if "error" in of:
        made["status"] = {"code": _ERROR, "message": of["error"]}
    return made


def _attribute(key: str, value: Any) -> dict[str, Any]:
    # 64-bit numbers are strings in protobuf's JSON.
    return {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}}
