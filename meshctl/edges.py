"""Metrics of waypoints, gateways and tunnels as a graph: who called what, how often, with which result. Pure.

The same call is counted by several: a request by the gateway that sent it and by the waypoint, a connection at both its
ends and below every request. An edge is told once, by whoever knows most of it: requests before connections, the
waypoint before the gateway, the destination's tunnel before the source's. What a proxy connects to, as its tunnels tell
it, is the second half of what the proxy tells by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_SERIES: Final = re.compile(r"^(istio_(?:requests|tcp_\w+)_total)\{(.*)\} (\d+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PROXY: Final = re.compile(r'^nodemesh_proxy_info\{.*principal="([^"]*)"\} 1$', re.MULTILINE)
_ESCAPED: Final = re.compile(r"\\(.)")
# Who is believed, of several that tell of one edge; an unknown one is the last.
_REPORTERS: Final = ("waypoint", "destination", "source")
_UNKNOWN: Final = ("", "-", "unknown")
# Of gRPC what is the service's fault: unknown, deadline, unimplemented, internal, unavailable, data loss.
_GRPC_FAILED: Final = frozenset({"2", "4", "12", "13", "14", "15"})
_TCP: Final = {
    "istio_tcp_connections_opened_total": "connections",
    "istio_tcp_connections_failed_total": "failed",
    "istio_tcp_received_bytes_total": "request_bytes",
    "istio_tcp_sent_bytes_total": "answer_bytes",
}
Series = tuple[str, str]
"""Name and labels as they were written."""
Counts = dict[Series, int]
Key = tuple[str, str, str, str]
"""Source, destination, version, protocol (http, grpc, tcp)."""


@dataclass(frozen=True, slots=True)
class Told:
    """By one daemon. `proxy`: the identity of a waypoint or gateway, "" of a tunnel."""

    counts: Counts
    proxy: str = ""

    def since(self, before: Told) -> Told:
        """What is new; a counter that began anew counts from zero."""
        old = {key: before.counts.get(key, 0) for key in self.counts}
        new = {key: value - old[key] if value >= old[key] else value for key, value in self.counts.items()}
        return Told(new, self.proxy)


NOTHING: Final = Told({})


@dataclass(slots=True)
class Edge:
    """Either `requests` by status, or `connections`. `failed` of them."""

    source: str
    destination: str
    version: str
    protocol: str
    reporter: str
    statuses: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    failed: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0

    @property
    def count(self) -> int:
        return self.statuses.total() if self.protocol != "tcp" else self.connections + self.failed

    def document(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in ("source", "destination", "version", "protocol", "reporter")}
        if self.protocol == "tcp":
            names = ("connections", "failed", "request_bytes", "answer_bytes")
            return found | {name: getattr(self, name) for name in names}
        return found | {"requests": self.count, "failed": self.failed, "statuses": dict(sorted(self.statuses.items()))}


def told(text: str) -> Told:
    """What a daemon's /metrics says of requests and connections."""
    proxy = _PROXY.search(text)
    return Told({(n, labels): int(value) for n, labels, value in _SERIES.findall(text)}, proxy[1] if proxy else "")


def edges(everybody: Iterable[Told]) -> list[Edge]:
    """By source, destination and version."""
    daemons = list(everybody)
    proxies = {each.proxy for each in daemons if each.proxy}
    by_reporter: dict[str, dict[Key, Edge]] = {each: {} for each in _REPORTERS}
    for daemon in daemons:
        for name, labels, value in _samples(daemon):
            halves = not daemon.proxy and labels.get("source_principal") in proxies
            if value and not halves:
                _add(by_reporter.setdefault(labels.get("reporter", ""), {}), name, labels, value)
    return sorted(_once(by_reporter), key=lambda edge: (edge.source, edge.destination, edge.version))


def _samples(daemon: Told) -> Iterator[tuple[str, dict[str, str], int]]:
    for (name, written), value in daemon.counts.items():
        yield name, {key: _ESCAPED.sub(r"\1", text) for key, text in _LABEL.findall(written)}, value


def _add(found: dict[Key, Edge], name: str, labels: Mapping[str, str], value: int) -> None:
    protocol = labels.get("request_protocol", "tcp")
    key = (_party(labels, "source"), _destination(labels), _known(labels.get("destination_version", "")), protocol)
    edge = found.setdefault(key, Edge(*key, labels.get("reporter", "")))
    if name == "istio_requests_total":
        status = labels.get("response_code", "")
        edge.statuses[status] += value
        if status.startswith("5") or labels.get("grpc_response_status") in _GRPC_FAILED:
            edge.failed += value
    elif attribute := _TCP.get(name):
        setattr(edge, attribute, getattr(edge, attribute) + value)


def _once(by_reporter: Mapping[str, Mapping[Key, Edge]]) -> Iterator[Edge]:
    """Each pair by the first who tells of it; connections only where nobody tells of requests."""
    taken: set[tuple[str, str]] = set()
    everything = [edge for found in by_reporter.values() for edge in found.values() if edge.count]
    for requests in (True, False):
        for reporter in by_reporter:
            its = [e for e in everything if e.reporter == reporter and (e.protocol != "tcp") == requests]
            fresh = [edge for edge in its if (edge.source, edge.destination) not in taken]
            taken |= {(edge.source, edge.destination) for edge in fresh}
            yield from fresh


def _destination(labels: Mapping[str, str]) -> str:
    """The service, if there is one; else the workload."""
    name, namespace = (_known(labels.get(f"destination_service_{each}", "")) for each in ("name", "namespace"))
    return f"{namespace}/{name}" if name else _party(labels, "destination")


def _party(labels: Mapping[str, str], end: str) -> str:
    name, namespace = (_known(labels.get(f"{end}_workload{each}", "")) for each in ("", "_namespace"))
    return f"{namespace}/{name}" if name else f"{namespace}/unknown" if namespace else "unknown"


def _known(text: str) -> str:
    return "" if text in _UNKNOWN else text


def dot(found: Iterable[Edge]) -> str:
    """Graphviz. What fails is red."""
    lines = ["digraph mesh {", "  rankdir=LR;", "  node [shape=box];"]
    for edge in found:
        what = "connections" if edge.protocol == "tcp" else "requests"
        said = f"{edge.count} {what}" + (f", {edge.failed} failed" if edge.failed else "")
        said += f"\\n{edge.version}" if edge.version else ""
        colour = ", color=red" if edge.failed else ""
        lines.append(f'  {_quoted(edge.source)} -> {_quoted(edge.destination)} [label="{said}"{colour}];')
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
