"""Takes a lab down when the process that uses it is gone, however it went.

Lives outside the lab (no mark, the machine's namespace), so that `down` does not end it half way.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lab import teardown
from lab.layout import MARK, Layout
from lab.needs import REPOSITORY


class Guard:
    """From its making on, the end of the calling process, even by SIGKILL, is the end of the lab.

    A pipe tells: its writing end is ours alone, is not inherited (PEP 446) and closes with us.
    """

    def __init__(self, layout: Layout) -> None:
        watched, self._ours = os.pipe()
        said, says = os.pipe()
        env = {key: value for key, value in os.environ.items() if key != MARK} | {"PYTHONPATH": str(REPOSITORY)}
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in ((watched, 0), (says, 1), (null, 2))]
        command = [sys.executable, "-m", "lab.watchdog", layout.name]
        self._pid = os.posix_spawn(sys.executable, command, env, file_actions=actions, setsid=True)
        for fd in (watched, says, null):
            os.close(fd)
        os.read(said, 1)  # it watches from now on
        os.close(said)

    def release(self) -> None:
        """Takes the lab down, if it still is up, and ends the watchdog."""
        os.close(self._ours)
        os.waitpid(self._pid, 0)


@contextmanager
def guarded(layout: Layout) -> Iterator[Layout]:
    """However the block ends, nothing of the lab is left after it."""
    guard = Guard(layout)
    try:
        yield layout
    finally:
        teardown.down(layout)
        guard.release()


def main() -> None:
    layout = Layout(sys.argv[1])
    os.write(1, b"!")
    os.close(1)
    select.select([0], [], [])
    teardown.down(layout)


if __name__ == "__main__":
    main()
