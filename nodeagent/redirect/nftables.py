"""The `nft` backend: one table of family inet per namespace, replaced in one transaction."""

from __future__ import annotations

from functools import cached_property

from mesh.errors import MeshError
from nodeagent.redirect import kernel, netns
from nodeagent.redirect.backend import Sandbox
from nodeagent.redirect.plan import Options, make_plan
from nodeagent.redirect.verify import differences


class Nft:
    """Stateless but for where `nft` is."""

    name = "nft"
    announced = True

    def unusable(self) -> str | None:
        """Tried in a namespace of its own, which is gone afterwards."""
        try:
            netns.in_scratch(lambda: kernel.put(self._nft, make_plan(Options())))
        except (MeshError, OSError) as error:
            return str(error)
        return None

    def cannot(self, _: Sandbox) -> str | None:
        return None

    @cached_property
    def _nft(self) -> str:
        return kernel.find_nft()

    async def put(self, sandbox: Sandbox) -> None:
        plan, keep = make_plan(sandbox.options), sandbox.options.keep_connections
        await sandbox.namespace.run(lambda: kernel.put(self._nft, plan, keep_connections=keep))

    async def compare(self, sandbox: Sandbox) -> list[str]:
        plan = make_plan(sandbox.options)
        return await sandbox.namespace.run(lambda: differences(plan, kernel.observe(self._nft)))

    async def release(self, sandbox: Sandbox) -> None:
        await self.put(sandbox.released)

    async def take_out(self, sandbox: Sandbox) -> None:
        keep = sandbox.options.keep_connections
        await sandbox.namespace.run(lambda: kernel.take_out(self._nft, keep_connections=keep))
