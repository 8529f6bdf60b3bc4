"""Takes a lab away from whatever state it is in, and the last one what all of them share."""

from __future__ import annotations

import shutil
import subprocess

from lab import cgroups, netns, processes
from lab.layout import MADE_NETNS, NETNS, ROOT, Layout


def down(layout: Layout) -> bool:
    """Takes away whatever there is of a lab, in any state; False: there was nothing. Idempotent.

    Processes first, because a namespace lives as long as somebody in it; the directory last, because it is what
    tells the next `down` that there is work left.
    """
    found = processes.all_of(layout)
    processes.end(found)
    spaces = [name for name in netns.names() if layout.owns_netns(name)]
    for space in spaces:
        netns.delete(space)
    _unmount(layout)
    for keys in layout.keys.parent.glob(f"{layout.keys.name}-*"):
        shutil.rmtree(keys, ignore_errors=True)
    existed = cgroups.delete_all(layout) or layout.dir.is_dir()
    shutil.rmtree(layout.dir, ignore_errors=True)
    _leave_the_machine_as_it_was()
    return bool(found or spaces or existed)


def _unmount(layout: Layout) -> None:
    """What the agents pinned goes with it."""
    for directory in layout.dir.glob("nodes/*/bpf"):
        subprocess.run(["umount", "-q", str(directory)], capture_output=True)


def _leave_the_machine_as_it_was() -> None:
    """The last lab takes the shared directories with it, /run/netns only if it was a lab that made it."""
    others = [p for p in ROOT.iterdir() if p.is_dir()] if ROOT.is_dir() else []
    if others or not ROOT.is_dir():
        return
    if (ROOT / MADE_NETNS).exists() and not netns.names():
        subprocess.run(["umount", str(NETNS)], capture_output=True)
        NETNS.rmdir()
    shutil.rmtree(ROOT, ignore_errors=True)
