"""What became of each pod, written on the pod: Istio's annotation `ambient.istio.io/redirection`, and events.

The annotation is a comparison of what should be there with what is, repeated after every change, so that nothing is
lost over a restart of ours or of the API server. istiod, and our control plane, tell by it whom to reach by HBONE.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from kube.client import Client, Patch
from kube.errors import NotFound
from kube.objects import EVENTS, PODS, Key, Pod
from kube.reconcile import Reconciler
from mesh import log
from mesh.errors import MeshError

ANNOTATION: Final = "ambient.istio.io/redirection"
COMPONENT: Final = "nodemesh-nodeagent"
MOST_EVENTS: Final = 512
FINISHED: Final = ("Succeeded", "Failed")
_log: Final = log.get("marks")


class Mark(StrEnum):
    """ENABLED: captured and served. PENDING: captured, not served: it is cut off. NONE: no annotation."""

    ENABLED = "enabled"
    PENDING = "pending"
    NONE = ""


def difference(pod: Pod, mark: Mark | None) -> dict[str, Any] | None:
    """A merge patch that makes it so; None: nothing to do. `mark` None: leave it as it is. Pure."""
    about, status = pod.metadata, pod.status
    over = about.deletion_timestamp is not None or (status is not None and status.phase in FINISHED)
    if mark is None or over or (about.annotations or {}).get(ANNOTATION, "") == mark:
        return None
    return {"metadata": {"uid": about.uid, "annotations": {ANNOTATION: mark or None}}}


class Marks:
    """`pods`: this node's, as the API has them. `wanted`: what those should bear that the agent has something to do
    with, None being no opinion; all others bear nothing."""

    def __init__(
        self,
        client: Client,
        node: str,
        pods: Callable[[], Mapping[Key, Pod]],
        wanted: Callable[[], Mapping[Key, Mark | None]],
    ) -> None:
        self._client, self._node, self._pods, self._wanted = client, node, pods, wanted
        self._reconciler = Reconciler(self._write_all, 0.2)
        self._said: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def touch(self) -> None:
        """A pod, or what should be on it, may have changed."""
        self._reconciler.touch()

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.run()

    async def _write_all(self) -> bool:
        """Whether nothing is left to do. One at a time: a node has few pods, and the server many nodes."""
        done, wanted = True, self._wanted()
        for key, pod in list(self._pods().items()):
            if (patch := difference(pod, wanted.get(key, Mark.NONE))) is not None:
                done = await self._write(key, patch) and done
        return done

    async def _write(self, key: Key, patch: dict[str, Any]) -> bool:
        try:
            await self._client.patch(PODS, key.namespace, key.name, Patch.MERGE, patch, subresource="status")
        except NotFound:
            return True
        except MeshError as error:
            _log.warning("pod not marked", pod=str(key), why=str(error))
            return False
        return True

    def tell(self, key: Key, reason: str, message: str) -> None:
        """A Warning event on the pod, best effort; the same words about the same pod once."""
        pod = self._pods().get(key)
        uid = pod.metadata.uid or "" if pod is not None else ""
        if (uid, message) in self._said:
            return
        self._said[uid, message] = None
        while len(self._said) > MOST_EVENTS:
            self._said.popitem(last=False)
        task = asyncio.ensure_future(self._tell(event(self._node, key, uid, reason, message)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, body: dict[str, Any]) -> None:
        try:
            await self._client.create(EVENTS, body["metadata"]["namespace"], body)
        except MeshError as error:
            _log.debug("event not written", why=str(error))


def event(node: str, pod: Key, uid: str, reason: str, message: str) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": uid}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{pod.name}.", "namespace": pod.namespace},
        "involvedObject": about,
        "type": "Warning",
        "reason": reason,
        "message": message[:1024],
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
