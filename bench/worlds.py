"""Traffic while the tunnels load a big world: does a configuration push hurt those who are connected?

The control plane reads the world first, while the tunnels are cut off from it: reading documents is not what is
measured, and on two cores it would be. Then the tunnels may connect, and load everything at once under traffic.
Idle is the mean of ten seconds before and ten after: a machine that others share changes from minute to minute.
Everybody has the usual share of the processor, as in all cases; what another one does is told in decisions 47 and 48.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.cases import BY_NAME, Case
from bench.contenders import Arena, Contender
from bench.measure import CORES, DISTURBED, Sample, machine_busy_s, process_cpu_s, result_of
from lab import scale
from lab.netns import inside
from lab.netns import run as run_command
from lab.processes import wait_until
from mesh.errors import OperatorError, PeerError

TRAFFIC = BY_NAME["request-open-1000"]
"""An open loop: a stall shows in every request that was due in it."""
IDLE_S, LONGEST_S = 10.0, 60.0
READ_S, CONNECT_S = 180.0, 40.0
LOOK_S, IDLE_SHARE = 0.5, 0.4
TUNNELS = 2
ADDRESS = "type.googleapis.com/istio.workload.Address"
CUT = """
table inet bench {
  chain in {
    type filter hook input priority 0
    tcp dport 15012 reject with tcp reset
  }
}
"""


def run(
    pairs: Sequence[tuple[Arena, Contender]], cases: Sequence[Case], say: Callable[[str], None]
) -> tuple[list[Sample], list[str]]:
    """The samples, and what could not be measured: that must not cost a run all its other figures."""
    samples, failed = [], []
    for case in cases:
        for arena, contender in (pair for pair in pairs if case.asks(pair[1].name)):
            try:
                samples.append(_measure(arena, contender, case, say))
            except OperatorError as error:
                failed.append(f"{case.name}, {contender.name}: {error}")
    return samples, failed


def _measure(arena: Arena, contender: Contender, case: Case, say: Callable[[str], None]) -> Sample:
    workloads, services = case.args
    say(f"{case.name}: the control plane reads {workloads} workloads and {services} services, cut off from the tunnels")
    _cut_off(arena)
    scale.world(workloads, services, arena.cluster.layout.config)
    wait_until("the control plane has the world", lambda: _read(arena) >= workloads, READ_S, step_s=0.5)
    _wait_idle(arena)
    before, others_before = _idle(arena, contender, "before the load")
    with _held_up(arena):
        watch, began = _Watch(arena, contender), time.monotonic()
        traffic = _traffic(arena, contender, LONGEST_S)
    try:
        wait_until("the tunnels have the world", lambda: _loaded(arena) >= workloads + services, LONGEST_S, step_s=0.25)
        took = time.monotonic() - began
    finally:
        traffic.send_signal(signal.SIGINT)
    result = result_of(traffic, f"{contender.name} while it loads", 60)
    others = watch.others(result["cpu_s"])
    _wait_idle(arena)
    after, others_after = _idle(arena, contender, "after the load")
    idle_p99 = (before + after) / 2
    shares = others_before, others, others_after
    others = max(shares)
    say(f"{case.name}: loaded in {took:.1f} s, p99 {before:.0f} -> {result['p99_us']:.0f} -> {after:.0f} µs")
    say(f"{case.name}: others used {', '.join(f'{share:.0%}' for share in shares)} of the machine")
    return Sample(
        case.name,
        contender.name,
        0,
        rate=result["ops"] / result["seconds"],
        p50=result["p50_us"],
        p99=result["p99_us"],
        idle_p99=idle_p99,
        loaded_s=took,
        errors=result["errors"],
        others=others,
        disturbed=others > DISTURBED,
    )


def _idle(arena: Arena, contender: Contender, when: str) -> tuple[float, float]:
    """p99 in µs while nothing is loaded, and the share of the machine that nobody of ours used."""
    watch = _Watch(arena, contender)
    result = result_of(_traffic(arena, contender, IDLE_S), f"{contender.name} {when}", 60)
    return result["p99_us"], watch.others(result["cpu_s"])


class _Watch:
    """The share of the machine that nobody of ours used, from now until it is asked for."""

    def __init__(self, arena: Arena, contender: Contender) -> None:
        self._ours = [p.pid for p in arena.cluster.daemons.values()]
        self._ours += [server.pid for _, server in contender.servers.values()]
        self._began, self._used = time.monotonic(), self._by_others()

    def others(self, generator_s: float) -> float:
        wall = time.monotonic() - self._began
        return (self._by_others() - self._used - generator_s) / (wall * CORES)

    def _by_others(self) -> float:
        return machine_busy_s() - sum(map(process_cpu_s, self._ours))


def _traffic(arena: Arena, contender: Contender, seconds: float) -> subprocess.Popen[str]:
    load = arena.load_for(contender, TRAFFIC)
    return load.start(TRAFFIC, seconds)


def _cut_off(arena: Arena) -> None:
    control = inside(arena.cluster.layout.control)
    run_command(*control, "nft", "-f", "-", stdin=CUT)
    run_command(*control, "ss", "-KHtn", "sport = :15012")


@contextmanager
def _held_up(arena: Arena) -> Iterator[None]:
    """Both tunnels have begun to load at the same time, and go on afterwards: each tries to connect when it likes."""
    with _standing_still(arena):
        run_command(*inside(arena.cluster.layout.control), "nft", "delete", "table", "inet", "bench")
        wait_until("the tunnels connect to the control plane", lambda: _callers(arena) >= TUNNELS, CONNECT_S)
    wait_until("the tunnels hear it", lambda: all(map(_hears, _tunnels(arena))), CONNECT_S, step_s=0.02)
    with _standing_still(arena):
        yield


@contextmanager
def _standing_still(arena: Arena) -> Iterator[None]:
    controlplane = arena.cluster.daemons["controlplane"]
    controlplane.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        controlplane.signal(signal.SIGCONT)


def _callers(arena: Arena) -> int:
    """Addresses from which somebody is connected to the control plane."""
    control = inside(arena.cluster.layout.control)
    peers = run_command(*control, "ss", "-Htn", "state", "established", "sport = :15012").split()[3::4]
    return len({peer.rpartition(":")[0] for peer in peers})


def _read(arena: Arena) -> int:
    """Workloads that the control plane knows."""
    return int(_status(arena, "controlplane").get("world", {}).get("workloads", 0))


def _loaded(arena: Arena) -> int:
    """Addresses that the slower tunnel has."""
    return min(int(xds.get("resources", {}).get(ADDRESS, 0)) for xds in _tunnels(arena))


def _hears(xds: dict[str, Any]) -> bool:
    return bool(xds.get("connected"))


def _tunnels(arena: Arena) -> list[dict[str, Any]]:
    """What each says of its stream."""
    names = [name for name in arena.cluster.daemons if name.startswith("ztunnel-")]
    return [dict(_status(arena, name).get("xds", {})) for name in names]


def _status(arena: Arena, daemon: str) -> dict[str, Any]:
    """Nothing while it is too busy to answer."""
    try:
        return dict(arena.cluster.ask(daemon, "/status"))
    except PeerError:
        return {}


def _wait_idle(arena: Arena) -> None:
    """The agents read the documents, too, and the control plane may still be translating."""
    readers = [p.pid for name, p in arena.cluster.daemons.items() if not name.startswith("ztunnel-")]

    def idle() -> bool:
        before = sum(map(process_cpu_s, readers))
        time.sleep(LOOK_S)
        return sum(map(process_cpu_s, readers)) - before < IDLE_SHARE * LOOK_S

    wait_until("the agents have read the world", idle, READ_S)
