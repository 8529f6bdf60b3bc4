"""Workloads' listening sockets, kept by the agent, so that a connection waits for the next tunnel and is not refused.

Owns copies of descriptors, by workload, and for how long they are kept without a tunnel: who waits longer than that is
refused after all. Does not know what they are for; a tunnel looks at what it is given.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mesh import log

_log: Final = log.get("heirlooms")


class Descriptor(Protocol):
    def fileno(self) -> int:
        """Raises ValueError once closed."""


@dataclass(frozen=True, slots=True)
class _Kept:
    namespace: tuple[int, int]
    addresses: tuple[str, ...]
    listeners: tuple[int, ...]


def _none(netns_fd: int, addresses: Sequence[str]) -> list[int]:
    return []


class Heirlooms:
    """`patience_s`: how long they outlive the last tunnel; 0: nothing is kept. `make`: those of a namespace, or on
    these addresses in it, that has none yet, on a thread; [] when it cannot. `revive`: makes a socket listen again when
    it no longer does, or is to because of its port; returns the port that it listens at, or 0."""

    def __init__(
        self,
        patience_s: float = 0.0,
        make: Callable[[int, Sequence[str]], list[int]] = _none,
        revive: Callable[[int, Collection[int]], int] = lambda *_: 0,
    ) -> None:
        self._patience_s, self._make, self._revive = patience_s, make, revive
        self._kept: dict[str, _Kept] = {}
        self._end: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        return self._patience_s > 0

    @property
    def pods(self) -> int:
        return len(self._kept)

    def keep(self, uid: str, netns: Descriptor, addresses: Sequence[str], listeners: Sequence[int]) -> None:
        """`addresses`: its own in a namespace that it shares. Takes the descriptors over, in place of earlier ones.
        Raises ValueError: `netns` is closed; they are too."""
        try:
            namespace = _number(netns)
        except ValueError:
            _close(listeners)
            raise
        self.drop(uid)
        if listeners:
            self._kept[uid] = _Kept(namespace, tuple(addresses), tuple(listeners))

    async def of(self, uid: str, netns: Descriptor, addresses: Sequence[str]) -> tuple[int, ...]:
        """To be passed on at once, not to be closed. Those of an earlier namespace or address are dropped.
        Raises ValueError: `netns` is closed."""
        kept = self._kept.get(uid)
        if kept is None or (kept.namespace, kept.addresses) != (_number(netns), tuple(addresses)):
            self.drop(uid)
            if made := await self._made(netns, addresses):
                self.keep(uid, netns, addresses, made)
            kept = self._kept.get(uid)
        return () if kept is None else kept.listeners

    async def _made(self, netns: Descriptor, addresses: Sequence[str]) -> list[int]:
        copy = os.dup(netns.fileno())  # the pod may leave while the thread works
        try:
            return await asyncio.to_thread(self._make, copy, addresses)
        finally:
            os.close(copy)

    def listen_again(self, uid: str, ports: Collection[int]) -> bool:
        """At these ports of the workload and wherever nobody does, on the very sockets that tunnels accept from. False:
        not at all of these."""
        kept = self._kept.get(uid)
        return kept is not None and set(ports) <= {port for fd in kept.listeners if (port := self._revive(fd, ports))}

    def drop(self, uid: str) -> None:
        """Nobody will serve the pod again: who waits is refused."""
        if (kept := self._kept.pop(uid, None)) is not None:
            _close(kept.listeners)

    def drop_all(self) -> None:
        self.stay()
        for uid in list(self._kept):
            self.drop(uid)

    def run_out(self) -> None:
        """No tunnel is left."""
        self.stay()
        if self._kept:
            self._end = asyncio.get_running_loop().call_later(self._patience_s, self._over)

    def stay(self) -> None:
        """A tunnel is there again."""
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _over(self) -> None:
        _log.warning("no tunnel came, connections are refused from now on", pods=self.pods, after_s=self._patience_s)
        self.drop_all()


def _number(netns: Descriptor) -> tuple[int, int]:
    """What tells a namespace from others as long as somebody holds it."""
    status = os.fstat(netns.fileno())
    return status.st_dev, status.st_ino


def _close(listeners: Sequence[int]) -> None:
    for fd in listeners:
        os.close(fd)
