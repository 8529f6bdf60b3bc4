"""Brings this host's workloads into the mesh and out of it: what the documents say, what the kernel does and whom the
tunnel serves are made equal, again and again. Rules before listeners: refused, never clear.

Owns the table in the host's namespace and the list of who is served. Ends without touching either.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mesh import log
from mesh.errors import MeshError, OperatorError
from mesh.ids import Uid
from nodeagent.host_documents import HostDocuments, HostWorkload, IPAddress
from nodeagent.redirect import groups, host_rules, kernel, look, routes
from nodeagent.redirect.guard import Group
from nodeagent.redirect.host_rules import Captured
from nodeagent.redirect.listeners import Listeners, Place
from nodeagent.redirect.plan import DNS_CAPTURE_PORT
from nodeagent.redirect.redirection import TUNNEL_PORTS

_log: Final = log.get("hosts")
PAUSE_S: Final = 1.0


class Tunnel(Protocol):
    @property
    def is_there(self) -> bool: ...

    async def add_host(self, who: HostWorkload, namespace: Namespace) -> None:
        """Raises MeshError: none is there, or it refuses."""

    async def renew_host(self, who: HostWorkload, namespace: Namespace) -> None:
        """Somebody shall listen where nobody does any more. Raises as `add_host`."""

    async def remove(self, uid: Uid) -> None: ...


class Namespace:
    """The host's own, as an open descriptor."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._fd


@dataclass(slots=True)
class _Known:
    """`told`: a tunnel has been, or will be with its snapshot. `served`: it said so."""

    who: HostWorkload
    told: bool = False
    served: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _InForce:
    captured: tuple[Captured, ...] = ()
    tunnels: tuple[Group, ...] = field(default=())


TurnRound = Callable[[Sequence[tuple[Group, tuple[IPAddress, ...]]]], Awaitable[str]]


class Hosts:
    """Not thread-safe: owned by the agent's event loop."""

    def __init__(
        self, documents: HostDocuments, tunnels: Callable[[], Sequence[Group]], tunnel: Tunnel, turn: TurnRound
    ) -> None:
        """`turn`: turns what these groups open round before it is a packet; why it cannot, or ""."""
        self._documents, self._tunnels, self._tunnel, self._turn_round = documents, tunnels, tunnel, turn
        self._not_by_bpf = ""
        self._known: dict[Uid, _Known] = {}
        self._in_force: _InForce | None = None
        self._turn = asyncio.Lock()
        self._namespace = Namespace()
        self._ears: Listeners | None = None
        self._deaf: set[Uid] = set()
        self._trouble = ""

    async def adopt(self) -> None:
        """Before the first tunnel comes: it hears of everybody, so that it withdraws nobody whom it serves already."""
        async with self._turn:
            try:
                found = self._captured(await self._documents.read())
                await self._put(self._wanted(found))
            except (MeshError, OSError) as error:
                self._note(str(error))
                return
            for who, _ in found:
                self._known[who.uid] = _Known(who, told=True)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.reconcile()
            await asyncio.sleep(PAUSE_S)

    async def reconcile(self) -> None:
        """Once. Never fails: what could not be done is tried again."""
        async with self._turn:
            try:
                await self._reconcile()
                self._trouble = ""
            except (MeshError, OSError) as error:
                self._note(str(error))

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.error("workloads of this host are not captured as they should", why=trouble)
        self._trouble = trouble

    async def _reconcile(self) -> None:
        wanted = {each.uid: each for each in await self._documents.read()}
        found = self._captured(wanted.values())
        await self._put(self._wanted(found))
        for uid in [uid for uid, known in self._known.items() if wanted.get(uid) != known.who]:
            await self._withdraw(uid)
        for who, _ in found:
            await self._enrol(who)
        await self._listen_again()

    async def _listen_again(self) -> None:
        """Where nobody does for one whom a tunnel serves. Found twice, a round apart: between two tunnels it may be so
        for a moment. Raises MeshError, OSError."""
        before, self._deaf = self._deaf, set()
        for uid, known in list(self._known.items()):
            if not known.served or not (silent := self._silent(known.who)):
                continue
            if uid not in before:
                self._deaf.add(uid)
                continue
            _log.warning("nobody listened for a workload of this host", uid=uid, at=[_at(place) for place in silent])
            await self._tunnel.renew_host(known.who, self._namespace)

    def _silent(self, who: HostWorkload) -> list[Place]:
        self._ears = self._ears or Listeners(self._namespace.fileno())
        ports = (*TUNNEL_PORTS, DNS_CAPTURE_PORT)
        return sorted(self._ears.silent([(str(address), port) for address in who.addresses for port in ports]))

    def _wanted(self, found: Iterable[tuple[HostWorkload, Group]]) -> _InForce:
        return _InForce(tuple(Captured(group, who.addresses) for who, group in found), tuple(self._tunnels()))

    def _captured(self, wanted: Iterable[HostWorkload]) -> list[tuple[HostWorkload, Group]]:
        """Those whose group is there and whose group and addresses are nobody else's."""
        found: list[tuple[HostWorkload, Group]] = []
        taken: set[Any] = set()
        for who in wanted:
            try:
                group = groups.of_path(who.cgroup)
            except MeshError as error:
                self._waits(who, str(error))
                continue
            if taken & {group.path, *who.addresses}:
                self._waits(who, "its control group or address is another workload's")
                continue
            taken |= {group.path, *who.addresses}
            found.append((who, group))
        return found

    def _waits(self, who: HostWorkload, why: str) -> None:
        known = self._known.setdefault(who.uid, _Known(who))
        if known.trouble != why:
            _log.warning(log.POD_REFUSED, uid=who.uid, why=why)
        known.trouble = why

    async def _put(self, wanted: _InForce) -> None:
        """Raises MeshError, OSError."""
        if wanted == self._in_force or (self._in_force is None and not wanted.captured and not await _is_there()):
            return
        await asyncio.to_thread(_load, wanted)
        self._not_by_bpf = await self._turn_round([(each.group, each.addresses) for each in wanted.captured])
        self._in_force = wanted

    async def _enrol(self, who: HostWorkload) -> None:
        known = self._known.setdefault(who.uid, _Known(who))
        if known.served or not self._tunnel.is_there:
            return
        try:
            await self._tunnel.add_host(who, self._namespace)
        except MeshError as error:
            self._waits(who, str(error))
            return
        known.told, known.served, known.trouble = True, True, ""
        _say_enrolled(who)

    async def _withdraw(self, uid: Uid) -> None:
        known = self._known.pop(uid)
        if known.told:
            await self._tunnel.remove(uid)
            _log.info(log.POD_WITHDRAWN, uid=uid)

    # For the agent ----------------------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """A tunnel came: before it serves anybody it is known here."""
        async with self._turn:
            if self._in_force is not None and self._in_force.captured:
                before, self._in_force = self._in_force, _InForce()
                await self._put(_InForce(before.captured, tuple(self._tunnels())))

    def snapshot(self) -> list[tuple[HostWorkload, Namespace]]:
        """Whom a new tunnel has to serve."""
        return [(known.who, self._namespace) for known in self._known.values() if known.told]

    def heard(self, uid: Uid, why: str | None) -> bool:
        """A tunnel's word on one of the snapshot; False: it is none of ours."""
        if (known := self._known.get(uid)) is None:
            return False
        known.served, known.trouble = why is None, why or ""
        if why is None:
            _log.info(
                log.POD_ENROLLED, uid=uid, ips=[str(each) for each in known.who.addresses], cgroup=known.who.cgroup
            )
        return True

    def lost(self) -> None:
        """No tunnel is left: everybody is refused until the next, which hears of all."""
        for known in self._known.values():
            known.served, known.trouble = False, "no tunnel is connected"

    async def verify(self) -> list[dict[str, Any]]:
        """As the registry's, of pods: what differs, and who listens."""
        listening = await asyncio.to_thread(look.listening)
        found = await _is_there()
        missing = [f"table {host_rules.TABLE} is missing"] if self._known and not found else []
        return [
            {key: each[key] for key in ("uid", "namespace", "name", "state")}
            | {"error": "", "differences": missing, "listening": listening}
            for each in self.describe()
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Of `GET /status`."""
        return [
            {
                "uid": known.who.uid,
                "namespace": known.who.namespace,
                "name": known.who.name,
                "service_account": known.who.service_account,
                "cgroup": known.who.cgroup,
                "addresses": [str(each) for each in known.who.addresses],
                "state": "IN_MESH" if known.served and not self._trouble else "REFUSED",
                "capture": f"nft ({self._not_by_bpf})" if self._not_by_bpf else "bpf",
                "last_error": known.trouble or self._trouble,
            }
            for known in self._known.values()
        ]


def _at(place: Place) -> str:
    address, port = place
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _say_enrolled(who: HostWorkload) -> None:
    _log.info(log.POD_ENROLLED, uid=who.uid, ips=[str(each) for each in who.addresses], cgroup=who.cgroup)


async def _is_there() -> bool:
    """Of an agent before this one."""
    return bool(await asyncio.to_thread(lambda: kernel.listing(kernel.find_nft(), "inet", host_rules.TABLE)))


def remove() -> None:
    """What any agent put in the host's namespace; without nft, none did. Idempotent. Blocks. Raises MeshError."""
    with suppress(OperatorError):
        _load(_InForce())


def _load(wanted: _InForce) -> None:
    """In the host's namespace. Routes first: they change nothing until the rules mark packets."""
    nft = kernel.find_nft()
    if wanted.captured:
        routes.put()
        kernel.load(nft, host_rules.render(wanted.captured, wanted.tunnels))
        return
    kernel.load(nft, host_rules.REMOVAL)
    routes.take_out()
