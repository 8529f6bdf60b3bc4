"""The tunnels' access logs: one line per connection, read back as fields."""

from __future__ import annotations

import json
import re
from typing import Final

from lab.cluster import Cluster
from lab.processes import wait_until

Line = dict[str, str]
_FIELD: Final = re.compile(r'([a-z_]+(?:\.[a-z_]+)*)=("(?:[^"\\]|\\.)*"|\S+)')


def parse(line: str) -> Line:
    """Istio's field names -> values, without quotes; of a JSON line or a plain one."""
    if line.startswith("{"):
        return {key: str(value) for key, value in json.loads(line).items()}
    return {key: value.strip('"') for key, value in _FIELD.findall(line)}


class AccessLog:
    """A node's log from now on: only lines written after this object was made."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._path, self._node = cluster.layout.access_log(node), node
        self._from = self._path.stat().st_size if self._path.exists() else 0

    def lines(self) -> list[Line]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._from)
            whole = file.read().decode(errors="replace").split("\n")[:-1]
        return [parse(line) for line in whole]

    def wait_for(self, timeout_s: float = 60.0, **wanted: str) -> Line:
        """The first line whose fields contain the given texts; `src_workload` stands for `src.workload`.
        Raises OperatorError: none came."""
        found: list[Line] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines() if _matches(line, wanted)]
            return bool(found)

        wait_until(f"{self._node}'s access log has a line with {wanted}", seen, timeout_s)
        return found[0]


def _matches(line: Line, wanted: dict[str, str]) -> bool:
    return all(text in line.get(key.replace("_", ".", 1), line.get(key, "")) for key, text in wanted.items())
