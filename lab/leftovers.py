"""Before and after: what a lab could leave on the machine, and what it did leave.

Everything in the places that only a mesh or a container runtime writes to; in places where the whole machine writes
(/tmp, /var/lib) what bears our names. Other labs that are up at the same time are not this one's leftovers.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab import cgroups, processes
from lab.layout import MADE_NETNS, NETNS, ROOT, Layout
from lab.needs import search_path

Snapshot = dict[str, set[str]]

_KERNEL: Final = {
    "nft rules": ["nft", "list", "ruleset"],
    "links": ["ip", "-o", "link"],
    "addresses": ["ip", "-o", "addr"],
    "routing rules": ["ip", "rule"],
    "routes": ["ip", "route", "show", "table", "all"],
    "IPv6 routing rules": ["ip", "-6", "rule"],
    "IPv6 routes": ["ip", "-6", "route", "show", "table", "all"],
}
_COMMON: Final = {str(path) for path in (NETNS, ROOT, ROOT / MADE_NETNS)}
_OURS: Final = re.compile(r"nodemesh|ztunnel|nodeagent|istio|nginx|iperf3|/cni\b|netns")
_OTHER_LAB: Final = re.compile(
    r"^/run/(nodemesh-lab/[a-z0-9]+|netns/[a-z][a-z0-9]*-(fabric|control|node\d+|pod-.*))(/|$)"
)
_OTHER_TESTS: Final = "/tmp/mesh-tests-"
# A machine that lives goes on writing these by itself.
_SERVICE_MANAGER: Final = re.compile(r"\.(scope|service|slice)(/|$)|^/run/(systemd|log|user|udev)/")


def snapshot(layout: Layout) -> Snapshot:
    """Kind -> what there is."""
    seen = {kind: _lines(command) for kind, command in _KERNEL.items()}
    seen["namespaces"] = {name for name in os.listdir(NETNS) if layout.owns_netns(name)} if NETNS.is_dir() else set()
    seen["processes"] = {f"{p.name} ({p.pid})" for p in processes.all_of(layout)}
    groups = _tree(Path("/sys/fs/cgroup"), only_directories=True)
    seen["control groups"] = {path for path in groups if not _is_foreign(layout, path)}
    seen["files"] = set(_files(layout))
    return seen


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """One line per thing that came or went; empty when the machine is as it was. Call it right after `after`."""
    lines = []
    for kind in before:
        came, went = after[kind] - before[kind], before[kind] - after[kind]
        lines += [f"{kind}: left behind: {thing}" for thing in sorted(came) if thing not in _COMMON or not _others()]
        # A control group that went was somebody else's, whose processes ended.
        lines += [f"{kind}: gone: {thing}" for thing in sorted(went - _COMMON) if kind != "control groups"]
    return lines


def _others() -> bool:
    """The common directories stay as long as another lab, or another namespace, is there, and go with the last one."""
    return bool(_labs()) or (NETNS.is_dir() and any(NETNS.iterdir()))


def _lines(command: list[str]) -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": search_path()})
    return {re.sub(r"\b(expires|valid_lft|preferred_lft) \S+", "", line).strip() for line in done.stdout.splitlines()}


def _is_foreign(layout: Layout, group: str) -> bool:
    return bool(_SERVICE_MANAGER.search(group)) or cgroups.is_other_labs(layout, group) or _in_use(group)


def _in_use(group: str) -> bool:
    """By a process that is there before or after the lab: not the lab's."""
    try:
        return bool(Path(group, "cgroup.procs").read_text())
    except OSError:
        return False


def _files(layout: Layout) -> Iterator[str]:
    own = re.compile(rf"^/run/(nodemesh-lab/{layout.name}|netns/{layout.name}-[^/]+)(/|$)")
    for top in ("/run", "/etc"):
        for path in _tree(Path(top)):
            if own.match(path) or not (_OTHER_LAB.match(path) or _SERVICE_MANAGER.search(path)):
                yield path
    yield from map(str, layout.keys.parent.glob(f"{layout.keys.name}-*"))
    for top in ("/var/lib", "/tmp", "/opt/cni"):
        yield from (p for p in _tree(Path(top), depth=2) if _OURS.search(p) and not p.startswith(_OTHER_TESTS))


def _labs() -> list[Path]:
    return [p for p in ROOT.iterdir() if p.is_dir()] if ROOT.is_dir() else []


def _tree(top: Path, depth: int = 20, only_directories: bool = False) -> Iterator[str]:
    try:
        entries = list(os.scandir(top))
    except OSError:
        return
    for entry in entries:
        is_directory = entry.is_dir(follow_symlinks=False)
        if is_directory or not only_directories:
            yield entry.path
        if is_directory and depth > 1:
            yield from _tree(Path(entry.path), depth - 1, only_directories)
