"""How often the agent had to mend a pod, for as long as it runs; a pod that has left stays counted. Owns the metric."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final

_NAME: Final = "nodemesh_agent_repairs_total"
_HEAD: Final = (
    f"# HELP {_NAME} Pods mended by the node agent, by what was amiss and the backend that captures the pod.\n"
    f"# TYPE {_NAME} counter\n"
)


class Kind(StrEnum):
    CAPTURE = "capture"
    """Rules, routes, hooks or the guard were not as planned."""
    LISTENERS = "listeners"
    """At one of the tunnel's ports nobody listened any more."""
    TUNNEL = "tunnel"
    """A pod was cut off; the tunnel was asked again and listens in it."""


class Repairs:
    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, kind: Kind, backend: str) -> None:
        self._counts[kind, backend] += 1

    def render(self) -> str:
        """Prometheus' text format."""
        rows = sorted(self._counts.items())
        return _HEAD + "".join(f'{_NAME}{{kind="{kind}",backend="{backend}"}} {n}\n' for (kind, backend), n in rows)
