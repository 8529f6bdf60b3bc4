"""Many files at once: read and judged by child processes, one for each core, because both are work for the processor.

Run as a program it is such a child: a list of paths on stdin, pickled judgements on stdout. Owns nothing but the
sharing out; what a child leaves undone is done here.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, Final

from controlplane.documents import Parsed
from controlplane.judgement import Judge, Judged
from controlplane.sources.files import load, without_collector
from mesh import log

WORTH_BYTES: Final = 4 << 20
"""Less is read sooner than a child has started: about a third of a second."""
_log: Final = log.get("controlplane")


class Many:
    """Loads files for a `FileSource`, and hands each judgement to `judged`."""

    def __init__(self, root_namespace: str, judged: Callable[[Judged], object], worth_bytes: int = WORTH_BYTES) -> None:
        self._root, self._judge, self._judged = root_namespace, Judge(root_namespace), judged
        self._worth = worth_bytes

    def __call__(self, paths: Sequence[str], size: int) -> dict[str, Parsed]:
        """`size`: of all of them, in bytes."""
        found: dict[str, Parsed] = {}
        shares = min(os.cpu_count() or 1, len(paths)) if size >= self._worth else 1
        if shares > 1:
            parts = [paths[number::shares] for number in range(shares)]
            with ThreadPoolExecutor(shares) as pool:
                for part in pool.map(partial(_ask, self._root), parts):
                    found.update((each.parsed.file, self._keep(each)) for each in part)
        for path in paths:
            if path not in found:
                found[path] = self._keep(self._judge.read(load(path)))
        return found

    def _keep(self, judged: Judged) -> Parsed:
        self._judged(judged)
        return judged.parsed


def _ask(root_namespace: str, paths: Sequence[str]) -> list[Judged]:
    """What a child says of these files; less than all when it was killed."""
    # Isolated: what lies in the working directory or in PYTHONPATH is not run.
    command = [sys.executable, "-I", "-m", __name__, root_namespace]
    found: list[Judged] = []
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin
            assert child.stdout
            with child.stdin:
                child.stdin.write(json.dumps(paths).encode("utf-8", "surrogateescape"))
            found.extend(_told(child.stdout))
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        _log.warning("files are read one after the other", why=str(error) or "a child process ended early")
    return found


def _told(stream: IO[bytes]) -> Iterator[Judged]:
    """Raises EOFError: the child was killed."""
    while (each := pickle.load(stream)) is not None:
        yield each


def main() -> None:
    judge = Judge(sys.argv[1])
    with without_collector():
        for path in json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogateescape")):
            pickle.dump(judge.read(load(path)), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        pickle.dump(None, sys.stdout.buffer)


if __name__ == "__main__":
    main()
