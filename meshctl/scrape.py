"""Prometheus text as rows of traffic between two workloads. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_SAMPLE: Final = re.compile(r"^istio_tcp_(connections|received_bytes|sent_bytes)(?:_(\w+))?_total\{(.*)\} (\d+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PLAIN: Final = re.compile(r"^(\w+) ([0-9.e+]+)$", re.MULTILINE)

Pair = tuple[str, str, str]
"""Reporter, source, destination."""


@dataclass(slots=True)
class Totals:
    """Since the tunnel began. `received`: bytes of requests; `sent`: bytes of answers."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0

    def plus(self, name: str, value: int) -> None:
        setattr(self, name, getattr(self, name) + value)


def traffic(text: str) -> dict[Pair, Totals]:
    found: dict[Pair, Totals] = {}
    for line in text.splitlines():
        if not (match := _SAMPLE.match(line)):
            continue
        kind, rest, inner, value = match.groups()
        labels = dict(_LABEL.findall(inner))
        pair = (labels.get("reporter", ""), _name(labels, "source"), _name(labels, "destination"))
        field = rest if kind == "connections" else kind.removesuffix("_bytes")
        if field in ("opened", "closed", "failed", "received", "sent"):
            found.setdefault(pair, Totals()).plus(field, int(value))
    return found


def _name(labels: Mapping[str, str], end: str) -> str:
    namespace, workload = labels.get(f"{end}_workload_namespace", ""), labels.get(f"{end}_workload", "")
    if workload != "unknown":
        return f"{namespace}/{workload}"
    return labels.get("destination_service", "unknown") if end == "destination" else "unknown"


def gauges(text: str) -> dict[str, float]:
    """Samples without labels."""
    return {name: float(value) for name, value in _PLAIN.findall(text)}
