"""What bpf/diag.bpf.c tells, as values and as lines. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Self

_EVENT: Final = struct.Struct("=QIHH16s16sBB6x16s")
EVENT_BYTES: Final = _EVENT.size
NOBODY: Final = "a kernel timer"


class Seen(IntEnum):
    """enum mesh_seen."""

    CONNECTED = 0
    REFUSED = 1
    RESENT = 2


@dataclass(frozen=True, slots=True)
class Event:
    """`took_us`: from the SYN to the answer."""

    seen: Seen
    took_us: float
    pid: int
    program: str
    source: str
    destination: str

    @classmethod
    def unpack(cls, record: bytes) -> Self:
        took, pid, from_port, to_port, source, destination, seen, is_ipv4, program = _EVENT.unpack(record)
        name = program.split(b"\0")[0].decode(errors="replace") or NOBODY
        ends = (_end(ip, port, is_ipv4) for ip, port in ((source, from_port), (destination, to_port)))
        return cls(Seen(seen), took / 1000, pid, name, *ends)

    def __str__(self) -> str:
        who = f"{self.program} ({self.pid})" if self.pid else self.program
        took = f" {self.took_us:.0f} µs" if self.took_us else ""
        return f"{self.seen.name.lower():9}{took:>12} {who:24} {self.source} -> {self.destination}"


def _end(address: bytes, port: int, is_ipv4: bool) -> str:
    ip = IPv4Address(address[:4]) if is_ipv4 else IPv6Address(address).ipv4_mapped or IPv6Address(address)
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"


def who(events: Iterable[Event]) -> list[str]:
    """How often each program went to each destination, the most frequent first."""
    counts = Counter((e.program, e.destination, e.seen) for e in events if e.seen is not Seen.RESENT)
    return [f"{n:7} {program:16} {seen.name.lower():9} {to}" for (program, to, seen), n in counts.most_common()]


def latencies(events: Iterable[Event]) -> str:
    took = sorted(e.took_us for e in events if e.seen is Seen.CONNECTED)
    if not took:
        return "no connection was seen"
    p50, p99 = (_quantile(took, share) for share in (0.5, 0.99))
    return f"{len(took)} connections: p50 {p50:.0f} µs, p99 {p99:.0f} µs, most {took[-1]:.0f} µs"


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
