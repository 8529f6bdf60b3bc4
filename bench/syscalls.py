"""System calls of each tunnel end per unit of work, counted by strace over a run of its own after the timed ones."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.cases import CASES, Case
from bench.contenders import Arena, Contender
from bench.measure import result_of, units_of
from lab.processes import wait_until

SECONDS = 1.0
MOST_SHOWN = 5
"""Calls by name in a table's cell."""


@dataclass(frozen=True, slots=True)
class Calls:
    """`ends`: per end, client's first, how often each call was made per GiB, request or connection."""

    case: str
    contender: str
    unit: str
    ends: tuple[dict[str, float], ...]

    @property
    def total(self) -> float:
        return sum(map(_sum, self.ends))


def count(pairs: Sequence[tuple[Arena, Contender]], say: Callable[[str], None]) -> list[Calls]:
    """Every counted case against everybody who has tunnel ends."""
    wanted = [case for case in CASES if case.counted]
    if not shutil.which("strace"):
        say("system calls are not counted: strace is not installed")
        return []
    say("system calls: " + ", ".join(case.name for case in wanted))
    return [_count(arena, c, case) for case in wanted for arena, c in pairs if c.ends[case.place].pids]


def _count(arena: Arena, contender: Contender, case: Case) -> Calls:
    load = arena.load_for(contender, case)
    with TemporaryDirectory(dir=arena.cluster.layout.dir) as scratch:
        summaries = [Path(scratch) / str(pid) for pid in load.ends.pids]
        tracers = [_attach(pid, out) for pid, out in zip(load.ends.pids, summaries, strict=True)]
        try:
            result = result_of(load.start(case, SECONDS), f"{contender.name}, {case.name} under strace", 60)
        finally:
            for tracer in tracers:
                tracer.send_signal(signal.SIGINT)
                tracer.wait(30)
        return Calls(case.name, contender.name, case.unit, tuple(_per_unit(p, case, result) for p in summaries))


def _attach(pid: int, out: Path) -> subprocess.Popen[bytes]:
    command = ["strace", "-f", "-c", "-qq", "-o", str(out), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(f"strace watches process {pid}", lambda: tracer.poll() is not None or _traced(pid), 10.0)
    return tracer


def _traced(pid: int) -> bool:
    """Every thread of it."""
    states = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    return all("TracerPid:\t0\n" not in state for state in states)


def _per_unit(summary: Path, case: Case, result: dict[str, Any]) -> dict[str, float]:
    units = units_of(case, result) * (1 if case.unit == "GiB" else 1e6)
    return {name: number / units for name, number in parse(summary.read_text()).items()} if units else {}


def parse(summary: str) -> dict[str, int]:
    """The calls by name in strace -c's table: `% time`, seconds, µs per call, calls, errors (may be empty), name."""
    rows = [line.split() for line in summary.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) in (5, 6) and row[3].isdecimal() and row[-1] != "total"}


def rows(calls: Sequence[Calls]) -> list[list[str]]:
    return [
        [one.case, one.contender, *(_cell(one, end) for end in range(2)), f"{one.total:.{_digits(one)}f}"]
        for one in calls
    ]


HEAD = ["system calls per unit", "contender", "client's end", "server's end", "both"]


def _cell(one: Calls, end: int) -> str:
    if end >= len(one.ends):
        return "–"
    calls, digits = one.ends[end], _digits(one)
    often = sorted(calls.items(), key=lambda item: -item[1])[:MOST_SHOWN]
    names = ", ".join(f"{name} {number:.{digits}f}" for name, number in often)
    return f"{_sum(calls):.{digits}f}: {names}"


def _sum(calls: dict[str, float]) -> float:
    return sum(calls.values())


def _digits(one: Calls) -> int:
    return 0 if one.unit == "GiB" else 1
