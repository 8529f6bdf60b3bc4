"""`meshctl lab scale`: a big world through the real daemons, each stage timed.

The lab's agent does not see the big world: it is about the control plane and the tunnel. What a load does to traffic is
a case of the benchmark. Figures are of this machine, whose processors all daemons share.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from lab import daemons, scale
from lab.cluster import Cluster
from lab.layout import Layout
from lab.processes import Process, wait_until
from lab.watchdog import guarded
from mesh.errors import PeerError

NODE: Final = "node1"
TUNNEL: Final = f"ztunnel-{NODE}"
ADDRESS: Final = "type.googleapis.com/istio.workload.Address"
READ_S, SYNC_S, SEEN_S = 600.0, 300.0, 120.0
CHANGES: Final = 15
_EXTRA: Final = scale.MOST_WORKLOADS - 1 - CHANGES
"""Numbers of pods that no world has: what a change adds."""


@dataclass(slots=True)
class Figures:
    """Seconds and MiB. `sync_s`: from the start of an empty tunnel until it serves with everything in force;
    `change_s`: each from writing a file until the tunnel's tables have it. `restart_s`: from the start of a tunnel that
    was stopped, without any control plane, until it serves with everything in force that it had."""

    workloads: int
    services: int
    written_s: float = 0.0
    control_ready_s: float = 0.0
    control_mib: float = 0.0
    sync_s: float = 0.0
    tunnel_mib: float = 0.0
    tunnel_peak_mib: float = 0.0
    change_s: tuple[float, ...] = ()
    restart_s: float = 0.0

    def lines(self) -> list[str]:
        return [
            f"documents      {self.workloads} workloads, {self.services} services, written in {self.written_s:.1f} s",
            f"control plane  serves after {self.control_ready_s:.1f} s, {self.control_mib:.0f} MiB",
            f"first sync     {self.sync_s:.1f} s from the start of an empty tunnel",
            f"tunnel         {self.tunnel_mib:.0f} MiB, at most {self.tunnel_peak_mib:.0f} MiB",
            f"a change       is in the tunnel's tables after {median(self.change_s):.2f} s in the middle of "
            f"{len(self.change_s)}, the longest after {max(self.change_s):.2f} s",
            f"a restart      without a control plane: serves again after {self.restart_s:.1f} s",
        ]


def run(name: str, workloads: int, services: int, say: Callable[[str], None]) -> Figures:
    """In a lab of its own, taken down afterwards. Raises OperatorError."""
    with guarded(Layout(name)):
        return measure(Cluster.up(name, 1, 2, say), workloads, services, say)


def measure(made: Cluster, workloads: int, services: int, say: Callable[[str], None] = lambda _: None) -> Figures:
    """`made` keeps the big world."""
    figures = Figures(workloads, services)
    say(f"a control plane that reads {workloads} workloads and {services} services")
    big = _give_control_plane(made, figures)
    say("an empty tunnel loads them")
    _load(made, figures)
    say("one file changes, some times")
    figures.change_s = tuple(_change(made, big, number) for number in range(CHANGES))
    say("the control plane goes away, and the tunnel restarts")
    _restart(made, figures)
    return figures


def _give_control_plane(made: Cluster, figures: Figures) -> Path:
    """Started anew, on a directory that holds the lab's own configuration and the big one."""
    directory = made.layout.dir / "world"
    began = time.monotonic()
    scale.world(figures.workloads, figures.services, directory / "big")
    figures.written_s = time.monotonic() - began
    (directory / "lab").symlink_to(made.layout.config)
    daemons.stop(made.daemons[TUNNEL])
    daemons.stop(made.daemons["controlplane"])
    began = time.monotonic()
    control = made.daemons["controlplane"] = daemons.start_controlplane(made.layout, directory)
    wait_until("the control plane serves", lambda: daemons.is_up(made.layout, control), READ_S)
    figures.control_ready_s = time.monotonic() - began
    figures.control_mib = memory_mib(control, "VmRSS")
    return directory / "big"


def _load(made: Cluster, figures: Figures) -> None:
    shutil.rmtree(daemons.state_dir(made.layout, NODE))
    began = time.monotonic()
    made.start_tunnel(NODE)
    wait_until("the tunnel has the world", lambda: held(made) >= figures.workloads + figures.services, SYNC_S)
    figures.sync_s = time.monotonic() - began
    tunnel = made.daemons[TUNNEL]
    figures.tunnel_mib, figures.tunnel_peak_mib = memory_mib(tunnel, "VmRSS"), memory_mib(tunnel, "VmHWM")


def _change(made: Cluster, big: Path, number: int) -> float:
    """A new pod in the file of the first services, beside all that the file held."""
    expected = held(made) + 1
    path = scale.services_file(big, 0)
    text = f"{path.read_text()}---\n{scale.pod(_EXTRA + number, 0)}"
    began = time.monotonic()
    scale.replace(path, text)
    wait_until("the tunnel has the new pod", lambda: held(made) == expected, SEEN_S)
    return time.monotonic() - began


def _restart(made: Cluster, figures: Figures) -> None:
    before = held(made)
    daemons.stop(made.daemons["controlplane"])
    daemons.stop(made.daemons[TUNNEL])
    began = time.monotonic()
    made.start_tunnel(NODE)
    wait_until("the tunnel serves from what it kept", lambda: held(made) == before, SEEN_S)
    figures.restart_s = time.monotonic() - began


def held(made: Cluster) -> int:
    """Addresses in force in the tunnel."""
    try:
        return int(made.ask(TUNNEL, "/status")["xds"]["resources"][ADDRESS])
    except PeerError:
        return 0  # too busy to answer


def memory_mib(process: Process, field: str) -> float:
    """VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
