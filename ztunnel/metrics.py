"""The shell's own counters in Prometheus text format, and the process's. The core has its own; no name is in both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import psutil

Labels = tuple[tuple[str, str], ...]

_HELP: Final = {
    "istio_xds_connection_terminations_total": ("counter", "Ends of the configuration stream, by reason"),
    "istio_xds_message_total": ("counter", "Responses received, by type"),
    "istio_xds_message_bytes_total": ("counter", "Bytes of responses received, by type"),
    "nodemesh_policies_missing": ("gauge", "Policies that pods here name and that are not there; each denies"),
    "nodemesh_xds_refused_total": ("counter", "Resources refused, by type"),
    "nodemesh_xds_connected": ("gauge", "1 while the configuration stream is up"),
    "nodemesh_xds_resources": ("gauge", "Resources in force, by type"),
    "nodemesh_zds_connected": ("gauge", "1 while the node agent is connected"),
    "nodemesh_pods_waiting": ("gauge", "Pods that could not be served yet and are tried again"),
    "nodemesh_certificate_expiry_seconds": ("gauge", "End of an identity's certificate, Unix seconds"),
    "nodemesh_certificate_requests_total": ("counter", "Certificate requests, by result"),
    "nodemesh_spans_total": ("counter", "Spans of sampled connections, by what became of them"),
    "nodemesh_xds_last_message_timestamp_seconds": ("gauge", "When the control plane was heard last, Unix seconds"),
    "nodemesh_private_keys": ("gauge", "Private keys in memory, each of an identity that a pod here has"),
    "nodemesh_private_keys_dropped_total": ("counter", "Private keys wiped because their last pod left"),
    "process_resident_memory_bytes": ("gauge", "Resident memory"),
    "process_cpu_seconds_total": ("counter", "Processor time, user and system"),
    "process_start_time_seconds": ("gauge", "Start, Unix seconds"),
    "process_threads": ("gauge", "Threads"),
}


class Metrics:
    """Counters that the shell increments; gauges are set just before `render` by those who know them."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in _HELP}

    def count(self, name: str, by: float = 1, /, **labels: str) -> None:
        series = self._values[name]
        key = tuple(labels.items())
        series[key] = series.get(key, 0) + by

    def set(self, name: str, value: float, /, **labels: str) -> None:
        self._values[name][tuple(labels.items())] = value

    def forget(self, name: str, /, **labels: str) -> None:
        self._values[name].pop(tuple(labels.items()), None)

    def render(self) -> bytes:
        self._measure_process()
        lines: list[str] = []
        for name, series in self._values.items():
            if series:
                kind, text = _HELP[name]
                lines += [f"# HELP {name} {text}.", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_braces(labels)} {value:.17g}" for labels, value in series.items()]
        return "".join(line + "\n" for line in lines).encode()

    def _measure_process(self) -> None:
        me = psutil.Process()
        with me.oneshot():
            times = me.cpu_times()
            self.set("process_resident_memory_bytes", me.memory_info().rss)
            self.set("process_cpu_seconds_total", times.user + times.system)
            self.set("process_start_time_seconds", me.create_time())
            self.set("process_threads", me.num_threads())


def _braces(labels: Iterable[tuple[str, str]]) -> str:
    inner = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
