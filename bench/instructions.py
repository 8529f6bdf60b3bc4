"""User instructions of the tunnel's pure functions, counted by callgrind: exact enough to need no quiet machine.

Each is run N, 2 N and 3 N times; the two differences divided by N are two figures without the set-up.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import OperatorError

TIMES = 200
BINARY = Path(__file__).parent.parent / "target" / "release" / "examples" / "instructions"
HEAD = ["instructions per call", "user instructions", "±"]


@dataclass(frozen=True, slots=True)
class Count:
    """`spread`: half the difference of the two figures."""

    name: str
    instructions: float
    spread: float


def count(say: Callable[[str], None]) -> list[Count]:
    if not shutil.which("valgrind"):
        say("instructions are not counted: valgrind is not installed")
        return []
    if not BINARY.exists():
        say("instructions are not counted: tools/setup.sh bench builds what is needed for it")
        return []
    say("instructions of pure functions under callgrind")
    names = subprocess.run([str(BINARY)], capture_output=True, text=True, check=True).stdout.splitlines()
    return [_count(name) for name in names]


def _count(name: str) -> Count:
    once, twice, thrice = (_collected(name, times * TIMES) for times in (1, 2, 3))
    first, second = (twice - once) / TIMES, (thrice - twice) / TIMES
    return Count(name, (first + second) / 2, abs(second - first) / 2)


def _collected(name: str, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(BINARY), name, str(times)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise OperatorError(f"callgrind of {name!r} failed: {done.stderr.strip().splitlines()[-1]}")
    return int(found[1])


def rows(counts: Sequence[Count]) -> list[list[str]]:
    return [[one.name, f"{one.instructions:.0f}", f"{one.spread:.0f}"] for one in counts]
