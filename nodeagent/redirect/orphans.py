"""Direct connections that no tunnel looks after any longer are reset: nobody would judge them again.

Owns the layout of what the map `mesh_direct` holds, as far as that needs it (bpf/capture.h), and the question to the
kernel (sock_diag(7), SOCK_DESTROY). On a thread inside the client's namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Self

from nodeagent.redirect.backend import RedirectError

KEY_BYTES, RECORD_BYTES = 16, 96
_KEY: Final = struct.Struct("=QQ")
_RECORD: Final = struct.Struct("=Q16s16sHHIQQQ")
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DESTROY: Final = 21
_REQUEST_WITH_ACK: Final = 1 | 4
_EVERY_STATE: Final = 0xFFFFFFFF
_GONE: Final = frozenset({0, errno.ENOENT})


@dataclass(frozen=True, slots=True)
class Orphan:
    """`socket`: the client's, by its cookie; ports in host order."""

    netns: int
    socket: int
    source: tuple[IPv6Address, int]
    destination: tuple[IPv6Address, int]

    @classmethod
    def read(cls, key: bytes, record: bytes) -> Self:
        """struct mesh_direct_key, struct mesh_direct."""
        cookie, _ = _KEY.unpack(key)
        _, source, destination, source_port, port, _, _, _, netns = _RECORD.unpack_from(record)
        return cls(netns, cookie, (IPv6Address(source), source_port), (IPv6Address(destination), port))

    def request(self) -> bytes:
        """struct nlmsghdr, struct inet_diag_req_v2."""
        family = socket.AF_INET if self.source[0].ipv4_mapped else socket.AF_INET6
        head = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _EVERY_STATE)
        ports, ends = (self.source[1], self.destination[1]), (_bare(self.source), _bare(self.destination))
        cookie = (self.socket & 0xFFFFFFFF, self.socket >> 32)
        body = head + struct.pack("!HH16s16s", *ports, *ends) + struct.pack("=III", 0, *cookie)
        return struct.pack("=IHHII", 16 + len(body), _SOCK_DESTROY, _REQUEST_WITH_ACK, 0, 0) + body


def _bare(end: tuple[IPv6Address, int]) -> bytes:
    four = end[0].ipv4_mapped
    return four.packed if four else end[0].packed


def reset(orphans: Iterable[Orphan]) -> None:
    """What has ended by itself is none. Raises RedirectError: the kernel does not do it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as diag:
        for orphan in orphans:
            diag.send(orphan.request())
            (code,) = struct.unpack_from("=i", diag.recv(256), 16)
            if -code not in _GONE:
                raise RedirectError(f"direct connections cannot be ended: {os.strerror(-code)}")
