"""How much memory an Envoy may take: what the machine or the control group gives. Reads /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# The rest is for what Envoy's own allocator does not count, and for the process beside it.
_SHARE: Final = 0.75
_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def heap(said_mib: int) -> int:
    """Bytes. `said_mib` 0: three quarters of what this process may have."""
    return said_mib << 20 if said_mib else int(_SHARE * min(_machine(), group_limit()))


def group_limit(own: Path = _OWN, root: Path = _ROOT) -> int:
    """Bytes, the least of this control group and all above it (cgroup v2); no limit is the largest number there is."""
    path = next((line.removeprefix("0::") for line in own.read_text().splitlines() if line.startswith("0::")), "/")
    here = root / path.strip().lstrip("/")
    return min(
        (_limit(each / "memory.max") for each in (here, *here.parents) if each.is_relative_to(root)), default=NONE
    )


NONE: Final = 2**63 - 1


def _limit(file: Path) -> int:
    """A group that is not in our view, or the root, has none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return NONE


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
