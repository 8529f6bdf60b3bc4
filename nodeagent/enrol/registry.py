"""The pods of this node: joins and withdraws them on request, finds them again after a restart, tells who they are.

Owns the list. A workload has one entry; a second sandbox of the same workload replaces the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

from mesh import log
from mesh.errors import MeshError, OperatorError
from mesh.ids import Uid, pod_uid
from nodeagent.enrol import annotations as wishes
from nodeagent.enrol import machine as m
from nodeagent.enrol.executor import TRY_AGAIN_LATER, Hands, Namespace, Pod, Redirect, Tunnel, abandon_all
from nodeagent.enrol.pods import PodSource, PodSpec, UnknownYet, is_eligible
from nodeagent.enrol.repairs import Kind, Repairs
from nodeagent.enrol.requests import Attachment
from nodeagent.enrol.store import Member, Store

_AT_ONCE: Final = 8
"""Namespaces that are looked at, when all are."""
_log: Final = log.get("enrol")

INVALID_ENVIRONMENT: Final = 4
"""CNI error code: the namespace in CNI_NETNS cannot be used."""


class CniError(MeshError):
    """What the plugin prints: a CNI error code and a sentence."""

    def __init__(self, code: int, msg: str) -> None:
        super().__init__(msg)
        self.code, self.msg = code, msg


class Kernel(Redirect, Protocol):
    def open(self, path: str) -> Namespace:
        """Raises MeshError."""

    def choose(self, member: Member, namespace: Any) -> tuple[str, str]:
        """(backend, why): how the pod is going to be captured. Raises MeshError: not at all."""


class Registry:
    """Not thread-safe: owned by the agent's event loop."""

    def __init__(
        self, cluster: str, node: str, source: PodSource, store: Store, kernel: Kernel, *, dns_capture: bool = True
    ) -> None:
        """`dns_capture`: of pods that do not say themselves."""
        self._dns_capture = dns_capture
        self.cluster, self.node, self._source, self._store, self._kernel = cluster, node, source, store, kernel
        self.attached: dict[str, Attachment] = {}
        """Every sandbox that the plugin told of since the agent's start, in the mesh or not, by container."""
        self._pods: dict[Uid, Pod] = {}
        self._remembered: dict[Uid, Member] = {}
        self._hands: Hands | None = None
        self.departed: set[str] = set()
        """Containers whose end the runtime has told, or whose start was refused: nobody brings them in again."""
        self.repairs = Repairs()
        self.moved: Callable[[Pod], None] = lambda _: None
        """Called with each pod that changed its state."""

    def use(self, tunnel: Tunnel) -> None:
        """Before the first pod; the tunnel's server needs `snapshot` of this registry first."""
        self._hands = Hands(self._kernel, tunnel, self)

    @property
    def pods(self) -> list[Pod]:
        return list(self._pods.values())

    def readopt(self) -> None:
        """The pods of an agent that ended before: those whose namespace is still the same. Their traffic goes on.
        Raises OperatorError: the list of pods cannot be written."""
        for member in self._store.load():
            if (namespace := self._reopen(member)) is None:
                continue
            self._remembered[member.uid] = member
            self._begin(member, namespace).tell(m.PodFound(member.uid))
        try:
            self._store.save(self._remembered.values())
        except MeshError as error:
            raise OperatorError(str(error)) from None

    def _reopen(self, member: Member) -> Namespace | None:
        try:
            namespace = self._kernel.open(member.netns)
        except MeshError as error:
            _log.info("pod is gone", uid=member.uid, why=str(error))
            return None
        if namespace.identity == member.identity:
            return namespace
        namespace.close()
        _log.info("pod is gone", uid=member.uid, why=f"{member.netns} is another namespace now")
        return None

    def knows(self, uid: Uid) -> bool:
        return uid in self._pods

    async def add(self, request: Attachment, *, running: bool = False) -> None:
        """Returns when the pod is in the mesh or not meant for it. `running`: nobody waits, its applications are at
        work. Raises CniError."""
        if running:
            return await self._add(request, running=True)
        self.departed.discard(request.container_id)
        try:
            return await self._add(request, running=False)
        except CniError:
            self.attached.pop(request.container_id, None)
            self.departed.add(request.container_id)
            raise

    async def _add(self, request: Attachment, *, running: bool) -> None:
        began = time.monotonic()
        try:
            await self._source.prepare(request.pod_namespace, request.pod_name, request.pod_uid)
        except UnknownYet as error:
            raise CniError(TRY_AGAIN_LATER, str(error)) from None
        spec = self._find(request)
        if not running:
            self.attached[request.container_id] = request
        if spec is None:
            return
        uid = pod_uid(self.cluster, spec.namespace, spec.name)
        member, namespace = self._member(uid, spec, request, running=running)
        try:
            earlier = await self._room_for(member)
        except BaseException:
            namespace.close()
            raise
        if earlier is not None:
            namespace.close()
            await _again(earlier)
            return
        if running and request.container_id in self.departed:
            namespace.close()
            return
        pod = self._begin(member, namespace)
        pod.tell(m.PodRunning(uid) if running else m.PodStarting(uid))
        answer = await pod.answered()
        pod.add_ms = round((time.monotonic() - began) * 1000, 1)
        _report(pod, answer)

    async def _room_for(self, member: Member) -> Pod | None:
        """The pod itself when this very sandbox is known; an earlier sandbox of it is withdrawn. Raises CniError."""
        while (earlier := self._pods.get(member.uid)) is not None:
            known = earlier.member
            if (known.container_id, known.identity) == (member.container_id, member.identity):
                return earlier
            await self._withdraw([earlier])
        for other in self.pods:
            # Else the end of one would take the other's rules out.
            if other.member.identity == member.identity and not other.machine.is_over:
                raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS: {member.netns} is the namespace of {other.member.uid}")
        return None

    async def check(self, request: Attachment) -> None:
        """Raises CniError: the pod is meant for the mesh and something of it is missing."""
        pod = next((p for p in self.pods if p.member.container_id == request.container_id), None)
        if pod is None:
            if self._find(request) is not None:
                raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)} is not enrolled")
            return
        try:
            different = await self._kernel.compare(pod.member, pod.namespace)
            if not different:
                await self._kernel.prove(pod.member, pod.namespace)
        except (MeshError, OSError, ValueError) as error:
            raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)}: {error}") from None
        if different:
            raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)}: {'; '.join(different)}")

    async def verify(self) -> list[dict[str, Any]]:
        """Every pod as its namespace is now: what differs from the plan, what others put beside it,
        and who listens. Changes nothing."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def verified(pod: Pod) -> dict[str, Any]:
            async with turns:
                return await self._verify(pod)

        return await asyncio.gather(*(verified(pod) for pod in self.pods if not pod.machine.is_over))

    async def _verify(self, pod: Pod) -> dict[str, Any]:
        found = {"uid": pod.member.uid, "namespace": pod.member.namespace, "name": pod.member.name}
        found |= {"state": pod.state.name, "capture": pod.member.backend}
        try:
            different = await self._kernel.compare(pod.member, pod.namespace)
            await self.inspect(pod)
            listening = await self._kernel.listening(pod.namespace)
        except (MeshError, OSError, ValueError) as error:
            return {**found, "error": str(error), "differences": [], "foreign": [], "listening": []}
        foreign = [each for each in pod.foreign if each not in different]
        return {**found, "error": "", "differences": different, "foreign": foreign, "listening": listening}

    async def inspect(self, pod: Pod) -> None:
        """Notes what others put beside its capture; what cannot be read is not called clean."""
        before = pod.foreign
        try:
            pod.foreign = await self._kernel.inspect(pod.member, pod.namespace)
        except (MeshError, OSError, ValueError) as error:
            pod.foreign = [f"there are legacy tables that cannot be read: {error}"]
        if pod.foreign and pod.foreign != before:
            _log.warning("foreign rules beside the capture", uid=pod.member.uid, why="; ".join(pod.foreign))

    async def remove(self, container_id: str) -> None:
        """Idempotent. Another sandbox of the same workload is not touched."""
        self.attached.pop(container_id, None)
        self.departed.add(container_id)
        await self._withdraw([p for p in self.pods if p.member.container_id == container_id])

    async def keep_only(self, container_ids: frozenset[str]) -> None:
        self.attached = {each: known for each, known in self.attached.items() if each in container_ids}
        await self._withdraw([p for p in self.pods if p.member.container_id not in container_ids])

    async def stop(self) -> None:
        """The agent ends; every pod stays as it is."""
        await abandon_all(self.pods)

    def snapshot(self) -> list[Pod]:
        """The pods that a tunnel should be serving."""
        early = (m.State.NEW, m.State.REDIRECTING)
        return [pod for pod in self.pods if pod.state not in early and not pod.machine.is_over]

    def tell(self, uid: Uid, event: Callable[[Uid], m.Event]) -> None:
        """A tunnel's word about one pod; it may have left meanwhile."""
        if (pod := self._pods.get(uid)) is not None:
            pod.tell(event(uid))

    def tell_all(self, event: Callable[[Uid], m.Event]) -> None:
        for pod in self.snapshot():
            pod.tell(event(pod.member.uid))

    def remember(self, pod: Pod) -> None:
        self._remembered[pod.member.uid] = pod.member
        self._store.save(self._remembered.values())

    def forget(self, pod: Pod) -> None:
        self._pods.pop(pod.member.uid, None)
        if self._remembered.pop(pod.member.uid, None) is not None:
            self._store.save(self._remembered.values())

    def noted(self, pod: Pod) -> None:
        self.moved(pod)

    def mended(self, pod: Pod, kind: Kind) -> None:
        self.repairs.count(kind, pod.member.backend)

    def _find(self, request: Attachment) -> PodSpec | None:
        """None: not meant for the mesh. Raises CniError."""
        try:
            spec = self._source.pod(request.pod_namespace, request.pod_name)
            if not is_eligible(spec, self._source):
                return None
        except UnknownYet as error:
            raise CniError(TRY_AGAIN_LATER, str(error)) from None
        if spec.node not in ("", self.node):
            raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)} belongs to node {spec.node}, this is {self.node}")
        return spec

    def _member(self, uid: Uid, spec: PodSpec, request: Attachment, *, running: bool) -> tuple[Member, Namespace]:
        try:
            exceptions = wishes.read(spec.annotations)
        except ValueError as error:
            raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)}: {error}") from None
        try:
            namespace = self._kernel.open(request.netns)
        except MeshError as error:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS: {error}") from None
        member = Member(
            uid=uid,
            namespace=spec.namespace,
            name=spec.name,
            service_account=spec.service_account,
            container_id=request.container_id,
            netns=request.netns,
            identity=namespace.identity,
            ips=request.ips,
            ingress_mode=spec.ingress_mode,
            dns_capture=spec.dns_capture(self._dns_capture),
            search=spec.search,
            pod_uid=request.pod_uid or spec.uid,
            was_running=running,
            **asdict(exceptions),
        )
        try:
            backend, why = self._kernel.choose(member, namespace)
        except MeshError as error:
            namespace.close()
            raise CniError(m.ENROLMENT_FAILED, f"pod {_name(request)} is not in the mesh: {error}") from None
        return replace(member, backend=backend, backend_why=why), namespace

    def _begin(self, member: Member, namespace: Namespace) -> Pod:
        assert self._hands is not None
        pod = self._pods[member.uid] = Pod(member, namespace, self._hands)
        return pod

    async def _withdraw(self, pods: Iterable[Pod]) -> None:
        leaving = list(pods)
        for pod in leaving:
            pod.tell(m.PodGone(pod.member.uid))
        await asyncio.gather(*(pod.over() for pod in leaving))


def _name(request: Attachment) -> str:
    return f"{request.pod_namespace}/{request.pod_name}"


async def _again(pod: Pod) -> None:
    """ADD for a sandbox that is enrolled or about to be."""
    if pod.state in m.STARTING_STATES or pod.state is m.State.NEW:
        _report(pod, await pod.answered())
    elif pod.state is not m.State.IN_MESH:
        raise CniError(
            TRY_AGAIN_LATER, f"pod {pod.member.uid} is {pod.state.name}: {pod.last_error or 'no tunnel yet'}"
        )


def _report(pod: Pod, answer: m.Answer) -> None:
    if answer.why is None:
        _log.info(log.POD_ENROLLED, uid=pod.member.uid, ips=list(pod.member.ips), add_ms=pod.add_ms, **pod.took_ms)
        return
    _log.warning(log.POD_REFUSED, uid=pod.member.uid, why=answer.why)
    raise CniError(answer.code, f"pod {pod.member.namespace}/{pod.member.name} is not in the mesh: {answer.why}")


def describe(pod: Pod) -> dict[str, Any]:
    """One entry of `GET /pods`. `since`: Unix time, seconds."""
    member = pod.member
    return {
        "uid": member.uid,
        "namespace": member.namespace,
        "name": member.name,
        "service_account": member.service_account,
        "state": pod.state.name,
        "ips": list(member.ips),
        "netns": member.netns,
        "netns_identity": member.identity,
        "container_id": member.container_id,
        "since": pod.since,
        "dns_capture": member.dns_capture,
        "capture": member.backend,
        "capture_why": member.backend_why,
        "last_error": pod.last_error,
        "add_ms": pod.add_ms,
        "took_ms": pod.took_ms,
        "was_running": member.was_running,
        "repairs": pod.repairs,
        "last_repair": pod.last_repair,
        "foreign": pod.foreign,
    }
