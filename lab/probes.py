"""Driving `probe.py` in a pod while other things happen."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from lab import processes
from lab.cluster import Cluster, Pod
from mesh.errors import OperatorError

_SCRIPT: Final = str(Path(__file__).with_name("probe.py"))
Said = dict[str, Any]


class Probe:
    """One running client. Use as a context manager: it ends with the block."""

    def __init__(self, cluster: Cluster, pod: Pod, kind: str, ip: str, port: int, number: float, *extra: str) -> None:
        command = [sys.executable, "-I", "-S", _SCRIPT, kind, ip, str(port), str(number), *extra]
        self._what = f"{kind} from {pod.name} to {ip}:{port}"
        self._process = subprocess.Popen(
            [*cluster.inside(pod), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=processes.environment(cluster.layout, {}),
        )
        self._pending = b""

    def next(self, timeout_s: float = 60.0) -> Said:
        """The next event. Raises OperatorError: none in time, or the client ended without one."""
        assert self._process.stdout
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise OperatorError(f"{self._what}: says nothing for {timeout_s:g} s")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise OperatorError(f"{self._what}: ended with {self._errors()}")
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def expect(self, event: str, timeout_s: float = 60.0) -> Said:
        """Raises OperatorError: it said something else."""
        said = self.next(timeout_s)
        if said["event"] != event:
            raise OperatorError(f"{self._what}: {event} was expected, and it said {said}")
        return said

    def stop(self, timeout_s: float = 60.0) -> Said:
        """Asks it to end; its last event."""
        assert self._process.stdin
        self._process.stdin.close()
        return self.next(timeout_s)

    def _errors(self) -> str:
        assert self._process.stderr
        return self._process.stderr.read().decode(errors="replace").strip() or "no word"

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()
