"""A directory of YAML or JSON files, looked at when a bell rings, and from time to time without: no mount, editor or
symlink swap can hide a change from a stat.

Owns when a file is whole enough to be read. Latency of a change: two looks and the settling interval between them, and
one rest where nothing rang; cost when nothing changes: one stat per file and rest.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from controlplane.documents import MAX_FILE_BYTES, Parsed, broken, parse
from controlplane.sources.base import Contents, News
from mesh.bell import Bell
from mesh.errors import OperatorError
from mesh.membership import is_document, is_hidden

# Between two looks when nothing rings; longer where a look is much work, so that looking costs a twentieth of a core.
POLL_S: Final = 0.03
LOOKS_SHARE: Final = 0.05
LONGEST_S: Final = 0.5
# However often it rings.
RUNG_SHARE: Final = 0.2
# Two equal looks in a row this far apart: a writer that is still busy is not read in the middle.
SETTLE_S: Final = 0.02
MAX_SETTLES: Final = 4


class Stamp(NamedTuple):
    """A file's state as far as stat tells; the target's, where it is a symlink (Kubernetes swaps those)."""

    modified_ns: int
    changed_ns: int
    size: int
    inode: int
    device: int


UNKNOWN: Final = Stamp(0, 0, 0, 0, 0)
Stamps = dict[str, Stamp]


def rest_s(look_s: float) -> float:
    """`look_s`: what the last look took of a processor. What it waited for one is no work: it would be counted twenty
    times over as soon as the machine, or we, have something to do."""
    return min(max(POLL_S, look_s / LOOKS_SHARE), LONGEST_S)


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


class FileSource:
    """`directory` and everything below, without hidden files and directories (`..data` of a ConfigMap included)."""

    def __init__(self, directory: Path, loader: Loader | None = None, rest: Callable[[float], float] = rest_s) -> None:
        """`loader`: whoever judges each file there and then spares the memory of all the others' trees, some 40 KB a
        document. `rest`: see `rest_s`."""
        self._directory, self._load, self._rest = directory, loader or one_by_one(), rest
        self._bell: Bell | None = None
        self._stamps: Stamps = {}
        self._contents: dict[str, Parsed] = {}

    def read(self) -> Contents:
        try:
            os.listdir(self._directory)
        except OSError as error:
            raise OperatorError(f"cannot be read: {error.strerror}", where=str(self._directory)) from None
        return self._take(self._scan())

    async def changes(self) -> AsyncIterator[News]:
        rung = False
        with Bell() as self._bell:
            while True:
                stamps, look_s = await asyncio.to_thread(self._look)
                if stamps != self._stamps:
                    yield News(await asyncio.to_thread(self._take, await self._settled(stamps)))
                if rung:
                    await asyncio.sleep(look_s / RUNG_SHARE)
                rung = await self._bell.rung(self._rest(look_s))

    async def _settled(self, stamps: Stamps) -> Stamps:
        for _ in range(MAX_SETTLES):
            await asyncio.sleep(SETTLE_S)
            again = await asyncio.to_thread(self._scan)
            if again == stamps:
                break
            stamps = again
        return stamps

    def _look(self) -> tuple[Stamps, float]:
        """And the seconds that it took of a processor."""
        began = time.thread_time()
        return self._scan(), time.thread_time() - began

    def _scan(self) -> Stamps:
        return dict(self._walk(str(self._directory), set()))

    def _walk(self, directory: str, visited: set[tuple[int, int]]) -> Iterator[tuple[str, Stamp]]:
        """Files in the order of their names. A directory that cannot be listed keeps its files, and shows up itself."""
        if self._bell:
            self._bell.listen(directory)  # before it is listed: what comes between rings
        try:
            status = os.stat(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            yield directory, UNKNOWN
            yield from (each for each in self._stamps.items() if each[0].startswith(directory + os.sep))
            return
        if (status.st_dev, status.st_ino) in visited:
            return  # a symlink to where we came from
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.is_dir() and not is_hidden(entry.name):
                yield from self._walk(entry.path, visited)
            elif is_document(entry.name) and (stamp := _stamp(entry.path)):
                yield entry.path, stamp

    def _take(self, stamps: dict[str, Stamp]) -> Contents:
        with without_collector():
            contents = self._parsed(stamps)
        self._stamps, self._contents = stamps, contents
        return dict(contents)

    def _parsed(self, stamps: dict[str, Stamp]) -> dict[str, Parsed]:
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


def _stamp(path: str) -> Stamp | None:
    """None: it went between listing and looking, or is a link to nowhere."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN
    return Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)


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
