"""A directory of YAML or JSON files, polled: no mount, editor or symlink swap can hide a change from a stat.

Owns when a file is whole enough to be read. Latency of a change: one poll and one settling
interval, 50 to 80 ms; cost when nothing changes: one stat per file and poll.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from controlplane.documents import MAX_FILE_BYTES, Parsed, broken, parse
from controlplane.sources.base import Contents, News
from mesh.errors import OperatorError
from mesh.membership import is_document, is_hidden

# Between two looks; longer where a look takes long, so that looking never costs more than a twentieth of a core.
POLL_S: Final = 0.03
LOOKS_SHARE: Final = 0.05
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

    def __init__(self, directory: Path, loader: Loader | None = None) -> None:
        """`loader`: whoever judges each file there and then spares the memory of all the others' trees, some 40 KB a
        document."""
        self._directory, self._load = directory, loader or one_by_one()
        self._stamps: dict[str, Stamp] = {}
        self._contents: dict[str, Parsed] = {}

    def read(self) -> Contents:
        try:
            os.listdir(self._directory)
        except OSError as error:
            raise OperatorError(f"cannot be read: {error.strerror}", where=str(self._directory)) from None
        return self._take(self._scan())

    async def changes(self) -> AsyncIterator[News]:
        clock, took = asyncio.get_running_loop().time, 0.0
        while True:
            await asyncio.sleep(max(POLL_S, took / LOOKS_SHARE))
            began = clock()
            stamps = await asyncio.to_thread(self._scan)
            took = clock() - began
            if stamps != self._stamps:
                yield News(await asyncio.to_thread(self._take, await self._settled(stamps)))

    async def _settled(self, stamps: dict[str, Stamp]) -> dict[str, Stamp]:
        for _ in range(MAX_SETTLES):
            await asyncio.sleep(SETTLE_S)
            again = await asyncio.to_thread(self._scan)
            if again == stamps:
                break
            stamps = again
        return stamps

    def _scan(self) -> dict[str, Stamp]:
        return dict(self._walk(str(self._directory), set()))

    def _walk(self, directory: str, visited: set[tuple[int, int]]) -> Iterator[tuple[str, Stamp]]:
        """Files in the order of their names. A directory that cannot be listed keeps its files, and shows up itself."""
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
