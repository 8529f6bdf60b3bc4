"""The node's taint: pods that need the mesh shall not be put where nobody could enrol them.

The platform gives new nodes one of the two taints; the agent takes both off once it can serve. It puts back only its
own, with NoSchedule, and only after it could not serve for a while: a restart or an upgrade of the tunnel is shorter,
and until then an ADD is told to try again. docs/decisions/0017 has the rule's reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import msgspec

from kube.client import Client, Patch
from kube.informer import Informer
from kube.objects import NODES, Key, Node, Taint
from mesh import log
from mesh.errors import MeshError

ISTIO: Final = "cni.istio.io/not-ready"
OURS: Final = "nodemesh.io/not-ready"
LOOK_S: Final = 0.25
_log: Final = log.get("taint")


class Wish(Enum):
    OFF = auto()
    ON = auto()
    AS_IT_IS = auto()


@dataclass(slots=True)
class Rule:
    """`after_s`: how long not ready is too long; 0: never. Pure."""

    after_s: float
    _since: float | None = None
    _was_ready: bool = False

    def judge(self, now_s: float, ready: bool) -> Wish:
        """An agent that was never ready has taken nothing off, so it puts nothing back."""
        if ready:
            self._since, self._was_ready = None, True
            return Wish.OFF
        if self._since is None:
            self._since = now_s
        late = self.after_s > 0 and self._was_ready and now_s - self._since >= self.after_s
        return Wish.ON if late else Wish.AS_IT_IS


def patch(taints: list[Taint] | None, wish: Wish) -> list[dict[str, Any]]:
    """A JSON patch that fails when somebody else was faster; empty: nothing to do. Pure."""
    before = taints or []
    after = list(_wanted(before, wish))
    if after == before:
        return []
    path = "/spec/taints"
    test = [{"op": "test", "path": path, "value": msgspec.to_builtins(before)}] if before else []
    if not after:
        return [*test, {"op": "remove", "path": path}]
    return [*test, {"op": "replace" if before else "add", "path": path, "value": msgspec.to_builtins(after)}]


def _wanted(before: list[Taint], wish: Wish) -> Iterable[Taint]:
    for each in before:
        if wish is not Wish.OFF or each.key not in (ISTIO, OURS):
            yield each
    if wish is Wish.ON and not any(each.key == OURS for each in before):
        yield Taint(key=OURS, effect="NoSchedule")


class NodeTaint:
    """`is_ready`: whether a pod that starts now would be enrolled."""

    def __init__(self, client: Client, node: str, is_ready: Callable[[], bool], after_s: float) -> None:
        self._client, self._is_ready = client, is_ready
        self._key = Key("", node)
        self._rule = Rule(after_s)
        self._node: Informer[Node] = Informer(client, NODES, selectors={"fieldSelector": f"metadata.name={node}"})
        self._complained = ""

    @property
    def present(self) -> list[str]:
        """Which of the two the node has now."""
        node = self._node.objects.get(self._key)
        return [each.key for each in (node.spec.taints or ()) if each.key in (ISTIO, OURS)] if node else []

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._node.run(), self._keep())

    async def _keep(self) -> None:
        await self._node.synced.wait()
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Once."""
        wish = self._rule.judge(asyncio.get_running_loop().time(), self._is_ready())
        node = self._node.objects.get(self._key)
        steps = patch(node.spec.taints, wish) if node is not None else []
        if not steps:
            return
        try:
            await self._client.patch(NODES, "", self._key.name, Patch.JSON, steps)
        except MeshError as error:
            if self._complained != str(error):
                _log.warning("the node's taint cannot be changed", node=self._key.name, why=str(error))
            self._complained = str(error)
            return
        self._complained = ""
        _log.info("the node's taint is changed", node=self._key.name, taint="off" if wish is Wish.OFF else "on")
