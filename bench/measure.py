"""One sample: a load, the CPU that each tunnel end spent on it, and whether something else disturbed it."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bench.cases import GIB, Case

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
DISTURBED = 0.10
"""Share of the machine's CPU time that others may take in a clean sample."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`rate`: Gbit/s or operations per second. `cpu`: both tunnel ends, seconds per GiB or microseconds per operation.
    `memory`: KiB per connection and end. `p50`, `p99`: microseconds."""

    case: str
    contender: str
    round: int
    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    cpu_ends: tuple[float, ...] = ()
    memory: float = 0.0
    fds: float = 0.0
    generator_cpu_s: float = 0.0
    errors: int = 0
    disturbed: bool = False


@dataclass(slots=True)
class Ends:
    """The processes of one contender's two tunnel ends; empty for direct."""

    pids: tuple[int, ...] = field(default=())

    def cpu_s(self) -> list[float]:
        return [process_cpu_s(pid) for pid in self.pids]

    def memory_kib(self) -> float:
        return sum(resident_kib(pid) for pid in self.pids)

    def fds(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)


def process_cpu_s(pid: int) -> float:
    """User and system time of all threads, also ended ones (proc(5), stat fields 14 and 15; 10 ms grain)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def resident_kib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as smaps:
        return sum(float(line.split()[1]) for line in smaps if line.startswith(("Private_", "Pss:")) and "Pss" in line)


def machine_busy_s() -> float:
    """CPU seconds that anybody used since boot (proc(5), /proc/stat: user nice system irq softirq steal)."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_S


def own_cpu_s(processes: Iterable[int]) -> float:
    return sum(process_cpu_s(pid) for pid in processes)


Run = Callable[[Sequence[str]], subprocess.Popen[str]]
"""Starts the load generator in the client's pod."""


def take(
    case: Case, contender: str, round_: int, seconds: float, run: Run, target: str, ends: Ends, servers: Sequence[int]
) -> Sample:
    """Runs one case against one contender. `target` is "IP PORT"; `servers`: processes whose CPU is ours as well."""
    if case.mode == "hold":
        return _hold(case, contender, round_, run, target, ends)
    before, ends_before = machine_busy_s() - own_cpu_s(servers), ends.cpu_s()
    began = time.monotonic()
    load = run([case.mode, *target.split(), *map(str, case.args), str(seconds)])
    out, _ = load.communicate(timeout=seconds * 5 + 30)
    wall = time.monotonic() - began
    spent = [after - b for after, b in zip(ends.cpu_s(), ends_before, strict=True)]
    result = json.loads(out)
    others = machine_busy_s() - own_cpu_s(servers) - before - sum(spent) - result["cpu_s"]
    units = result["bytes"] / GIB if case.unit == "GiB" else result["ops"] / (result["seconds"] / seconds) * 1e-6
    per_unit = [s / units if units else 0.0 for s in spent]
    rate = result["bytes"] * 8e-9 / result["seconds"] if case.unit == "GiB" else result["ops"] / result["seconds"]
    return Sample(
        case.name,
        contender,
        round_,
        rate,
        result["p50_us"],
        result["p99_us"],
        sum(per_unit),
        tuple(per_unit),
        generator_cpu_s=result["cpu_s"],
        errors=result["errors"],
        disturbed=others > DISTURBED * wall * (os.cpu_count() or 1),
    )


def _hold(case: Case, contender: str, round_: int, run: Run, target: str, ends: Ends) -> Sample:
    memory, fds = ends.memory_kib(), ends.fds()
    load = run(["hold", *target.split(), *map(str, case.args)])
    assert load.stdout
    held = json.loads(load.stdout.readline())["ops"]
    per_end = held * max(1, len(ends.pids))
    grown, opened = (ends.memory_kib() - memory) / per_end, (ends.fds() - fds) / per_end
    load.communicate(timeout=60)
    return Sample(case.name, contender, round_, memory=grown, fds=opened)
