"""Carries the machine's commands out and brings the results back: one task per pod, one command at a time.

Owns the pods of this node and their namespaces' descriptors. Decides nothing: order and failure are `machine.py`'s.
What it acts on comes in as the protocols below; `main.py` chooses who implements them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mesh import log
from mesh.errors import MeshError
from mesh.ids import Uid
from nodeagent.enrol import machine as m
from nodeagent.enrol.repairs import Kind
from nodeagent.enrol.store import Member

_log: Final = log.get("enrol")

TRY_AGAIN_LATER: Final = 11
"""CNI error code."""


class Namespace(Protocol):
    """An open network namespace; `fileno` raises ValueError once closed."""

    identity: str

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Redirect(Protocol):
    """Every coroutine raises MeshError with a sentence."""

    async def put(self, member: Member, namespace: Any) -> None: ...
    async def compare(self, member: Member, namespace: Any) -> list[str]: ...
    async def inspect(self, member: Member, namespace: Any) -> list[str]:
        """What somebody else put beside it and takes the pod's TCP from it."""

    async def release(self, member: Member, namespace: Any) -> None: ...
    async def take_out(self, member: Member, namespace: Any) -> None: ...
    def forget(self, namespace: Any) -> None:
        """The pod has left."""

    def deaf(self, member: Member, namespace: Any) -> list[int]:
        """The tunnel's ports at which nobody listens. Raises OSError. Cost: tens of microseconds."""

    async def listening(self, namespace: Any) -> list[int]: ...
    async def prove(self, member: Member, namespace: Any) -> None: ...


class NoTunnel(MeshError):
    """No tunnel is there to serve a pod: the runtime shall try again."""


class Tunnel(Protocol):
    async def add(self, member: Member, namespace: Namespace) -> None:
        """Raises NoTunnel, or MeshError when the tunnel cannot serve it."""

    async def renew(self, member: Member, namespace: Namespace, ports: Sequence[int]) -> None:
        """As `add`, for a pod that is served: it is to listen again at these ports. Its connections go on where the
        agent holds the sockets; they end where only the tunnel does."""

    async def remove(self, uid: Uid) -> None: ...


class Register(Protocol):
    """Who is enrolled, kept beyond this process. Raises MeshError when it cannot be written."""

    def remember(self, pod: Pod) -> None: ...
    def forget(self, pod: Pod) -> None: ...

    def noted(self, pod: Pod) -> None:
        """Its state is another one now."""

    def mended(self, pod: Pod, kind: Kind) -> None: ...


@dataclass(frozen=True, slots=True)
class Hands:
    """What every pod acts through."""

    redirect: Redirect
    tunnel: Tunnel
    register: Register


class Pod:
    """One pod's life. `told` from outside wait until the command under way has reported."""

    def __init__(self, member: Member, namespace: Namespace, hands: Hands) -> None:
        self.member, self.namespace = member, namespace
        self.machine = m.Enrolment()
        self.since = time.time()
        self.last_error = ""
        self.repairs, self.last_repair = 0, ""
        self.foreign: list[str] = []
        """What was found beside its capture when somebody last looked."""
        self.add_ms: float | None = None
        self.took_ms: dict[str, float] = {}
        """What its start waited for, by step: those of `_STEPS` that are over."""
        self._hands = hands
        self._inbox: asyncio.Queue[m.Event] = asyncio.Queue()
        self._answer: asyncio.Future[m.Answer] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(), name=f"pod {member.uid}")
        self._task.add_done_callback(self._ended)

    @property
    def state(self) -> m.State:
        return self.machine.state

    def tell(self, event: m.Event) -> None:
        self._inbox.put_nowait(event)

    async def answered(self) -> m.Answer:
        """What the plugin is told. Waits."""
        return await asyncio.shield(self._answer)

    async def over(self) -> None:
        """Waits until the pod left. A task that broke down raises here."""
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def abandon(self) -> None:
        """The agent stops: rules stay in, nothing is told to anybody."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self.namespace.close()

    async def _live(self) -> None:
        while not self.machine.is_over:
            await self._play(await self._inbox.get())

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A bug must neither keep the plugin waiting nor pass in silence."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not self._answer.done():
            self._answer.set_exception(error)
        asyncio.get_running_loop().call_exception_handler({"message": task.get_name(), "exception": error})

    async def _play(self, event: m.Event) -> None:
        pending = deque([event])
        while pending:
            before = self.state
            commands = self.machine.handle(pending.popleft())
            self._note(before)
            for command in commands:
                if (result := await self._carry_out(command)) is not None:
                    pending.append(result)
                    break

    def _note(self, before: m.State) -> None:
        if self.state is before:
            return
        self.since = time.time()
        say = _log.warning if self.state is m.State.CUT_OFF else _log.debug
        say("pod changed state", uid=self.member.uid, state=self.state.name, before=before.name, why=self.last_error)
        self._hands.register.noted(self)

    async def _carry_out(self, command: m.Command) -> m.Event | None:
        """The event that the command ends in. Only commands that report may fail."""
        began = time.monotonic()
        try:
            result = await _DO[type(command)](self, command)
            if self.add_ms is None and (step := _STEPS.get(type(command))):
                self.took_ms[step] = round((time.monotonic() - began) * 1000, 1)
            return result
        except NoTunnel as error:
            return self._failed(str(error), TRY_AGAIN_LATER)
        except (MeshError, OSError) as error:
            return self._failed(str(error), m.ENROLMENT_FAILED)

    def _failed(self, why: str, code: int) -> m.Event:
        self.last_error = why
        return m.Failed(self.member.uid, why, code)

    async def _remember(self, _: m.Command) -> None:
        self._hands.register.remember(self)

    async def _put_rules(self, _: m.Command) -> m.Event:
        await self._hands.redirect.put(self.member, self.namespace)
        return m.RulesIn(self.member.uid)

    async def _repair_rules(self, _: m.Command) -> m.Event:
        different = await self._hands.redirect.compare(self.member, self.namespace)
        if different:
            what = "; ".join(different)
            _log.warning("rules differ and are replaced", uid=self.member.uid, why=what)
            await self._hands.redirect.put(self.member, self.namespace)
            self._mended(what, Kind.CAPTURE)
        return m.RulesIn(self.member.uid)

    async def _release(self, _: m.Command) -> m.Event:
        await self._hands.redirect.release(self.member, self.namespace)
        return m.Released(self.member.uid)

    async def _start_serving(self, _: m.Command) -> m.Event:
        await self._hands.tunnel.add(self.member, self.namespace)
        if self.state is m.State.MENDING:
            self._hands.register.mended(self, Kind.TUNNEL)
        return m.Serving(self.member.uid)

    async def _renew(self, _: m.Command) -> m.Event:
        if ports := self._hands.redirect.deaf(self.member, self.namespace):
            _log.warning("nobody listens for the pod any more", uid=self.member.uid, ports=ports)
            await self._hands.tunnel.renew(self.member, self.namespace, ports)
            self._mended(f"nobody listened at {', '.join(map(str, ports))}", Kind.LISTENERS)
        return m.Serving(self.member.uid)

    def _mended(self, what: str, kind: Kind) -> None:
        self.repairs += 1
        self.last_repair = what
        self._hands.register.mended(self, kind)

    async def _prove(self, _: m.Command) -> m.Event:
        await self._hands.redirect.prove(self.member, self.namespace)
        self.last_error = ""
        return m.Proved(self.member.uid)

    async def _stop_serving(self, _: m.Command) -> None:
        await self._best_effort("tunnel not told", self._hands.tunnel.remove(self.member.uid))

    async def _take_rules_out(self, _: m.Command) -> None:
        await self._best_effort("rules not taken out", self._hands.redirect.take_out(self.member, self.namespace))

    async def _forget(self, _: m.Command) -> None:
        try:
            self._hands.register.forget(self)
        except MeshError as error:
            _log.warning("pod not forgotten on disk", uid=self.member.uid, why=str(error))
        self._hands.redirect.forget(self.namespace)
        self.namespace.close()
        if self.state is m.State.GONE:
            _log.info(log.POD_WITHDRAWN, uid=self.member.uid)

    async def _answer_plugin(self, command: m.Command) -> None:
        assert isinstance(command, m.Answer)
        self._answer.set_result(command)

    async def _best_effort(self, phrase: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (MeshError, OSError) as error:
            _log.warning(phrase, uid=self.member.uid, why=str(error))


_STEPS: Final[dict[type[m.Command], str]] = {
    m.PutRules: "rules_ms",
    m.StartServing: "tunnel_ms",
    m.Prove: "canary_ms",
}
_DO: Final[dict[type[m.Command], Callable[[Pod, Any], Awaitable[m.Event | None]]]] = {
    m.Remember: Pod._remember,
    m.PutRules: Pod._put_rules,
    m.RepairRules: Pod._repair_rules,
    m.Release: Pod._release,
    m.StartServing: Pod._start_serving,
    m.Renew: Pod._renew,
    m.Prove: Pod._prove,
    m.StopServing: Pod._stop_serving,
    m.TakeRulesOut: Pod._take_rules_out,
    m.Forget: Pod._forget,
    m.Answer: Pod._answer_plugin,
}


async def abandon_all(pods: Iterable[Pod]) -> None:
    await asyncio.gather(*(pod.abandon() for pod in pods))
