"""Protocol Buffers' wire format, as far as serialized messages are put together without being read.

Origin: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from typing import Final

_DELIMITED: Final = 2


def prefix(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes: its key and the length, base-128 varints, low groups first."""
    return _varint(number << 3 | _DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
