"""Chooses how each workload is captured, and does it: the first backend that can, or the one that the operator named.

Owns the order and the choice; what a backend leaves in the kernel is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.errors import OperatorError
from nodeagent.redirect import canary, look
from nodeagent.redirect.backend import Backend, OpenNamespace, RedirectError, Sandbox
from nodeagent.redirect.netns import Namespace
from nodeagent.redirect.plan import HBONE_PORT, INBOUND_PLAIN_PORT, OUTBOUND_PORT

AUTO: Final = "auto"
TUNNEL_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PLAIN_PORT, HBONE_PORT})
ORDER: Final = ("bpf", "nft", "iptables")
SETTINGS: Final = (AUTO, *ORDER)


@dataclass(frozen=True, slots=True)
class Choice:
    """`why`: a phrase for the operator."""

    backend: str
    why: str


class Redirection:
    """Which backends this node can use is found out once. Coroutines raise MeshError with a sentence."""

    def __init__(self, backends: Sequence[Backend], capture: str = AUTO, *, prove_capture: bool = True) -> None:
        """`capture`: one of SETTINGS. Raises OperatorError: the named one, or every one, cannot be used here."""
        self.capture = capture
        self._prove_capture = prove_capture
        self._backends = {backend.name: backend for backend in sorted(backends, key=lambda b: ORDER.index(b.name))}
        asked = self._backends if capture == AUTO else {capture: self._backends.get(capture)}
        self.unusable = {name: _why_not(backend) for name, backend in asked.items()}
        """Of each backend that may be chosen: why this node cannot, or None."""
        if all(self.unusable.values()):
            reasons = "; ".join(f"{name}: {why}" for name, why in self.unusable.items())
            raise OperatorError(f"NODEMESH_CAPTURE={capture}: no pod can be captured: {reasons}")

    def choose(self, sandbox: Sandbox) -> Choice:
        """Raises RedirectError: none can."""
        passed: list[str] = []
        for name, unusable in self.unusable.items():
            if (why := unusable or self._backends[name].cannot(sandbox)) is None:
                named = f"NODEMESH_CAPTURE={name}" if self.capture != AUTO else "first of " + ", ".join(ORDER)
                return Choice(name, "; ".join(passed) or named)
            passed.append(f"not {name}: {why}")
        raise RedirectError(f"NODEMESH_CAPTURE={self.capture}: it cannot be captured: {'; '.join(passed)}")

    def open(self, path: str) -> Namespace:
        """Raises NamespaceError."""
        return Namespace.open(path)

    async def put(self, backend: str, sandbox: Sandbox) -> None:
        await self._named(backend).put(sandbox)

    async def compare(self, backend: str, sandbox: Sandbox) -> list[str]:
        """What differs from the plan, one phrase each."""
        return await self._named(backend).compare(sandbox)

    async def release(self, backend: str, sandbox: Sandbox) -> None:
        """Nothing new is captured, what is open goes on; `take_out` follows."""
        await self._named(backend).release(sandbox)

    async def take_out(self, backend: str, sandbox: Sandbox) -> None:
        await self._named(backend).take_out(sandbox)

    def _named(self, backend: str) -> Backend:
        """Also one that would not be chosen today: a workload keeps its backend as long as it lives."""
        try:
            return self._backends[backend]
        except KeyError:
            raise RedirectError(f"it was captured by {backend}, which this agent does not know") from None

    def is_announced(self, backend: str) -> bool:
        """Whether the kernel tells of every change of what that backend put in."""
        return bool(getattr(self._named(backend), "announced", False))

    async def tunnelled(self, namespace: OpenNamespace) -> int:
        """Open connections at the tunnel's ports."""
        return await namespace.run(lambda: look.established(TUNNEL_PORTS))

    async def listening(self, namespace: OpenNamespace) -> list[int]:
        """TCP ports that somebody listens on there."""
        return await namespace.run(look.listening)

    async def prove(self, backend: str, sandbox: Sandbox, pod_ips: Sequence[str]) -> None:
        """BPF looks at who connects, so there the canary lives in the pod's control group."""
        cgroup = sandbox.cgroup if backend == "bpf" else None
        if self._prove_capture:
            await sandbox.namespace.run(lambda: canary.prove(pod_ips, cgroup))


def _why_not(backend: Backend | None) -> str | None:
    return "this agent was built without it" if backend is None else backend.unusable()
