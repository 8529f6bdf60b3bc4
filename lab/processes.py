"""Processes of a lab: started inside a namespace, written down at once, and ended exactly, whoever asks.

A process is known by pid and start time, so a reused pid is never mistaken for it. `all_of` needs no file: it also
finds what a crash left, by the mark in the environment and by the namespaces that belong to the lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lab.layout import MARK, NETNS, Layout
from lab.needs import search_path
from lab.netns import inside
from mesh.errors import LocalError, OperatorError

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Process:
    """`started`: clock ticks since boot, /proc/PID/stat field 22."""

    name: str
    pid: int
    started: int
    netns: str = ""

    @property
    def alive(self) -> bool:
        """Not a zombie, and still the same process."""
        return _start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor is held: after this look the pid cannot become somebody else's.
            if _start_time(self.pid) == self.started:
                signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time; a child is reaped."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if _start_time(self.pid) == self.started and not select.select([pidfd], [], [], timeout_s)[0]:
                return False
            _reap(self.pid)
            return True
        finally:
            os.close(pidfd)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if not self.wait(60.0):
            raise LocalError(f"process {self.pid} ({self.name}) outlives SIGKILL")


def start(
    layout: Layout, name: str, netns: str, argv: list[str], env: Mapping[str, str] | None = None, group: str = ""
) -> Process:
    """Runs `argv` in the namespace, and in `group` below its control group, as leader of its own session. Output:
    `layout.log(name)`."""
    command = [*inside(netns, group), *argv]
    log = os.open(layout.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    program = shutil.which(command[0], path=search_path()) or command[0]
    try:
        pid = os.posix_spawn(
            program,
            command,
            environment(layout, env or {}),
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsid=True,
        )
    finally:
        os.close(log)
        os.close(null)
    process = Process(name, pid, _start_time(pid) or 0, netns)
    _write_down(layout, process)
    return process


def environment(layout: Layout, extra: Mapping[str, str]) -> dict[str, str]:
    """A lab's processes see little of the caller's environment, put their temporary files into the lab's directory,
    and carry its mark."""
    kept = {key: value for key, value in os.environ.items() if key in _KEPT}
    scratch = str(layout.dir / "tmp")
    return {**kept, "PATH": search_path(), "TMPDIR": scratch, "HOME": scratch, MARK: layout.name, **extra}


def recorded(layout: Layout) -> list[Process]:
    """Every process ever started, oldest first; a last line cut off by a crash is no line."""
    try:
        lines = layout.processes.read_text().split("\n")
    except FileNotFoundError:
        return []
    return [Process(**json.loads(line)) for line in lines[:-1] if line]


def all_of(layout: Layout) -> list[Process]:
    """What runs and belongs to the lab: recorded, marked, or living in one of its namespaces. Costs a walk of /proc."""
    found = {p.pid: p for p in recorded(layout) if p.alive}
    spaces = _inodes(layout)
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) not in found and int(entry) != os.getpid():
            pid = int(entry)
            started = _start_time(pid)
            if started is not None and (_netns_inode(pid) in spaces or _mark(pid) == layout.name):
                found[pid] = Process(_command(pid), pid, started)
    return list(found.values())


def end(processes: Iterable[Process]) -> None:
    """All of them, at once, for certain."""
    doomed = list(processes)
    for process in doomed:
        process.signal(signal.SIGKILL)
    for process in doomed:
        process.kill()


def wait_until(what: str, ready: Callable[[], bool], timeout_s: float, *, step_s: float = 0.01) -> float:
    """Asks `ready()` until it is true; returns the seconds that took. Raises OperatorError: not in time."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > timeout_s:
            raise OperatorError(f"{what}: not within {timeout_s:g} s")
        time.sleep(step_s)
    return time.monotonic() - began


def _write_down(layout: Layout, process: Process) -> None:
    with layout.processes.open("a") as journal:
        journal.write(json.dumps(asdict(process)) + "\n")


def _start_time(pid: int) -> int | None:
    """None: no such process, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _inodes(layout: Layout) -> set[int]:
    paths = NETNS.iterdir() if NETNS.is_dir() else iter(())
    return {path.stat().st_ino for path in paths if layout.owns_netns(path.name)}


def _netns_inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _mark(pid: int) -> str:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARK}=".encode()
    return next((v.removeprefix(prefix).decode() for v in variables if v.startswith(prefix)), "")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # somebody else's child: its parent or init reaps it
        os.waitpid(pid, 0)
