"""rtnetlink as far as a pod's start needs it: orders in one packet, and the addresses that are there.

Packed by hand because every pod that starts waits for it: a general library takes a hundred times the kernel's time.
What looks at what is there (`routes.observe`) goes by pyroute2: two readings of one layout. Pure but for `Talk`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Final, Self

NEW_LINK: Final = 16
NEW_ADDRESS: Final = 20
GET_ADDRESS: Final = 22
NEW_ROUTE: Final = 24
DEL_ROUTE: Final = 25
NEW_RULE: Final = 32
DEL_RULE: Final = 33
_ERROR: Final = 2
_DONE: Final = 3
"""Types of messages, linux/netlink.h and linux/rtnetlink.h."""

REPLACE: Final = 0x500
"""NLM_F_CREATE | NLM_F_REPLACE."""
ONLY_NEW: Final = 0x600
"""NLM_F_CREATE | NLM_F_EXCL."""
_REQUEST: Final = 0x01
_ACK: Final = 0x04
_DUMP: Final = 0x300

_HEAD: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
"""The own one of a pair; the other is then the peer's."""
_ADDRESS_HEAD: Final = struct.Struct("=BBBBI")
_MOST_BYTES: Final = 65536
_TO_TABLE: Final = 1
_STATIC: Final = 4
_UP: Final = 1

Order = tuple[int, int, bytes]
"""Type, flags, what follows the head."""


def link_up(index: int) -> Order:
    return NEW_LINK, 0, struct.pack("=BxHiII", 0, 0, index, _UP, _UP)


def route(verb: int, flags: int, family: int, *, kind: int, scope: int, table: int, device: int) -> Order:
    """To everywhere. struct rtmsg, RTA_OIF, RTA_TABLE."""
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table & 0xFF, _STATIC, scope, kind, 0)
    return verb, flags, head + _words({4: device, 15: table})


def rule(verb: int, flags: int, family: int, *, priority: int, mark: int, mask: int, table: int) -> Order:
    """struct fib_rule_hdr, FRA_PRIORITY, FRA_FWMARK, FRA_FWMASK, FRA_TABLE."""
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table & 0xFF, 0, 0, _TO_TABLE, 0)
    return verb, flags, head + _words({6: priority, 10: mark, 16: mask, 15: table})


def _words(values: dict[int, int]) -> bytes:
    return b"".join(struct.pack("=HHI", 8, kind, value) for kind, value in values.items())


class Talk:
    """With the kernel, about the calling thread's namespace; must not leave the thread. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def give(self, orders: Sequence[Order]) -> list[int]:
        """The errno of each; 0: done. One that fails does not keep the next one out."""
        self._socket.send(b"".join(_packed(order, number, _ACK) for number, order in enumerate(orders)))
        outcomes: dict[int, int] = {}
        while len(outcomes) < len(orders):
            for kind, number, body in _messages(self._socket.recv(_MOST_BYTES)):
                if kind == _ERROR:
                    outcomes[number] = -struct.unpack_from("=i", body)[0]
        return [outcomes[number] for number in range(len(orders))]

    def addresses(self) -> list[tuple[int, str]]:
        """Of each interface: (its index, an address of its own), in the kernel's order."""
        self._socket.send(_packed((GET_ADDRESS, 0, _ADDRESS_HEAD.pack(0, 0, 0, 0, 0)), 0, _DUMP))
        found: list[tuple[int, str]] = []
        while True:
            for kind, _, body in _messages(self._socket.recv(_MOST_BYTES)):
                if kind == NEW_ADDRESS:
                    found += read_address(body)
                elif kind == _DONE:
                    return found
                elif kind == _ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, os.strerror(number))


def read_address(body: bytes) -> list[tuple[int, str]]:
    """struct ifaddrmsg and its attributes; nothing when it has no address of IP."""
    *_, index = _ADDRESS_HEAD.unpack_from(body)
    known = dict(_attributes(body[_ADDRESS_HEAD.size :]))
    packed = known.get(_IFA_LOCAL, known.get(_IFA_ADDRESS, b""))
    return [(index, str(ip_address(packed)))] if len(packed) in (4, 16) else []


def _packed(order: Order, number: int, flags: int) -> bytes:
    kind, more, body = order
    return _HEAD.pack(_HEAD.size + len(body), kind, _REQUEST | flags | more, number, 0) + body


def _messages(packet: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(packet):
        length, kind, _, number, _ = _HEAD.unpack_from(packet, at)
        yield kind, number, packet[at + _HEAD.size : at + length]
        at += max(_padded(length), _HEAD.size)


def _attributes(packet: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(packet):
        length, kind = _ATTRIBUTE.unpack_from(packet, at)
        yield kind, packet[at + _ATTRIBUTE.size : at + length]
        at += max(_padded(length), _ATTRIBUTE.size)


def _padded(length: int) -> int:
    return (length + 3) & ~3
