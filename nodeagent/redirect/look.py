"""What a namespace shows of its sockets and devices, on a thread inside it. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
_ESTABLISHED: Final = "01"
"""States in /proc/net/tcp."""


def devices() -> list[str]:
    """Without lo, in order."""
    rows = Path("/proc/thread-self/net/dev").read_text(encoding="utf-8").splitlines()[2:]
    return sorted({name.strip() for name, _, _ in (row.partition(":") for row in rows)} - {"lo"})


def listening() -> list[int]:
    """TCP ports that somebody listens on, in order."""
    return sorted(set(_ports(_LISTEN)))


def established(ports: frozenset[int]) -> int:
    """How many connections are open at these local ports."""
    return sum(port in ports for port in _ports(_ESTABLISHED))


def _ports(wanted: str) -> Iterator[int]:
    """Local port of each TCP socket in that state, both families."""
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for row in Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_ = row.split()
                if state == wanted:
                    yield int(local.rpartition(":")[2], 16)
