"""Where the kernel keeps what capture is made of: a directory on bpffs, by the number of the maps' schema.

    ROOT/v1/maps/NAME                 shared by all programs and by every life of the agent
    ROOT/v1/programs/DIGEST/NAME      of the objects that this agent ships
    ROOT/v1/workloads/netns-COOKIE/   links on one workload's control group and namespace
    ROOT/v1/tunnels/cgroup-ID/        links on the control group of one life of the tunnel
    ROOT/v1/kubelets/cgroup-ID/       links on the kubelet's control group

What is pinned stays in force when its maker dies. Owns the paths and the mount; attaches nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.libbpf import BpfError
from nodeagent.redirect.bpf_records import SCHEMA

DEFAULT_ROOT: Final = Path("/sys/fs/bpf/nodemesh")
_MOUNT_POINT: Final = Path("/sys/fs/bpf")
_BPF_FS: Final = 0xCAFE4A11
"""BPF_FS_MAGIC, linux/magic.h."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Pins:
    """Paths below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._here = root / f"v{SCHEMA}"

    @property
    def maps(self) -> Path:
        return self._here / "maps"

    @property
    def programs(self) -> Path:
        return self._here / "programs"

    def workload(self, cookie: int) -> Path:
        return self._here / "workloads" / f"netns-{cookie}"

    def tunnel(self, cgroup: int) -> Path:
        return self._here / "tunnels" / f"cgroup-{cgroup}"

    def host(self, cgroup: int) -> Path:
        """Of a workload that is a control group of the host."""
        return self._here / "hosts" / f"cgroup-{cgroup}"

    def kubelet(self, cgroup: int) -> Path:
        return self._here / "kubelets" / f"cgroup-{cgroup}"

    def kubelets(self) -> list[Path]:
        return _entries(self._here / "kubelets")

    def hosts(self) -> list[Path]:
        return _entries(self._here / "hosts")

    def workloads(self) -> list[Path]:
        return _entries(self._here / "workloads")

    def tunnels(self) -> list[Path]:
        return _entries(self._here / "tunnels")

    def earlier(self) -> list[Path]:
        """Directories of workloads of other schemas."""
        others = (each for each in _entries(self.root) if each != self._here)
        return [workload for other in others for workload in _entries(other / "workloads")]

    def make(self) -> None:
        """Idempotent; mounts bpffs where it is missing. Raises BpfError."""
        try:
            mount(self.root)
            for name in ("maps", "programs", "workloads", "tunnels", "hosts", "kubelets"):
                directory = self._here / name
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BpfError(f"{self.root} cannot be made on bpffs: {error.strerror}") from None

    def remove(self) -> None:
        """All of it, links included, and the mount where it is ours alone."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.is_mount():
            _libc.umount2(os.fsencode(self.root), 0)
            with suppress(OSError):
                self.root.rmdir()


def mount(root: Path) -> None:
    """Sees to it that `root` is on bpffs. Raises OSError."""
    point = _MOUNT_POINT if root.is_relative_to(_MOUNT_POINT) else root
    if point == root:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_bpffs(point):
        return
    if _libc.mount(b"bpf", os.fsencode(point), b"bpf", 0, b"mode=0700") != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


class _StatFs(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_long), ("rest", ctypes.c_uint8 * 512))


def _is_bpffs(path: Path) -> bool:
    about = _StatFs()
    found: int = _libc.statfs(os.fsencode(path), ctypes.byref(about))
    return found == 0 and about.kind & 0xFFFFFFFF == _BPF_FS


def _entries(directory: Path) -> list[Path]:
    def listed() -> Iterator[Path]:
        try:
            yield from sorted(directory.iterdir())
        except OSError:
            return  # nothing was ever pinned here

    return list(listed())
