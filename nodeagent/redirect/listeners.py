"""Who listens on TCP in a namespace, asked without entering it: for a few system calls, whatever else is open there.

Owns the question to the kernel (sock_diag(7)). Not for what is to be read once: that is `look.py`'s.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from nodeagent.redirect.netns import run_on_thread

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 1 | 0x300
_ERROR, _DONE = 2, 3
_LISTEN: Final = 1 << 10
"""Of TCP's states, as a mask."""
_HEADER: Final = struct.Struct("=IHHII")
_BUFFER: Final = 65536


class Listeners:
    """One socket in the namespace, until `close`."""

    def __init__(self, namespace: int) -> None:
        """`namespace`: its descriptor; not taken over. Raises OSError."""
        self._diag = run_on_thread(namespace, _open)

    def missing(self, wanted: frozenset[int]) -> frozenset[int]:
        """Those of these ports at which nobody listens. Raises OSError. Cost: the kernel walks its table of listeners,
        twenty microseconds on a machine of 24 GB; twice that when not all of them listen for both families."""
        for family in (socket.AF_INET6, socket.AF_INET):
            wanted = wanted and wanted - self._ask(family)
        return wanted

    def close(self) -> None:
        self._diag.close()

    def _ask(self, family: int) -> set[int]:
        """struct inet_diag_req_v2 with no address: everybody in that state."""
        body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
        self._diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + body)
        found: set[int] = set()
        while (ports := _read(self._diag.recv(_BUFFER))) is not None:
            found |= ports
        return found


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG)


def _read(packet: bytes) -> set[int] | None:
    """The ports in one answer; None: it was the last. Raises OSError: the kernel refuses."""
    found, at = set(), 0
    while at < len(packet):
        length, kind, *_ = _HEADER.unpack_from(packet, at)
        if kind == _DONE:
            return None
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", packet, at + _HEADER.size)
            raise OSError(-code, os.strerror(-code), "sock_diag")
        found.add(struct.unpack_from("!H", packet, at + _HEADER.size + 4)[0])  # struct inet_diag_msg
        at += length + 3 & ~3
    return found
