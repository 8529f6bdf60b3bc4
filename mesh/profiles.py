"""The doors of `profiler.py`, which is loaded when somebody asks: few processes are ever asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mesh.profiler import Native

LONGEST_S: Final = 300.0
Found = Iterable[tuple[str, list[tuple[str, str, int]], int]]


Kind = Callable[[str], Awaitable[bytes]]
"""Takes `seconds` as somebody wrote it. Raises ValueError: a sentence about that."""


def doors(native: Callable[[float, int], Found] | None = None) -> dict[str, Kind]:
    """By path, Go's, since people know them; `?seconds=`. Not for a door that others than root can reach.

    `native`: (seconds, hertz) -> (thread, (function, file, line) from the outermost on, how often it was seen).
    """

    async def profile(seconds: str) -> bytes:
        from mesh import profiler

        stacks = _stacks(native) if native else None
        return await asyncio.to_thread(lambda length: profiler.cpu(length, stacks), _seconds(seconds))

    async def heap(seconds: str) -> bytes:
        from mesh import profiler

        return await asyncio.to_thread(profiler.heap, _seconds(seconds))

    return {"/debug/pprof/profile": profile, "/debug/pprof/heap": heap}


def _stacks(native: Callable[[float, int], Found]) -> Native:
    from mesh.pprof import Frame

    def taken(seconds: float, hertz: int) -> list[tuple[tuple[Frame, ...], int]]:
        found = native(seconds, hertz)
        return [((Frame(thread), *(Frame(*each) for each in frames)), times) for thread, frames, times in found]

    return taken


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_S:
        raise ValueError(f"seconds: {text!r} is not a number up to {LONGEST_S:g}")
    return seconds
