"""A pod's control group: found by the pod's uid, as the kubelet names it with either of its drivers. Reads only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_DEPTH: Final = 4
"""kubepods / quality of service / pod, and one level in which everything may run (kind, nested nodes)."""


def mounted_at(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """Where cgroup v2 is; None: nowhere."""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, place, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(place)
    return None


def of_pod(root: Path | None, pod_uid: str) -> Path | None:
    """The directory of that pod below `root`; None: there is none. Cost: a walk over the pods of the node."""
    if root is None or not pod_uid:
        return None
    names = {f"pod{pod_uid}", f"pod{pod_uid.replace('-', '_')}.slice"}
    level = [root]
    for _ in range(_DEPTH):
        level = [entry for directory in level for entry in _directories(directory)]
        for entry in level:
            if entry.name in names or any(entry.name.endswith(f"-{name}") for name in names):
                return entry
    return None


def _directories(directory: Path) -> list[Path]:
    try:
        return [entry for entry in directory.iterdir() if entry.is_dir()]
    except OSError:
        return []  # it went away meanwhile
