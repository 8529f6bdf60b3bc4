"""The doors of `profiler.py`, which is loaded when somebody asks: few processes are ever asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from mesh.profiler import Native

LONGEST_S: Final = 300.0
Found = Iterable[tuple[str, list[tuple[str, str, int]], int]]


def routes(native: Callable[[float, int], Found] | None = None) -> list[web.RouteDef]:
    """Go's paths, since people know them; `?seconds=`. Not for a door that others than root can reach.

    `native`: (seconds, hertz) -> (thread, (function, file, line) from the outermost on, how often it was seen).
    """

    async def profile(request: web.Request) -> web.Response:
        from mesh import profiler

        return await _taken(request, lambda seconds: profiler.cpu(seconds, _stacks(native) if native else None))

    async def heap(request: web.Request) -> web.Response:
        from mesh import profiler

        return await _taken(request, profiler.heap)

    return [web.get("/debug/pprof/profile", profile), web.get("/debug/pprof/heap", heap)]


def _stacks(native: Callable[[float, int], Found]) -> Native:
    from mesh.pprof import Frame

    def taken(seconds: float, hertz: int) -> list[tuple[tuple[Frame, ...], int]]:
        found = native(seconds, hertz)
        return [((Frame(thread), *(Frame(*each) for each in frames)), times) for thread, frames, times in found]

    return taken


async def _taken(request: web.Request, kind: Callable[[float], bytes]) -> web.Response:
    try:
        body = await asyncio.to_thread(kind, _seconds(request.query.get("seconds", "10")))
    except ValueError as error:
        return web.Response(status=400, text=f"{error}\n")
    return web.Response(body=body, content_type="application/octet-stream")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_S:
        raise ValueError(f"seconds: {text!r} is not a number up to {LONGEST_S:g}")
    return seconds
