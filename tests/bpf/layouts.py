"""Where connections wanted to go, as bpf/filed.h keeps it: the structs, and where a tuple has its place."""

import struct

TUPLE, DESTINATION = struct.Struct("=Q16s16sHHI"), struct.Struct("=16s2sH")
"""struct mesh_tuple, mesh_destination."""
FILED = 0
HANDOVER, PLACE = struct.Struct("=8xQ20s4x"), struct.Struct("=4xI48s20s4x")
"""struct mesh_handover; mesh_place: whose socket, the tuple, the destination."""
HANDOVERS, PLACES = 4096, 65536
SOMEBODY = 1 << 60
"""The cookie of no socket, and of no network namespace."""


def place_number(packed: bytes) -> int:
    """= mesh_place_number in bpf/capture.h."""
    netns, ours, theirs, from_port, to_port, _ = TUPLE.unpack(packed)
    ours, theirs = (struct.unpack("=4I", address) for address in (ours, theirs))
    row = (netns + to_port) ^ _pair(*ours[:2]) ^ _pair(*ours[2:]) ^ _pair(*theirs[:2])
    row = _scattered(row) ^ _pair(*theirs[2:])
    return (from_port + (_scattered(row) >> 48)) % PLACES


def _pair(high: int, low: int) -> int:
    return high << 32 | low


def _scattered(row: int) -> int:
    return row * 0x9E3779B97F4A7C15 % (1 << 64)
