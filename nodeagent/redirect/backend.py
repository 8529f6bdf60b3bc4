"""The border between enrolment and the ways to capture: what a workload is to a backend, and what a backend can do.

A backend owns all that it puts into a namespace or onto a cgroup, and takes out exactly that. `redirection.py` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from mesh.errors import MeshError
from nodeagent.redirect.plan import Options

T = TypeVar("T")


class RedirectError(MeshError):
    """The kernel refused, or a program did. Nothing of what was asked is in force."""


class OpenNamespace(Protocol):
    """A network namespace, held open. `identity` is never used twice; `fileno` raises ValueError once closed."""

    identity: str

    def fileno(self) -> int: ...

    async def run(self, job: Callable[[], T]) -> T:
        """`job()` on a thread inside the namespace."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One workload as the kernel sees it. `cgroup`: its directory in cgroup v2; None when nobody knows it."""

    uid: str
    namespace: OpenNamespace
    cgroup: Path | None
    options: Options

    @property
    def released(self) -> Sandbox:
        """As it is while it leaves."""
        return replace(self, options=replace(self.options, captures=False))


class Backend(Protocol):
    """One way to capture. Every coroutine raises MeshError with a sentence when it could not be done."""

    name: str
    """`bpf`, `nft` or `iptables`."""

    def unusable(self) -> str | None:
        """Why this node cannot, as a phrase; None: it can. Leaves nothing behind, blocks for milliseconds."""

    def cannot(self, sandbox: Sandbox) -> str | None:
        """Why not this workload, although the node can."""

    async def put(self, sandbox: Sandbox) -> None:
        """All of it or nothing, both families. Idempotent; open connections go on."""

    async def compare(self, sandbox: Sandbox) -> list[str]:
        """What differs from the plan, one phrase each. Changes nothing."""

    async def release(self, sandbox: Sandbox) -> None:
        """Nothing new is captured, what is open goes on; `take_out` follows."""

    async def take_out(self, sandbox: Sandbox) -> None:
        """Nothing of ours is left. Idempotent."""
