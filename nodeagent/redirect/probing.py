"""The kubelet's probes pass by the tunnel: they come from an address that nobody else can have a conversation from.

Owns that address of the host, one per family, on its lo; the hooks on the kubelet's control group that give it to the
kubelet's connections to pods (bpf/probes.h); and the list of those pods' addresses. What it means within a pod is
`plan.py`'s, for every backend. Why it cannot be forged: docs/decisions/0040.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, Protocol

from mesh import log
from mesh.errors import MeshError
from nodeagent.libbpf import Map
from nodeagent.redirect import groups, kubelet, routes
from nodeagent.redirect.bpf_records import pack_address
from nodeagent.redirect.groups import NoGroup
from nodeagent.redirect.guard import Group
from nodeagent.redirect.plan import PROBE_SOURCES

_log: Final = log.get("probes")

ROUND_S: Final = 2.0
"""How often it is seen whether the kubelet is another one now."""
_MOST_ROUNDS: Final = 32
OFF: Final = "off"


class Hooks(Protocol):
    """`bpf.Bpf`, which blocks and raises MeshError."""

    @property
    def probed(self) -> Map: ...
    def let_probe(self, kubelets: Sequence[Group]) -> None: ...


class Probing:
    """One node's, in the host's network namespace. Everything blocks for milliseconds; any thread may call."""

    def __init__(self, hooks: Hooks, on: bool, kubelet_path: str) -> None:
        """`kubelet_path`: its control group, "": to be found."""
        self._hooks, self._on, self._path = hooks, on, kubelet_path
        self._lock = threading.Lock()
        self._kubelet: Group | None = None
        self._rounds = 0
        """Since there was one."""
        self._is_written = False
        self._pods: dict[str, frozenset[bytes]] = {}
        self.trouble = OFF
        """Why probes are captured like everything; "": they are not."""
        self.exempt = False
        """Whether pods may let the address pass: it is the host's."""

    def keep(self) -> None:
        """Puts in what is missing; with the setting off, takes out what an earlier agent put in. Never fails."""
        with self._lock:
            before, self.trouble = self.trouble, self._kept()
        if self.trouble != before:
            say = _log.info if self.trouble in ("", OFF) else _log.warning
            say("probes pass by the tunnel" if not self.trouble else "probes are captured", why=self.trouble)

    def recall(self) -> None:
        """What an earlier agent left stays while the kubelet is away. Before any pod of that agent is compared with
        what its rules should be. Never fails."""
        with suppress(MeshError):
            self.exempt = self._on and routes.are_on_lo(PROBE_SOURCES)

    def begin(self, pods: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Those of an earlier agent: uid and addresses. Never fails."""
        self._pods = {uid: _keys(ips) for uid, ips in pods}
        self.keep()

    def let(self, uid: str, ips: Sequence[str]) -> None:
        """That pod is probed. Never fails: at worst its probes are captured."""
        with self._lock:
            self._pods[uid] = _keys(ips)
            if self.exempt:
                self._best_effort(lambda: self._write(self._pods[uid]))

    def missing(self, ips: Sequence[str]) -> list[str]:
        """One phrase if probes of the pod are not let pass, though they should be. Raises MeshError."""
        with self._lock:
            if not self.exempt or all(self._hooks.probed.get(key) for key in _keys(ips)):
                return []
            return ["its addresses are not among those that are probed"]

    def forget(self, uid: str) -> None:
        """The pod has left; an address of it may be another's by now. Never fails."""
        with self._lock:
            gone = self._pods.pop(uid, frozenset())
            if self.exempt:
                self._best_effort(lambda: self._discard(gone.difference(*self._pods.values())))

    # With the lock held -----------------------------------------------------------------------------------------------

    def _kept(self) -> str:
        """Why not."""
        try:
            if not self._on:
                self._take_out()
                return OFF
            self._put()
        except (MeshError, OSError) as why:
            return str(why)
        return ""

    def _put(self) -> None:
        """The address stays the host's while the kubelet is away, or comes back in another group."""
        if self.exempt:
            self._hold()
        found = self._found()
        if not self._is_written:
            self._write_all()
            self._is_written = True
        self._hooks.let_probe([found])
        self._hold()

    def _hold(self) -> None:
        try:
            routes.keep_on_lo(PROBE_SOURCES)
        except (MeshError, OSError):
            self.exempt = False
            raise
        self.exempt = True

    def _found(self) -> Group:
        """Raises NoGroup. A node without a kubelet is not searched in every round."""
        if self._kubelet is not None and groups.exists(self._kubelet):
            return self._kubelet
        self._kubelet, self._rounds = None, self._rounds + 1
        if not self._path and self._rounds & (self._rounds - 1) and self._rounds % _MOST_ROUNDS:
            raise NoGroup(self.trouble)
        self._kubelet = kubelet.find(self._path)
        self._rounds = 0
        return self._kubelet

    def _take_out(self) -> None:
        self.exempt = False
        self._hooks.let_probe([])
        routes.take_from_lo(PROBE_SOURCES)

    def _write_all(self) -> None:
        wanted = frozenset[bytes]().union(*self._pods.values())
        self._discard(frozenset(self._hooks.probed.having(b"")) - wanted)
        self._write(wanted)

    def _write(self, keys: frozenset[bytes]) -> None:
        for key in keys:
            self._hooks.probed[key] = b"\1"

    def _discard(self, keys: frozenset[bytes]) -> None:
        for key in keys:
            self._hooks.probed.discard(key)

    def _best_effort(self, work: Callable[[], None]) -> None:
        try:
            work()
        except MeshError as error:
            _log.warning("addresses that are probed are not up to date", why=str(error))


def _keys(ips: Sequence[str]) -> frozenset[bytes]:
    return frozenset(pack_address(ip_address(ip)) for ip in ips)
