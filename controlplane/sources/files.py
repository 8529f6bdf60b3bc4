"""A directory of YAML or JSON files, looked at when a bell rings, and from time to time without: no mount, editor or
symlink swap can hide a change from a stat.

Owns when a file is whole enough to be read. Latency of a change: two looks and the settling interval between them, and
one rest where nothing rang; cost when nothing changes: one look (`mesh.directory`) a rest.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from controlplane.documents import MAX_FILE_BYTES, Parsed, broken, parse
from controlplane.sources.base import Contents, News
from mesh.bell import Bell
from mesh.directory import RUNG_SHARE, UNKNOWN, Look, Stamp, Stamps, look, rest_s
from mesh.errors import OperatorError

# Between two looks when nothing rings; longer where a look is much work.
POLL_S: Final = 0.03
# Two equal looks in a row this far apart: a writer that is still busy is not read in the middle.
SETTLE_S: Final = 0.02
MAX_SETTLES: Final = 4

Loader = Callable[[Sequence[str], int], dict[str, Parsed]]
"""What is in these files, which have so many bytes together. Never raises."""


def one_by_one(seen: Callable[[Parsed], object] = lambda _: None) -> Loader:
    """`seen` is called with each file right after it was parsed."""

    def loaded(paths: Sequence[str], _: int) -> dict[str, Parsed]:
        found: dict[str, Parsed] = {}
        for path in paths:
            found[path] = load(path)
            seen(found[path])
        return found

    return loaded


def _rest_s(last: Look) -> float:
    return rest_s(last, POLL_S)


class FileSource:
    """`directory` and everything below, without hidden files and directories (`..data` of a ConfigMap included)."""

    def __init__(self, directory: Path, loader: Loader | None = None, rest: Callable[[Look], float] = _rest_s) -> None:
        """`loader`: whoever judges each file there and then spares the memory of all the others' trees, some 40 KB a
        document. `rest`: how long, after such a look."""
        self._directory, self._load, self._rest = directory, loader or one_by_one(), rest
        self._bell = Bell()
        self._stamps: Stamps = {}
        self._contents: dict[str, Parsed] = {}

    def read(self) -> Contents:
        try:
            os.listdir(self._directory)
        except OSError as error:
            raise OperatorError(f"cannot be read: {error.strerror}", where=str(self._directory)) from None
        return self._take(self._look().stamps)

    async def changes(self) -> AsyncIterator[News]:
        rung = False
        with Bell() as self._bell:
            while True:
                last = await asyncio.to_thread(self._look)
                if last.stamps != self._stamps:
                    yield News(await asyncio.to_thread(self._take, await self._settled(last.stamps)))
                if rung:
                    await asyncio.sleep(last.work_s / RUNG_SHARE)
                rung = await self._bell.rung(self._rest(last))

    async def _settled(self, stamps: Stamps) -> Stamps:
        for _ in range(MAX_SETTLES):
            await asyncio.sleep(SETTLE_S)
            again = (await asyncio.to_thread(self._look)).stamps
            if again == stamps:
                break
            stamps = again
        return stamps

    def _look(self) -> Look:
        """A directory that cannot be listed keeps its files, and shows up itself."""
        found = look(str(self._directory), self._bell)
        stamps: dict[str, Stamp] = {}
        for path, stamp in found.stamps.items():
            stamps[path] = stamp
            if stamp == UNKNOWN:
                stamps |= {each: kept for each, kept in self._stamps.items() if each.startswith(path + os.sep)}
        return found._replace(stamps=stamps)

    def _take(self, stamps: Stamps) -> Contents:
        with without_collector():
            contents = self._parsed(stamps)
        self._stamps, self._contents = stamps, contents
        return dict(contents)

    def _parsed(self, stamps: Stamps) -> dict[str, Parsed]:
        before, held = self._stamps, self._contents
        fresh = [path for path, stamp in stamps.items() if path not in held or before.get(path) != stamp]
        loaded = self._load(fresh, sum(stamps[path].size for path in fresh))
        return {path: loaded.get(path) or held[path] for path in stamps}


@contextmanager
def without_collector() -> Iterator[None]:
    """Trees have no cycles to be found; looking for some again and again is three quarters of reading a big world."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load(path: str) -> Parsed:
    """Never raises. Only regular files: opening a FIFO would wait forever."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return broken(path, 0, f"cannot be read: {error.strerror}")
    if len(text or b"") > MAX_FILE_BYTES:
        return broken(path, 0, f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return parse(path, text or b"")
