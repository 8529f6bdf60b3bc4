"""The kernel's word that something changed in a directory (inotify), so that nobody waits for the next look at it.

Owns no truth: who hears it looks as always, and looks from time to time without it, because a change made on another
machine, or behind a symlink, does not ring, nor does anything where the kernel has no watch left.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Self

from mesh.membership import is_document

# inotify(7). A file rings when its writer closes it, not at every write.
_ATTRIB, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x4, 0x8, 0xC0, 0x100, 0x200, 0x400, 0x800
_CHANGES: Final = _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_OVERFLOW, _IS_DIRECTORY, _ONLY_DIRECTORIES = 0x4000, 0x4000_0000, 0x0100_0000
_EVENT: Final = struct.Struct("iIII")
_MOST_BYTES: Final = 1 << 16
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Bell:
    """Rings in the loop that enters it, until left: there it is asked."""

    def __init__(self, kernel: Any = _LIBC) -> None:
        """`kernel`: has inotify_init1 and inotify_add_watch."""
        self._kernel = kernel
        self._rung = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = self._kernel.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def listen(self, directory: str) -> bool:
        """From now on, not below it; a second time changes nothing. From any thread. False: nothing there will ring."""
        if self._fd < 0:
            return False
        path = os.fsencode(directory)
        return bool(self._kernel.inotify_add_watch(self._fd, path, _CHANGES | _ONLY_DIRECTORIES) >= 0)

    async def rung(self, at_most_s: float) -> bool:
        """Whether it did, since it was last asked, before the time was over."""
        await self.wait_rung(at_most_s)
        return self.rung_nowait()

    async def wait_rung(self, at_most_s: float) -> bool:
        """The same, but it is not asked: the answer stays."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                return await self._rung.wait()
        return self._rung.is_set()

    def rung_nowait(self) -> bool:
        """Whether it did, since it was last asked. Who waits hears of it, too."""
        if self._fd >= 0:
            self._heard()
        rung = self._rung.is_set()
        self._rung.clear()
        return rung

    def _heard(self) -> None:
        with suppress(BlockingIOError):
            while True:
                for watch, mask, name in _events(os.read(self._fd, _MOST_BYTES)):
                    if mask & _MOVE_SELF:
                        self._kernel.inotify_rm_watch(self._fd, watch)  # whoever finds it elsewhere listens again
                    if _matters(mask, name):
                        self._rung.set()


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Watch, mask and name of each; the name is "" when it is about the directory itself."""
    at = 0
    while at < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size + length
        yield watch, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))


def _matters(mask: int, name: str) -> bool:
    """Not what a writer prepares beside the file that it will replace."""
    kubernetes_link = name.startswith("..")
    return bool(mask & (_OVERFLOW | _IS_DIRECTORY)) or not name or kubernetes_link or is_document(name)
