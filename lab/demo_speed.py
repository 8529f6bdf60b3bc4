"""The demo's figures: the mesh beside direct TCP, same pods' nodes, same tools, same run."""

from __future__ import annotations

import json
import os

from lab import processes
from lab.apps import HTTP_PORT, IPERF_PORT
from lab.cluster import Pod
from lab.demo_parts import Stage
from lab.probes import Probe, Said
from mesh.errors import OperatorError

SECONDS = 2.0


def speed(stage: Stage) -> None:
    for streams in (1, 8):
        direct = _throughput(stage, stage.outside, stage.direct, streams)
        mesh = _throughput(stage, stage.client, stage.server, streams)
        seen = f"{mesh / direct:.2f} of direct ({mesh:.1f} of {direct:.1f} Gbit/s)"
        stage.report.check(f"throughput, {streams} stream{'s' if streams > 1 else ''}", seen, mesh > 0)
    _pin(stage)
    direct_rr = _latency(stage, stage.outside, stage.direct)
    mesh_rr = _latency(stage, stage.client, stage.server)
    for name in ("p50", "p99"):
        mesh_s, direct_s = mesh_rr[f"{name}_s"], direct_rr[f"{name}_s"]
        seen = f"{mesh_s / direct_s:.2f} of direct ({mesh_s * 1e6:.0f} of {direct_s * 1e6:.0f} µs)"
        stage.report.check(f"request latency, {name}", seen, mesh_rr["count"] > 0)


def _throughput(stage: Stage, client: Pod, server: Pod, streams: int) -> float:
    """Gbit/s as the receiver counted. Raises OperatorError."""
    command = ["iperf3", "-J", "-c", server.ip, "-p", str(IPERF_PORT), "-t", f"{SECONDS:g}", "-P", str(streams)]
    done = stage.cluster.exec(client, command)
    try:
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError):
        raise OperatorError(f"iperf3 from {client.name} to {server.name} failed: {done.stdout[-300:]}") from None


def _latency(stage: Stage, client: Pod, server: Pod) -> Said:
    first = str(min(os.sched_getaffinity(0)))
    with Probe(stage.cluster, client, "rr", server.ip, HTTP_PORT, SECONDS, first) as probe:
        return probe.expect("latency", SECONDS + 10)


def _pin(stage: Stage) -> None:
    """Client on the first core, servers on the last: unpinned, a run flips between one core and two, threefold."""
    last = {max(os.sched_getaffinity(0))}
    servers = {f"nginx-{pod.name}" for pod in (stage.server, stage.direct)}
    for process in processes.recorded(stage.cluster.layout):
        if process.name in servers and process.alive:
            os.sched_setaffinity(process.pid, last)
