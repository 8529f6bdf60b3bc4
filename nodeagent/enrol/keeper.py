"""Keeps the mesh as the documents say and the rules as the plan says, pod by pod, while everything runs.

Four duties, none of which a runtime asks for: a running pod whose label says so joins or leaves; a pod that started
without us joins; one that ended without us is withdrawn; rules that somebody changed, and listeners that ceased to
listen, are mended and capture is proven again. Decides who, never how: that is `machine.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from mesh import log
from mesh.errors import MeshError
from mesh.ids import Uid, pod_uid
from nodeagent.enrol import machine as m
from nodeagent.enrol.executor import Pod
from nodeagent.enrol.pods import PodSource, PodSpec, UnknownYet, is_eligible
from nodeagent.enrol.registry import CniError, Registry
from nodeagent.enrol.requests import Attachment
from nodeagent.enrol.store import Member

_log: Final = log.get("keeper")

ROUND_S: Final = 1.0
LEAST_DRAIN_S: Final = 2.0
"""Until the other nodes know that a pod has left, they come by the tunnel."""
FOREIGN_S: Final = 60.0
"""How often is looked for what others put beside the capture: nobody announces it, and it is not ours to mend."""
LISTEN_S: Final = 2.0
"""How often is asked whether somebody listens."""
CUT_OFF_S: Final = 10.0
"""How often a pod that is cut off is tried again."""
_LONGEST_WAIT_S: Final = 60.0


class Sandboxes(Protocol):
    def attachments(self) -> list[Attachment]: ...


class Eyes(Protocol):
    """What is seen of a namespace without changing it. Coroutines raise MeshError, OSError."""

    def is_gone(self, member: Member) -> bool:
        """The runtime has taken the name of its namespace away."""

    def may_differ(self, member: Member, namespace: Any, looked_s_ago: float) -> bool: ...
    async def compare(self, member: Member, namespace: Any) -> list[str]: ...
    def deaf(self, member: Member, namespace: Any) -> list[int]:
        """The tunnel's ports at which nobody listens."""

    async def tunnelled(self, namespace: Any) -> int:
        """Open connections that the tunnel has there."""


class Keeper:
    """Not thread-safe: owned by the agent's event loop."""

    def __init__(
        self,
        registry: Registry,
        source: PodSource,
        sandboxes: Sandboxes,
        eyes: Eyes,
        *,
        drain_s: float,
        round_s: float = ROUND_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`drain_s`: how long the connections of a pod that leaves may take to end. `round_s` 0: nobody looks at rules,
        nobody tries again."""
        self._registry, self._source, self._sandboxes, self._eyes = registry, source, sandboxes, eyes
        self._drain_s, self._round_s, self._now = drain_s, round_s, now
        self._looked: dict[Uid, float] = {}
        self._listened: dict[Uid, tuple[float, bool]] = {}
        """When somebody last asked who listens, and whether nobody did."""
        self._retry: dict[str, tuple[float, float]] = {}
        """Container -> not before, and the wait that was."""
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        duties = (self._follow(), self._watch(), self._search())
        self._tasks = [asyncio.create_task(duty, name="keeper") for duty in duties]
        for task in self._tasks:
            task.add_done_callback(_raise)

    async def stop(self) -> None:
        tasks = [*self._tasks, *self._joining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await self._source.changed()
            self.reconcile()

    async def _watch(self) -> None:
        while self._round_s:
            await asyncio.sleep(self._round_s)
            self.reconcile()
            await self.look()

    async def _search(self) -> None:
        """Apart from the rounds: what is read slowly must not delay a repair."""
        while self._round_s:
            await asyncio.sleep(FOREIGN_S)
            await self.search()

    # Who belongs ----------------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Starts what has to be done; waits for nothing."""
        specs = self._source.pods()
        for pod in self._registry.pods:
            spec = specs.get((pod.member.namespace, pod.member.name))
            if pod.state in m.RESTING_STATES and spec is not None and self._eligible(spec) is False:
                self._dismiss(pod)
        for attachment in self._attachments():
            spec = specs.get((attachment.pod_namespace, attachment.pod_name))
            if spec is not None and self._is_to_join(spec, attachment):
                self._join(attachment)

    def _attachments(self) -> list[Attachment]:
        known = {each.container_id: each for each in self._sandboxes.attachments()}
        gone = self._registry.departed
        gone.intersection_update(known)  # the runtime forgets them a moment after it has told their end
        return [each for each in (known | self._registry.attached).values() if each.container_id not in gone]

    def _eligible(self, spec: PodSpec) -> bool | None:
        """None: nobody can say yet."""
        try:
            return is_eligible(spec, self._source)
        except UnknownYet:
            return None

    def _is_to_join(self, spec: PodSpec, attachment: Attachment) -> bool:
        is_another = spec.uid and attachment.pod_uid and spec.uid != attachment.pod_uid
        if is_another or spec.finished or spec.node not in ("", self._registry.node):
            return False
        if self._registry.knows(pod_uid(self._registry.cluster, spec.namespace, spec.name)):
            return False
        due, _ = self._retry.get(attachment.container_id, (0.0, 0.0))
        return attachment.container_id not in self._joining and self._now() >= due and bool(self._eligible(spec))

    def _dismiss(self, pod: Pod) -> None:
        if pod.state is not m.State.LEAVING:
            _log.info("pod leaves the mesh", uid=pod.member.uid)
            pod.tell(m.Dismissed(pod.member.uid))

    def _join(self, attachment: Attachment) -> None:
        task = asyncio.create_task(self._try(attachment), name=f"join {attachment.container_id}")
        self._joining[attachment.container_id] = task
        task.add_done_callback(lambda _: self._joining.pop(attachment.container_id, None))
        task.add_done_callback(_raise)

    async def _try(self, attachment: Attachment) -> None:
        try:
            await self._registry.add(attachment, running=True)
        except CniError:  # the registry has said why
            _, wait = self._retry.get(attachment.container_id, (0.0, ROUND_S / 2))
            wait = min(2 * wait, _LONGEST_WAIT_S)
            self._retry[attachment.container_id] = (self._now() + wait, wait)
        else:
            self._retry.pop(attachment.container_id, None)

    # What is there --------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One round over the pods that rest."""
        await self._withdraw_the_gone()
        pods = [pod for pod in self._registry.pods if pod.state in m.RESTING_STATES]
        self._looked = {pod.member.uid: self._looked.get(pod.member.uid, self._now() - _LONGEST_WAIT_S) for pod in pods}
        self._listened = {uid: asked for uid, asked in self._listened.items() if uid in self._looked}
        for pod in pods:
            try:
                await (self._let_go if pod.state is m.State.LEAVING else self._inspect)(pod)
            except (MeshError, OSError, ValueError) as error:
                _log.debug("pod not looked at", uid=pod.member.uid, why=str(error))

    async def search(self) -> None:
        """One round over the pods that are in the mesh, for foreign rules."""
        for pod in self._registry.pods:
            if pod.state is m.State.IN_MESH:
                await self._registry.inspect(pod)

    async def _withdraw_the_gone(self) -> None:
        """Their end was told to nobody: no agent ran, or the list of plugins lacked our entry. Never a pod that the
        runtime still has on record: without its name a namespace may live on."""
        resting = [pod.member for pod in self._registry.pods if pod.state in m.RESTING_STATES]
        if not (gone := [member for member in resting if self._eyes.is_gone(member)]):
            return
        recorded = {each.container_id for each in self._sandboxes.attachments()}
        for member in gone:
            if member.container_id not in recorded:
                _log.info("pod is gone", uid=member.uid, why=f"{member.netns} is not there any more")
                await self._registry.remove(member.container_id)

    async def _let_go(self, pod: Pod) -> None:
        left_s = time.time() - pod.since
        if left_s < LEAST_DRAIN_S:
            return
        if left_s > self._drain_s or not await self._eyes.tunnelled(pod.namespace):
            pod.tell(m.Drained(pod.member.uid))

    async def _inspect(self, pod: Pod) -> None:
        """A pod that is cut off is also tried again when nothing differs: what cut it off may be over."""
        if self._is_deaf(pod):
            pod.tell(m.Deaf(pod.member.uid))
            return
        uid, looked_s_ago = pod.member.uid, self._now() - self._looked[pod.member.uid]
        is_due = pod.state is m.State.CUT_OFF and looked_s_ago > CUT_OFF_S
        if not self._eyes.may_differ(pod.member, pod.namespace, looked_s_ago) and not is_due:
            return
        self._looked[uid] = self._now()
        different = await self._eyes.compare(pod.member, pod.namespace)
        if (different or is_due) and pod.state in m.RESTING_STATES:
            pod.tell(m.Drifted(uid))

    def _is_deaf(self, pod: Pod) -> bool:
        """Found twice, a round apart: between two tunnels a pod may be deaf for a moment."""
        uid = pod.member.uid
        asked, was_deaf = self._listened.get(uid, (0.0, False))
        if pod.state is not m.State.IN_MESH or not (was_deaf or self._now() - asked >= LISTEN_S):
            return False
        is_deaf = bool(self._eyes.deaf(pod.member, pod.namespace))
        self._listened[uid] = (self._now(), is_deaf and not was_deaf)
        return is_deaf and was_deaf


def _raise(task: asyncio.Task[None]) -> None:
    """A bug must not pass in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        asyncio.get_running_loop().call_exception_handler({"message": task.get_name(), "exception": error})
