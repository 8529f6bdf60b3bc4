"""Which control group the kubelet of this node is in. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent.redirect import groups
from nodeagent.redirect.groups import NoGroup
from nodeagent.redirect.guard import Group

_PROC: Final = Path("/proc")
_NAMES: Final = frozenset({"kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"})
"""As a process calls itself; the others are distributions that have the kubelet in a process of theirs."""


def find(path: str) -> Group:
    """`path` from the root of the unified hierarchy; "": of the process that is the kubelet. Raises NoGroup."""
    group = groups.of_path(path) if path else _searched()
    if group.level == 0:
        raise NoGroup("the kubelet is in the root control group, where everybody may be")
    return group


def _searched() -> Group:
    """Anybody may take the name; what is believed is root's, in the network namespace that is also the agent's."""
    here = os.stat(_PROC / "self/ns/net").st_ino
    for directory in _processes():
        try:
            named = (directory / "comm").read_text(encoding="utf-8", errors="replace").strip() in _NAMES
            if named and directory.stat().st_uid == 0 and os.stat(directory / "ns/net").st_ino == here:
                return groups.of_process(int(directory.name))
        except OSError:
            continue  # it ended meanwhile
    raise NoGroup("no kubelet runs here")


def _processes() -> Iterator[Path]:
    with os.scandir(_PROC) as entries:
        yield from (Path(entry.path) for entry in entries if entry.name.isdecimal())
