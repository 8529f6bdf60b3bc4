"""The demo's report: every line is something measured in this run, and says when it is not what it should be."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from mesh.errors import MeshError

_WIDTH = 46


class Report:
    """Prints as it goes; remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.checks = 0
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def note(self, text: str) -> None:
        print(f"  {text}".rstrip(), flush=True)

    def check(self, what: str, seen: str, fine: bool, expected: str = "") -> None:
        """One measured line. `expected` is shown when it is not fine."""
        self.checks += 1
        print(f"  {_paint('ok  ', 32) if fine else _paint('FAIL', 31)} {what:<{_WIDTH}} {seen}", flush=True)
        if not fine:
            self.failed.append(what)
            print(f"       {'expected':>{_WIDTH}} {expected or 'otherwise'}", flush=True)

    def equal(self, what: str, seen: Any, expected: Any) -> None:
        self.check(what, _words(seen), seen == expected, _words(expected))

    def attempt(self, title: str, step: Callable[[], None]) -> None:
        """Runs a part of the demo; its failure is a failed line, and the next part still runs."""
        self.title(title)
        try:
            step()
        except MeshError as error:
            self.check("this part ran to its end", str(error), False, "no error")

    def summary(self) -> int:
        """Prints the last line; the exit code."""
        took = time.monotonic() - self._began
        bad = f", {len(self.failed)} FAILED: {'; '.join(self.failed)}" if self.failed else ", all as expected"
        print(f"\n{self.checks} checks in {took:.1f} s{bad}", flush=True)
        return 1 if self.failed else 0


def _words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2f} ms"


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _paint(text: str, colour: int) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
