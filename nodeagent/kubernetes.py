"""The agent's side of a Kubernetes cluster, composed: where its pods come from, what it writes back.

Nothing here is waited for at the start: pods that are enrolled go on without an API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from kube.access import Access
from kube.client import Client
from kube.objects import Key
from nodeagent.cluster.marks import Mark, Marks
from nodeagent.cluster.taint import NodeTaint
from nodeagent.enrol import machine as m
from nodeagent.enrol.api_pods import ApiPods
from nodeagent.enrol.executor import Pod
from nodeagent.enrol.registry import Registry

# A restart of the tunnel, or of the agent, is no reason to call a pod unserved: those keep the mark that they have. A
# pod that is let go is no longer to be reached by HBONE, while its tunnel still serves who comes so.
_MARKS: Final = {"IN_MESH": Mark.ENABLED, "CUT_OFF": Mark.PENDING, "LEAVING": Mark.NONE}
_REASONS: Final = {m.State.REFUSED: "MeshRefused", m.State.CUT_OFF: "MeshCutOff"}


class Cluster:
    """`attach` it to the registry, which needs `pods` first; then `run`."""

    def __init__(self, access: Access, node: str, taint_after_s: float) -> None:
        self._client = Client(access, "nodemesh-nodeagent")
        self._node, self._taint_after_s = node, taint_after_s
        self.pods = ApiPods(self._client, node)
        self._marks: Marks | None = None
        self._taint: NodeTaint | None = None

    def attach(self, registry: Registry, tunnel_is_there: Callable[[], bool]) -> None:
        self._marks = Marks(
            self._client, self._node, lambda: self.pods.node_pods.objects, lambda: wanted_marks(registry.pods)
        )
        self.pods.listen(self._marks.touch)
        registry.moved = self._moved
        self._taint = NodeTaint(
            self._client, self._node, lambda: tunnel_is_there() and self.pods.synced, self._taint_after_s
        )

    def _moved(self, pod: Pod) -> None:
        assert self._marks is not None
        self._marks.touch()
        if reason := _REASONS.get(pod.state):
            self._marks.tell(Key(pod.member.namespace, pod.member.name), reason, pod.last_error)

    async def run(self) -> None:
        """Until cancelled."""
        assert self._marks is not None
        assert self._taint is not None
        try:
            await asyncio.gather(self.pods.run(), self._marks.run(), self._taint.run())
        finally:
            await self._client.close()

    def describe(self) -> dict[str, Any]:
        """For `GET /status`."""
        taints = self._taint.present if self._taint is not None else []
        return {"trouble": self.pods.trouble, "synced": self.pods.synced, "taints": taints}


def wanted_marks(pods: Iterable[Pod]) -> dict[Key, Mark | None]:
    """By the registry's view. A pod that comes or goes at this moment keeps what it has."""
    lively = [pod for pod in pods if not pod.machine.is_over]
    return {Key(pod.member.namespace, pod.member.name): _MARKS.get(pod.state.name) for pod in lively}
