"""Who listens on TCP in a namespace, asked without entering it: for a few system calls, whatever else is open there.

Owns the question to the kernel (sock_diag(7)). Not for what is to be read once: that is `look.py`'s.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection
from typing import Final

from nodeagent.redirect.netns import run_on_thread

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 1 | 0x300
_ERROR, _DONE = 2, 3
_LISTEN: Final = 1 << 10
"""Of TCP's states, as a mask."""
_HEADER: Final = struct.Struct("=IHHII")
_PLACE: Final = struct.Struct("!H2x16s")
"""Where it listens, in struct inet_diag_msg."""
_BUFFER: Final = 65536

Place = tuple[str, int]
"""Address, as the kernel writes it, and port."""


class Listeners:
    """One socket in the namespace, until `close`."""

    def __init__(self, namespace: int) -> None:
        """`namespace`: its descriptor; not taken over. Raises OSError."""
        self._diag = run_on_thread(namespace, _open)

    def missing(self, wanted: frozenset[int]) -> frozenset[int]:
        """Those of these ports at which nobody listens. Raises OSError. Cost: the kernel walks its table of listeners,
        twenty microseconds on a machine of 24 GB; twice that when not all of them listen for both families."""
        for family in (socket.AF_INET6, socket.AF_INET):
            wanted = wanted and wanted - {port for _, port in self._ask(family)}
        return wanted

    def silent(self, wanted: Collection[Place]) -> set[Place]:
        """Those of these addresses at which nobody listens, who listens at all does not count. Raises OSError."""
        found = {
            (socket.inet_ntop(family, address[: 4 if family == socket.AF_INET else 16]), port)
            for family in {socket.AF_INET6 if ":" in address else socket.AF_INET for address, _ in wanted}
            for address, port in self._ask(family)
        }
        return set(wanted) - found

    def close(self) -> None:
        self._diag.close()

    def _ask(self, family: int) -> set[tuple[bytes, int]]:
        """struct inet_diag_req_v2 with no address: everybody in that state."""
        body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, _LISTEN)
        self._diag.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + body)
        found: set[tuple[bytes, int]] = set()
        while (places := _read(self._diag.recv(_BUFFER))) is not None:
            found |= places
        return found


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG)


def _read(packet: bytes) -> set[tuple[bytes, int]] | None:
    """The addresses, 16 bytes each, and ports in one answer; None: it was the last. Raises OSError: the kernel
    refuses."""
    found: set[tuple[bytes, int]] = set()
    at = 0
    while at < len(packet):
        length, kind, *_ = _HEADER.unpack_from(packet, at)
        if kind == _DONE:
            return None
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", packet, at + _HEADER.size)
            raise OSError(-code, os.strerror(-code), "sock_diag")
        port, address = _PLACE.unpack_from(packet, at + _HEADER.size + 4)
        found.add((address, port))
        at += length + 3 & ~3
    return found
