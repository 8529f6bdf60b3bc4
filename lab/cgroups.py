"""Control groups of a lab: one per host and per pod, as a service manager and a container runtime make them.

What captures by the workload's group, and what exempts the tunnel by its own, finds here what it finds on a real node.
A group is known by the name of its network namespace, so that `netns.inside` needs no other word; a pod's lies where
the kubelet puts it: odd nodes follow its cgroupfs driver, even ones its systemd driver.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from lab.layout import ROOT, Layout
from mesh.errors import OperatorError

_PREFIX: Final = "nodemesh-lab-"
_EMPTY_S: Final = 10.0
_ENTER: Final = 'echo 0 >"$0/cgroup.procs" && exec "$@"'


@cache
def mount() -> Path:
    """Where the unified hierarchy is: below /sys/fs/cgroup on hybrid machines. Raises OperatorError: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise OperatorError("this machine has no cgroup v2 mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def of(space: str) -> Path:
    """The group of a host, of a pod, or (`HOST/NAME`) of a workload on a host."""
    pod = _pod(space)
    return Path(os.readlink(pod)) if pod.is_symlink() else _of_host(space)


def _of_host(space: str) -> Path:
    return mount() / f"{_PREFIX}{space.partition('-')[0]}" / space


def create(space: str) -> Path:
    path = of(space)
    path.mkdir(parents=True, exist_ok=True)
    return path


def create_pod(node: str, number: int, uid: str, space: str) -> None:
    """`node`: the namespace of its host, `number` of that name."""
    quality = "kubepods-besteffort"
    cgroupfs = f"kubepods/besteffort/pod{uid}"
    systemd = f"kubepods.slice/{quality}.slice/{quality}-pod{uid.replace('-', '_')}.slice"
    path = _of_host(node) / (cgroupfs if number % 2 else systemd)
    path.mkdir(parents=True)
    _pod(space).parent.mkdir(exist_ok=True)
    _pod(space).symlink_to(path)


def _pod(space: str) -> Path:
    """Where it is written down which group is the pod's."""
    return ROOT / space.partition("-")[0] / "cgroups" / space


def delete(space: str) -> None:
    """Its processes have ended. Nothing happens when there is none."""
    _remove(of(space))
    _pod(space).unlink(missing_ok=True)


def inside(space: str) -> list[str]:
    """What to put before a command so that it lives in the group; nothing outside a lab's."""
    path = of(space)
    if not path.parent.is_dir():
        return []
    path.mkdir(exist_ok=True)
    return ["sh", "-c", _ENTER, str(path)]


def delete_all(layout: Layout) -> bool:
    """False: there was none."""
    top = mount() / f"{_PREFIX}{layout.name}"
    existed = top.is_dir()
    _remove(top)
    return existed


def is_other_labs(layout: Layout, path: str) -> bool:
    """Whether it is a group of a lab that is not this one."""
    top = str(mount() / _PREFIX)
    return path.startswith(top) and path != top + layout.name and not path.startswith(f"{top}{layout.name}/")


def _remove(path: Path) -> None:
    """With whoever is still in it."""
    if not path.is_dir():
        return
    with suppress(OSError):  # before Linux 5.14
        (path / "cgroup.kill").write_text("1")
    for child in [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]:
        _remove(child)
    until = time.monotonic() + _EMPTY_S
    while path.is_dir():
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # it takes a moment to die
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
