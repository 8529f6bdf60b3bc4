"""The pods that the node agent handed over: which are served, which wait for another try.

Owns the descriptors that came with waiting pods. Does not own the socket to the agent (`zds`) or the listeners (core).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Final

from mesh import log
from ztunnel.dataplane import Dataplane, PodGone

RETRY_S: Final = 5.0

_log = log.get("pods")


@dataclass(frozen=True, slots=True)
class Pod:
    """Whom a network namespace belongs to, as door 2 says it."""

    uid: str
    name: str
    namespace: str
    service_account: str
    search: tuple[str, ...] = ()
    """Search domains of its resolver."""
    addresses: tuple[str, ...] = ()
    """Its own ones in a namespace that it shares."""


@dataclass(frozen=True, slots=True)
class Handed:
    """The descriptors that came with a pod; whoever holds it closes it."""

    netns_fd: int
    listeners: list[int] | None = None
    """Sockets of an earlier tunnel. None: the agent keeps none."""

    def close(self) -> None:
        for fd in (self.netns_fd, *(self.listeners or ())):
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _Waiting:
    pod: Pod
    handed: Handed
    why: str


class Pods:
    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._served: dict[str, Pod] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._turn = asyncio.Lock()  # a retry must not overtake a withdrawal of the same pod

    @property
    def served(self) -> list[str]:
        return list(self._served)

    @property
    def waiting(self) -> dict[str, str]:
        """uid to why it is not served yet."""
        return {uid: entry.why for uid, entry in self._waiting.items()}

    async def add(self, pod: Pod, handed: Handed) -> str:
        """Takes `handed` over. Returns "" or why the pod is not served; it stays waiting unless it is gone."""
        async with self._turn:
            self._forget_waiting(pod.uid)
            return await self._enrol(pod, handed)

    def listeners(self, uid: str) -> list[int]:
        """Copies of a served pod's listening sockets, the caller's to close; none when they cannot be made."""
        try:
            return self._dataplane.core.listeners(uid)
        except OSError as error:
            _log.warning("listening sockets not shared", uid=uid, why=str(error))
            return []

    def use_direct(self, maps: list[int]) -> str:
        """The direct path within the node by these maps, the caller's to close; none: there is none. Why not, or ""."""
        try:
            self._dataplane.core.use_direct(maps)
        except OSError as error:
            _log.warning("no direct path within the node", why=str(error))
            return str(error)
        return ""

    async def withdraw(self, uid: str) -> None:
        """Unknown uid: nothing happens."""
        async with self._turn:
            await self._withdraw(uid)

    async def keep_only(self, named: set[str]) -> None:
        """The agent's snapshot is complete: what it did not name is no longer there."""
        async with self._turn:
            for uid in (self._served.keys() | self._waiting.keys()) - named:
                await self._withdraw(uid)

    def knows(self, uid: str) -> bool:
        return uid in self._served or uid in self._waiting

    async def run(self) -> None:
        """Tries waiting pods again, for ever."""
        while True:
            await asyncio.sleep(RETRY_S)
            await self.retry()

    async def retry(self) -> None:
        async with self._turn:
            for entry in list(self._waiting.values()):
                del self._waiting[entry.pod.uid]
                await self._enrol(entry.pod, entry.handed)

    def close(self) -> None:
        """Gives the waiting pods' descriptors back."""
        for uid in list(self._waiting):
            self._forget_waiting(uid)

    async def _enrol(self, pod: Pod, handed: Handed) -> str:
        about = (pod.uid, pod.name, pod.namespace, pod.service_account)
        try:
            await self._dataplane.enrol(*about, handed.netns_fd, pod.search, pod.addresses, handed.listeners)
        except PodGone as error:
            handed.close()
            self._served.pop(pod.uid, None)
            _log.warning(log.POD_REFUSED, uid=pod.uid, why=str(error))
            return str(error)
        except Exception as error:  # whatever binding in a foreign namespace may raise, the agent is told and we retry
            why = str(error) or type(error).__name__
            self._served.pop(pod.uid, None)
            self._waiting[pod.uid] = _Waiting(pod, handed, why)
            _log.warning(log.POD_REFUSED, uid=pod.uid, why=why, retry_s=RETRY_S)
            return why
        handed.close()
        if pod.uid not in self._served:
            _log.debug(log.POD_ENROLLED, uid=pod.uid, name=pod.name, namespace=pod.namespace)
        self._served[pod.uid] = pod
        return ""

    async def _withdraw(self, uid: str) -> None:
        self._forget_waiting(uid)
        await self._dataplane.withdraw(uid)
        if self._served.pop(uid, None):
            _log.debug(log.POD_WITHDRAWN, uid=uid)

    def _forget_waiting(self, uid: str) -> None:
        entry = self._waiting.pop(uid, None)
        if entry:
            entry.handed.close()
