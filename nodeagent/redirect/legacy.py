"""The legacy tables of a namespace as `iptables-save` lists them, read by python-iptables in a child process.

python-iptables calls libiptc and the extensions of libxtables by ctypes: what it does not understand may end its
process, or keep it. The agent sees a text, or a reason and takes `iptables-legacy-save` instead.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from mesh import log
from mesh.errors import MeshError
from nodeagent.redirect import diversions, iptables, xtables
from nodeagent.redirect.legacy_child import CANNOT, END, tables
from nodeagent.redirect.plan import Plan

_log: Final = log.get("legacy")

DEADLINE_S: Final = 5.0
"""Of a reading that takes about ten milliseconds; the first one loads the library."""
MOST_DEATHS: Final = 3
"""So often a child is started again; after that it is not python-iptables that this node is read by."""
_MOST_BYTES: Final = 4 << 20
_CHILD: Final = (sys.executable, "-m", "nodeagent.redirect.legacy_child")


class Unreadable(MeshError):
    """These tables were not read by python-iptables. `iptables-legacy-save` may do it."""


class Reader:
    """The child as the agent sees it; started when it is first needed, and again when it died. Any thread may call."""

    def __init__(self, command: Sequence[str] = _CHILD, deadline_s: float = DEADLINE_S) -> None:
        self._command, self._deadline_s = command, deadline_s
        self._turn = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._deaths = 0
        self.trouble = ""
        """Why a reading failed, the latest; "": none has."""

    def read(self, version: int) -> str:
        """What `iptables-save` would list of raw, mangle and nat of the calling thread's namespace, counters apart.
        Raises Unreadable."""
        with self._turn:
            if self._deaths >= MOST_DEATHS:
                raise Unreadable(self.trouble)
            try:
                text = self._ask(version)
            except OSError as error:
                self._end()
                self._deaths += 1
                given_up = f"; it died {MOST_DEATHS} times and is not asked again" * (self._deaths == MOST_DEATHS)
                raise self._complain(f"the child that reads legacy tables: {error}{given_up}") from None
            if not text.endswith(END):
                raise self._complain(text.removeprefix(CANNOT).strip())
            return text

    def close(self) -> None:
        with self._turn:
            self._end()

    def _complain(self, why: str) -> Unreadable:
        if why != self.trouble:
            _log.warning("legacy tables not read by python-iptables", why=why)
        self.trouble = why
        return Unreadable(why)

    def _ask(self, version: int) -> str:
        """Raises OSError: it died, or does not answer."""
        ours, theirs = os.pipe()
        with os.fdopen(ours, "rb") as reading:
            with os.fdopen(theirs, "wb") as writing, Path("/proc/thread-self/ns/net").open("rb") as namespace:
                wanted = [namespace.fileno(), writing.fileno()]
                socket.send_fds(self._connection(), [bytes([version])], wanted)
            text = _read_all(reading, self._deadline_s)
        if not text.endswith(END) and not text.startswith(CANNOT):
            raise OSError("it died while it read")
        return text

    def _connection(self) -> socket.socket:
        if self._child is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(self._deadline_s)
            with theirs:
                try:
                    self._child = _start([*self._command, str(theirs.fileno())], theirs.fileno()), ours
                except OSError:
                    ours.close()
                    raise
        return self._child[1]

    def _end(self) -> None:
        if self._child is not None:
            child, connection = self._child
            self._child = None
            connection.close()
            os.killpg(child.pid, signal.SIGKILL)  # not reaped yet: the number is still its
            child.wait()


reader: Final = Reader()
"""This process's."""


def inspect(backend: str, plan: Plan, by: Reader = reader) -> list[str]:
    """On a thread inside the pod's namespace: what its legacy tables hold that takes TCP from the capture by `backend`;
    and where our own rules are among them, how those differ from the plan. Raises RedirectError."""
    found = []
    for version in (4, 6):
        if tables(version):
            listing = _listing(by, version)
            seen = iptables.read(listing, version)
            found += diversions.find(listing, version, backend)
            if backend == "iptables" and seen.chains:
                found += iptables.differences(plan, version, seen)
    return found


def _listing(by: Reader, version: int) -> str:
    try:
        return by.read(version)
    except Unreadable:  # the reader has said it
        return xtables.save("legacy", version)


def _start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    # Else python-iptables looks for its own part with a compiler, and loads setuptools for a path.
    found = {"IPTABLES_LIBDIR": sysconfig.get_path("platlib"), "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
    return subprocess.Popen(
        command,
        pass_fds=[descriptor],
        env=os.environ | found,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that what it forked ends with it
    )


def _read_all(pipe: BinaryIO, deadline_s: float) -> str:
    """Raises TimeoutError, OSError: too much."""
    until, parts, size = time.monotonic() + deadline_s, list[bytes](), 0
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    while ready.poll(max(0.0, until - time.monotonic()) * 1000):
        if not (part := os.read(pipe.fileno(), 1 << 16)):
            return b"".join(parts).decode(errors="replace")
        parts.append(part)
        if (size := size + len(part)) > _MOST_BYTES:
            raise OSError(f"what it lists is larger than {_MOST_BYTES >> 20} MiB")
    raise TimeoutError(f"no answer within {deadline_s:g} s")
