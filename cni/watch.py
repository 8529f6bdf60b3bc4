"""Keeps the plugin installed: what another CNI, or anybody, changes in the two directories is mended at once.

The kernel tells of changes (inotify); without it, or when a directory is another one now, everything is looked at every
few seconds. Owns when to look; what to do is `install.py`'s.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from cni.conflist import InstallError

LOOK_S: Final = 5.0
PAUSE_S: Final = 0.1
"""Between two repairs, so that a war with somebody who takes us out costs nobody a processor."""
_CHANGES: Final = 0x4 | 0x8 | 0x40 | 0x80 | 0x200 | 0x400 | 0x800
"""IN_ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, DELETE, DELETE_SELF, MOVE_SELF."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Bell(Protocol):
    def wait(self, directories: Iterable[Path]) -> None:
        """Returns when something changed in one of them, or after LOOK_S."""


class Inotify:
    """Two watches are put again at every look: on the same directory that changes nothing."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def look_at(self, directories: Iterable[Path]) -> None:
        for directory in directories:
            _libc.inotify_add_watch(self._fd, os.fsencode(directory), _CHANGES)

    def wait(self, directories: Iterable[Path]) -> None:
        self.look_at(directories)
        readable = [self._fd] if self._fd >= 0 else []
        if select.select(readable, [], [], LOOK_S)[0]:
            time.sleep(PAUSE_S)
            os.read(self._fd, 65536)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def watch(ensure: Callable[[], list[str]], directories: list[Path], bell: Bell, say: Callable[[str], None]) -> None:
    """For ever. `ensure` mends and tells what it mended; a trouble is told once. Looks after every bell: what happens
    between a look and the next wait rings at once."""
    trouble = ""
    while True:
        try:
            for phrase in ensure():
                say(phrase)
            trouble = ""
        except InstallError as error:
            if str(error) != trouble:
                say(str(error))
            trouble = str(error)
        bell.wait(directories)
