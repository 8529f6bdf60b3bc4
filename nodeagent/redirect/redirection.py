"""What enrolment asks of the kernel, as coroutines: open a namespace, put rules in, repair, take out, prove."""

from __future__ import annotations

from collections.abc import Sequence

from nodeagent.redirect import canary, kernel
from nodeagent.redirect.netns import Namespace
from nodeagent.redirect.plan import Options, make_plan
from nodeagent.redirect.verify import differences


class Redirection:
    """Stateless but for where `nft` is. Every coroutine raises MeshError with a sentence when it could not be done."""

    def __init__(self, *, prove_capture: bool) -> None:
        """Raises OperatorError: nft is missing."""
        self._nft = kernel.find_nft()
        self._prove_capture = prove_capture

    def open(self, path: str) -> Namespace:
        """Raises NamespaceError."""
        return Namespace.open(path)

    async def put(self, namespace: Namespace, *, ingress_mode: bool, dns_capture: bool) -> None:
        plan = make_plan(Options(ingress_mode, dns_capture=dns_capture))
        await namespace.run(lambda: kernel.put(self._nft, plan))

    async def compare(self, namespace: Namespace, *, ingress_mode: bool, dns_capture: bool) -> list[str]:
        """What differs from the plan, one phrase each."""
        plan = make_plan(Options(ingress_mode, dns_capture=dns_capture))
        return await namespace.run(lambda: differences(plan, kernel.observe(self._nft)))

    async def listening(self, namespace: Namespace) -> list[int]:
        """TCP ports that somebody listens on there."""
        return await namespace.run(kernel.listening)

    async def take_out(self, namespace: Namespace) -> None:
        await namespace.run(lambda: kernel.take_out(self._nft))

    async def prove(self, namespace: Namespace, pod_ips: Sequence[str]) -> None:
        if self._prove_capture:
            await namespace.run(lambda: canary.prove(pod_ips))
