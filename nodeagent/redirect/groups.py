"""Control groups: where the unified hierarchy is, and which group of it a process belongs to. Reads /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mesh.errors import MeshError
from nodeagent.redirect.guard import Group

TOP: Final = Path("/sys/fs/cgroup")
"""Where nft looks paths up."""


class NoGroup(MeshError):
    """No control group tells the process from a pod's."""


def mount() -> Path:
    """Of the unified hierarchy: below TOP on hybrid machines. Raises NoGroup."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise NoGroup(f"/proc/self/mounts cannot be read: {error.strerror}") from None
    for _, place, kind, *_ in (line.split() for line in lines):
        if kind == "cgroup2":
            return Path(place)
    raise NoGroup("this node has no cgroup v2 mounted")


def root() -> Group:
    """Raises NoGroup."""
    return _group(mount(), mount())


def of_path(path: str) -> Group:
    """`path` from the root of the unified hierarchy, as in /proc/PID/cgroup. Raises NoGroup."""
    top = mount()
    return _group(top, top / path.strip("/"))


def of_process(pid: int) -> Group:
    """Raises NoGroup: it is in the root, where everybody may be, or this process cannot see where it is."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        raise NoGroup(f"the control group of process {pid} cannot be read") from None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    group = _searched(pid) if path.startswith("/..") else of_path(path)
    if group.level == 0:
        raise NoGroup(f"process {pid} is in the root control group, where everybody may be")
    return group


def exists(group: Group) -> bool:
    try:
        return os.stat(TOP / group.path).st_ino == group.number
    except OSError:
        return False


def _searched(pid: int) -> Group:
    """From within a cgroup namespace, the path is of no use; the group that lists the process is."""
    top = mount()
    for directory, _, files in os.walk(top):
        if "cgroup.procs" in files and str(pid) in _processes(Path(directory)):
            return _group(top, Path(directory))
    raise NoGroup(f"no control group that can be seen from here holds process {pid}")


def _processes(directory: Path) -> list[str]:
    try:
        return (directory / "cgroup.procs").read_text(encoding="ascii").split()
    except OSError:
        return []


def _group(top: Path, path: Path) -> Group:
    level = len(path.relative_to(top).parts)
    name = os.path.relpath(path, TOP)
    if '"' in name or "\n" in name:
        raise NoGroup(f"the control group {name!r} cannot be named in a rule")
    try:
        return Group(name, level, os.stat(path).st_ino)
    except OSError as error:
        raise NoGroup(f"{path}: {error.strerror}") from None
