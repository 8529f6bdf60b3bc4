"""One sample: a load, what each tunnel end and the generator spent on it, and whether something disturbed it."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cases import GIB, Case
from mesh.errors import OperatorError

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count() or 1
DISTURBED = 0.10
"""Share of the machine's CPU time that others may take in a clean sample."""
IDLE_S = 1.0
"""How long connections are idle before the memory that they cost is read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`rate`: Gbit/s or operations per second; 0 where the load is paced. `p50`, `p99`: microseconds.
    `cpu`: both tunnel ends, seconds per GiB or microseconds per operation; `generator`: client and server, the same.
    `memory`: KiB per connection and end; `resident`: MiB per end before the load. `beside`: Gbit/s of the bulk stream
    that shared the tunnel. `idle_p99`, `loaded_s`: before a world was loaded, and how
    long that took. `others`: share of the machine's CPU that nobody of ours used."""

    case: str
    contender: str
    round: int
    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    cpu_ends: tuple[float, ...] = ()
    generator: float = 0.0
    memory: float = 0.0
    resident: float = 0.0
    fds: float = 0.0
    beside: float = 0.0
    idle_p99: float = 0.0
    loaded_s: float = 0.0
    errors: int = 0
    others: float = 0.0
    disturbed: bool = False
    retakes: int = 0

    @property
    def of_idle(self) -> float:
        return self.p99 / self.idle_p99 if self.idle_p99 else 0.0


@dataclass(slots=True)
class Ends:
    """The processes of one contender's two tunnel ends; empty for direct.

    `idle_kib`: what they held together before any load, so that what an allocator keeps after one is not forgotten.
    `idle_rss_mib`: the larger end's resident memory then.
    """

    pids: tuple[int, ...] = field(default=())
    idle_kib: float = 0.0
    idle_rss_mib: float = 0.0

    def note_idle(self) -> None:
        self.idle_kib = self.memory_kib()
        self.idle_rss_mib = max((smaps_kib(pid, "Rss:") for pid in self.pids), default=0.0) / 1024

    def cpu_s(self) -> list[float]:
        return [process_cpu_s(pid) for pid in self.pids]

    def memory_kib(self) -> float:
        """Private and written to: a share of common pages (PSS) would shrink when somebody else maps the program."""
        return sum(smaps_kib(pid, "Private_Dirty:") for pid in self._all())

    def fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._all())

    def _all(self) -> list[int]:
        return [one for pid in self.pids for one in (pid, *_descendants(pid))]


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads, also ended ones, and of all descendants.

    The kernel's CPU clock of another process (clock_getcpuclockid(3)) counts nanoseconds; /proc/PID/stat would have a
    grain of 10 ms, and only children that have ended and were waited for are left to it.
    """
    own = time.clock_gettime((~pid << 3) | 2)
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return own + (int(fields[13]) + int(fields[14])) * TICK_S + sum(map(_child_cpu_s, _children(pid)))


def _child_cpu_s(pid: int) -> float:
    """Nothing of one that has ended meanwhile: its parent's counters have it from then on."""
    with suppress(OSError):
        return process_cpu_s(pid)
    return 0.0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):  # it has ended meanwhile
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _descendants(pid: int) -> list[int]:
    return [one for child in _children(pid) for one in (child, *_descendants(child))]


def smaps_kib(pid: int, what: str) -> float:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as smaps:
        return sum(float(line.split()[1]) for line in smaps if line.startswith(what))


def machine_busy_s() -> float:
    """CPU seconds that anybody used since boot (proc(5), /proc/stat: user nice system irq softirq steal)."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_S


Run = Callable[[Sequence[str]], subprocess.Popen[str]]
"""Starts the load generator in the client's pod."""


@dataclass(frozen=True, slots=True)
class Load:
    """How to start the generator, "IP PORT" of its server, the processes of the tunnel and of the server."""

    run: Run
    target: str
    ends: Ends
    servers: tuple[int, ...]

    def start(self, case: Case, seconds: float, *turn: int) -> subprocess.Popen[str]:
        """`turn`: its number and of how many, where generators take turns."""
        first = ["turns", *map(str, turn), str(case.turn_ms)] if turn else []
        return self.run([*first, case.mode, *self.target.split(), *map(str, case.args), str(seconds)])

    def bulk(self, seconds: float) -> subprocess.Popen[str]:
        return self.run(["send", *self.target.split(), "1", str(seconds)])


def result_of(load: subprocess.Popen[str], what: str, timeout_s: float) -> dict[str, Any]:
    """The generator's JSON. Raises OperatorError: it failed, which is a contender that does not carry this load."""
    out, _ = load.communicate(timeout=timeout_s)
    if load.returncode:
        raise OperatorError(f"{what}: the load generator ended with code {load.returncode}; its own words are above")
    found: dict[str, Any] = json.loads(out)
    return found


def units_of(case: Case, result: dict[str, Any]) -> float:
    """GiB, or millions of operations: CPU then comes out in seconds per GiB, or in microseconds."""
    return float(result["total"] / GIB if case.unit == "GiB" else result["total"] * 1e-6)


class Meter:
    """What one contender's processes use, from now on."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._servers, self._ends = _total_cpu_s(load.servers), load.ends.cpu_s()

    def ends(self) -> list[float]:
        return [after - before for after, before in zip(self._load.ends.cpu_s(), self._ends, strict=True)]

    def server(self) -> float:
        return _total_cpu_s(self._load.servers) - self._servers


def take(case: Case, loads: dict[str, Load], round_: int, seconds: float) -> list[Sample]:
    """Runs one case against these contenders: several at the same time take turns, and are disturbed together."""
    if case.mode == "hold":
        return [_hold(case, name, round_, load) for name, load in loads.items()]
    seconds *= case.longer
    patience_s = seconds * len(loads) * 5 + 30
    busy, meters = machine_busy_s(), {name: Meter(load) for name, load in loads.items()}
    began = time.monotonic()
    bulks = {name: load.bulk(seconds + 0.2) for name, load in loads.items() if case.behind_bulk}
    turns = {name: (turn, len(loads)) if case.turn_ms else () for turn, name in enumerate(loads)}
    running = {name: load.start(case, seconds, *turns[name]) for name, load in loads.items()}
    results = {name: result_of(one, f"{name}, {case.name}", patience_s) for name, one in running.items()}
    besides = {name: result_of(one, f"{name}, bulk beside {case.name}", patience_s) for name, one in bulks.items()}
    wall = time.monotonic() - began
    spent = {name: meter.ends() for name, meter in meters.items()}
    generated = {name: results[name]["cpu_s"] + meter.server() for name, meter in meters.items()}
    for name, beside in besides.items():
        generated[name] += beside["cpu_s"]
    ours = sum(generated.values()) + sum(map(sum, spent.values()))
    others = (machine_busy_s() - busy - ours) / (wall * CORES)
    return [
        _sample(case, name, round_, result, besides.get(name), spent[name], generated[name], others)
        for name, result in results.items()
    ]


def _sample(
    case: Case,
    contender: str,
    round_: int,
    result: dict[str, Any],
    beside: dict[str, Any] | None,
    spent: Sequence[float],
    generated: float,
    others: float,
) -> Sample:
    units = 0.0 if beside else units_of(case, result)
    per_unit = tuple(s / units if units else 0.0 for s in spent)
    return Sample(
        case.name,
        contender,
        round_,
        rate=_rate(case, result),
        p50=result["p50_us"],
        p99=result["p99_us"],
        cpu=sum(per_unit),
        cpu_ends=per_unit,
        generator=generated / units if units else 0.0,
        beside=beside["bytes"] * 8e-9 / beside["seconds"] if beside else 0.0,
        errors=result["errors"],
        others=others,
        disturbed=others > DISTURBED,
    )


def _total_cpu_s(pids: Sequence[int]) -> float:
    return sum(process_cpu_s(pid) for pid in pids)


def _rate(case: Case, result: dict[str, Any]) -> float:
    if case.mode == "cold":
        return 0.0  # most of its time is pauses
    if case.unit == "GiB":
        return float(result["bytes"] * 8e-9 / result["seconds"])
    return float(result["ops"] / result["seconds"])


def _hold(case: Case, contender: str, round_: int, load: Load) -> Sample:
    ends, fds = load.ends, load.ends.fds()
    generator = load.run(["hold", *load.target.split(), *map(str, case.args)])
    assert generator.stdout
    line = generator.stdout.readline()
    if not line:
        raise OperatorError(
            f"{contender}, {case.name}: the connections could not be opened; the generator's words are above"
        )
    per_end = json.loads(line)["ops"] * max(1, len(ends.pids))
    time.sleep(IDLE_S)
    grown, opened = (ends.memory_kib() - ends.idle_kib) / per_end, (ends.fds() - fds) / per_end
    generator.communicate(timeout=60)
    return Sample(case.name, contender, round_, memory=grown, fds=opened, resident=ends.idle_rss_mib)
