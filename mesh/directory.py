"""A directory of documents, as stat tells of it: what is there, and when to look again.

Owns the walk that all who read documents share, and its price. What is in a file, and when it is whole enough, is its
reader's affair.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

from mesh.bell import Bell
from mesh.membership import is_document, is_hidden

# Shares of a core that looking costs, and the longest rests: where every change that is made on this machine rings, and
# where some do not.
HEARD_SHARE: Final = 0.002
HEARD_LONGEST_S: Final = 5.0
UNHEARD_SHARE: Final = 0.05
UNHEARD_LONGEST_S: Final = 0.5
# However often it rings.
RUNG_SHARE: Final = 0.2
# Of who can wait.
POLL_S: Final = 0.25
# From a ring to a look: who writes one file often writes another right after.
GATHER_S: Final = 0.02


class Stamp(NamedTuple):
    """A file's state as far as stat tells; the target's, where it is a symlink (Kubernetes swaps those)."""

    modified_ns: int
    changed_ns: int
    size: int
    inode: int
    device: int
    mode: int


UNKNOWN: Final = Stamp(0, 0, 0, 0, 0, 0)
Stamps = Mapping[str, Stamp]


class Look(NamedTuple):
    """`hears`: a change that is made on this machine will ring. `work_s`: what it took of a processor. What it waited
    for one is no work: it would be counted many times over as soon as the machine, or we, have something to do."""

    stamps: dict[str, Stamp]
    hears: bool
    work_s: float


def look(directory: str, bell: Bell) -> Look:
    """In the order of names; a directory that cannot be listed shows up itself, as UNKNOWN. From any thread. Cost: one
    stat per file."""
    began = time.thread_time()
    walk = _Walk(bell)
    stamps = dict(walk.through(directory))
    hears = walk.hears and os.path.realpath(directory) == os.path.abspath(directory)
    return Look(stamps, hears, time.thread_time() - began)


def rest_s(last: Look, shortest_s: float = POLL_S) -> float:
    """Until the next look, if nothing rings."""
    share, longest_s = (HEARD_SHARE, HEARD_LONGEST_S) if last.hears else (UNHEARD_SHARE, UNHEARD_LONGEST_S)
    return min(max(shortest_s, last.work_s / share), longest_s)


class _Walk:
    def __init__(self, bell: Bell) -> None:
        self.hears = True
        self._bell, self._visited = bell, set[tuple[int, int]]()

    def through(self, directory: str) -> Iterator[tuple[str, Stamp]]:
        self.hears &= self._bell.listen(directory)  # before it is listed: what comes between rings
        try:
            status = os.stat(directory)
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            yield directory, UNKNOWN
            return
        if (status.st_dev, status.st_ino) in self._visited:
            return  # a symlink to where we came from
        self._visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            yield from self._at(entry)

    def _at(self, entry: os.DirEntry[str]) -> Iterator[tuple[str, Stamp]]:
        if is_hidden(entry.name):
            return
        self.hears &= not entry.is_symlink()  # where it leads may be written to, or something on the way there replaced
        if _leads_on(entry):
            yield from self.through(entry.path)
        elif is_document(entry.name) and (stamp := _stamp(entry.path)):
            yield entry.path, stamp


def _leads_on(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp(path: str) -> Stamp | None:
    """None: it went between listing and looking, or is a link to nowhere."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN
    times = status.st_mtime_ns, status.st_ctime_ns
    return Stamp(*times, status.st_size, status.st_ino, status.st_dev, status.st_mode)


class Directory:
    """The regular files among its documents. Looked at when a bell rings, and from time to time without; where there is
    none (also: before it is entered), whenever somebody asks. Not thread-safe: owned by the loop that enters it."""

    def __init__(self, path: Path, bell: Bell | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._bell, self._now = bell or Bell(), now
        self._files: Stamps = {}
        self._hears = False
        self._due = self._not_before = 0.0

    def __enter__(self) -> Self:
        self._bell.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.__exit__()
        self._hears = False

    def files(self) -> Stamps:
        """The same object as long as nothing changed. While it rings on and on, as of at most five looks' time ago."""
        now = self._now()
        if not self._hears or now >= self._due or (now >= self._not_before and self._bell.rung_nowait()):
            return self.files_now()
        return self._files

    def files_now(self) -> Stamps:
        """As `files`, but looks in any case."""
        self._bell.rung_nowait()
        last = look(str(self.path), self._bell)
        files = {path: stamp for path, stamp in last.stamps.items() if stat.S_ISREG(stamp.mode)}
        if files != self._files:
            self._files = files
        ended = self._now()
        self._hears, self._due, self._not_before = last.hears, ended + rest_s(last), ended + last.work_s / RUNG_SHARE
        return self._files

    async def wait_changed(self, seen: Stamps | None) -> Stamps:
        """Returns when the files are not those of `seen` (None: of nobody) any more."""
        while True:
            await asyncio.sleep(self._not_before - self._now())
            if (files := self.files()) is not seen:
                return files
            if await self._bell.wait_rung(self._due - self._now()):
                await asyncio.sleep(GATHER_S)
