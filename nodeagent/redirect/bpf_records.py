"""The structs of bpf/capture.h and bpf/maps.h as bytes. Pure; tests/bpf holds them against the compiler's layout."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from nodeagent.redirect.plan import DNS_CAPTURE_PORT, OUTBOUND_PORT, Options

SCHEMA: Final = 1
"""= MESH_SCHEMA."""
LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_ID: Final = struct.Struct("=QII")
_WORKLOAD: Final = struct.Struct("=16s16s16s16s2H2HII")
_PORT: Final = struct.Struct("=16sHHI")
_LISTENER: Final = struct.Struct("=QII")
_RANGE: Final = struct.Struct("=II16s16s")
_BITS_BEFORE_ADDRESS: Final = 8 * (4 + 16)
ID_BYTES, WORKLOAD_BYTES, LISTENER_BYTES, COOKIE_BYTES = _ID.size, _WORKLOAD.size, _LISTENER.size, 8
ADDRESS_BYTES, OWN_BYTES, PORT_BYTES, RANGE_BYTES = 16, ID_BYTES + 16, _PORT.size, _RANGE.size

Address = IPv4Address | IPv6Address
Range = IPv4Network | IPv6Network


class Kind(IntEnum):
    """enum mesh_kind."""

    NETNS = 1
    CGROUP = 2


class Direction(IntEnum):
    """enum mesh_direction."""

    OUT = 0
    IN = 1


class Flag(IntFlag):
    """enum mesh_flag."""

    CAPTURE_DNS = 1 << 0
    INGRESS_MODE = 1 << 1
    HAS_IPV4 = 1 << 2
    HAS_IPV6 = 1 << 3
    EXEMPT_PROBES = 1 << 4
    EXCLUSIONS = 1 << 5
    MORE_ADDRESSES = 1 << 6
    GOES_DIRECT = 1 << 7
    ONE_IPV4 = 1 << 8


OUTCOMES: Final = (
    "captured",
    "dns_captured",
    "not_enrolled",
    "no_address",
    "not_tcp",
    "loopback",
    "own_address",
    "excluded",
)
"""enum mesh_why."""


@dataclass(frozen=True, slots=True)
class Workload:
    """struct mesh_workload: where the tunnel listens for one workload. Index 0 IPv4, 1 IPv6."""

    listen: tuple[Address, Address]
    flags: Flag
    tcp_port: tuple[int, int] = (OUTBOUND_PORT, OUTBOUND_PORT)
    dns_listen: tuple[Address, Address] = LOOPBACK
    dns_port: tuple[int, int] = (DNS_CAPTURE_PORT, DNS_CAPTURE_PORT)

    def pack(self) -> bytes:
        listen = (pack_address(address) for address in (*self.listen, *self.dns_listen))
        return _WORKLOAD.pack(*listen, *self.tcp_port, *self.dns_port, self.flags, 0)


def pod(options: Options, addresses: Iterable[str]) -> Workload:
    """A pod's listeners are met at its own address: then the kernel gives the connection that address as its source,
    which the tunnel and the application take for the pod's. `addresses`: those of its interfaces, loopback's not."""
    present = [ip_address(text) for text in addresses]
    usable = [a for a in present if not a.is_link_local]
    four = next((a for a in usable if a.version == 4), None)
    six = next((a for a in usable if a.version == 6), None)
    wanted = {
        Flag.CAPTURE_DNS: options.dns_capture,
        Flag.INGRESS_MODE: options.ingress_mode,
        Flag.EXEMPT_PROBES: options.exempt_probes,
        Flag.HAS_IPV4: four is not None,
        Flag.HAS_IPV6: six is not None,
        Flag.EXCLUSIONS: bool(
            options.excluded_inbound_ports or options.excluded_outbound_ports or options.excluded_outbound_ranges
        ),
        Flag.MORE_ADDRESSES: True,
        Flag.ONE_IPV4: four is not None and [a for a in present if a.version == 4] == [four],
        Flag.GOES_DIRECT: options.direct and not options.ingress_mode,
    }
    flags = Flag(sum(flag for flag, on in wanted.items() if on))
    return Workload((four or LOOPBACK[0], six or LOOPBACK[1]), flags)


def host(addresses: Iterable[Address]) -> Workload:
    """A control group of the host: the tunnel listens on its own addresses. Its questions are another's affair."""
    own = {address.version: address for address in addresses}
    flags = Flag.MORE_ADDRESSES | Flag.EXCLUSIONS
    flags |= (Flag.HAS_IPV4 if 4 in own else Flag(0)) | (Flag.HAS_IPV6 if 6 in own else Flag(0))
    return Workload((own.get(4, LOOPBACK[0]), own.get(6, LOOPBACK[1])), flags)


@dataclass(frozen=True, slots=True)
class Entries:
    """Keys of a workload in the maps beside `mesh_workloads`, whose value is always 1."""

    own: frozenset[bytes] = frozenset()
    left_ports: frozenset[bytes] = frozenset()
    left_ranges: frozenset[bytes] = frozenset()


def entries(who: bytes, options: Options, addresses: Iterable[str]) -> Entries:
    """`addresses` as of `pod`; the ranges are CIDR."""
    inbound = (pack_port(who, Direction.IN, port) for port in options.excluded_inbound_ports)
    outbound = (pack_port(who, Direction.OUT, port) for port in options.excluded_outbound_ports)
    ranges = (ip_network(text, strict=False) for text in options.excluded_outbound_ranges)
    return Entries(
        frozenset(pack_own(who, ip_address(address)) for address in addresses),
        frozenset((*inbound, *outbound)),
        frozenset(pack_range(who, Direction.OUT, each) for each in ranges),
    )


def pack_address(address: Address) -> bytes:
    """struct mesh_address: an IPv4 address in its mapped form."""
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def pack_id(kind: Kind, number: int) -> bytes:
    """struct mesh_id."""
    return _ID.pack(number, kind, 0)


def pack_own(who: bytes, address: Address) -> bytes:
    """struct mesh_own_key."""
    return who + pack_address(address)


def pack_port(who: bytes, direction: Direction, port: int) -> bytes:
    """struct mesh_port_key."""
    return _PORT.pack(who, port, direction, 0)


def pack_range(who: bytes, direction: Direction, addresses: Range) -> bytes:
    """struct mesh_range_key."""
    bits = _BITS_BEFORE_ADDRESS + addresses.prefixlen + (96 if addresses.version == 4 else 0)
    return _RANGE.pack(bits, direction, who, pack_address(addresses.network_address))


def pack_listener(cookie: int, port: int) -> bytes:
    """struct mesh_listener_key."""
    return _LISTENER.pack(cookie, port, 0)


def pack_cookie(cookie: int) -> bytes:
    """The .rodata of inbound.bpf.c."""
    return struct.pack("=Q", cookie)


def pack_abilities(multipath: bool) -> bytes:
    """The .rodata.able of bpf/multipath.h: what this kernel lets its programs do."""
    return struct.pack("=I", multipath)
