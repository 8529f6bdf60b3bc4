"""Enrolment's pods to redirection's sandboxes: the one place that knows both. Owns which backends there are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from mesh import log
from mesh.errors import MeshError
from nodeagent import cgroups
from nodeagent.enrol.annotations import Exceptions
from nodeagent.enrol.store import Member
from nodeagent.libbpf import BpfError
from nodeagent.redirect import legacy
from nodeagent.redirect.backend import Backend, OpenNamespace, Sandbox
from nodeagent.redirect.bpf import Bpf
from nodeagent.redirect.bpf_records import Address
from nodeagent.redirect.changes import Changes
from nodeagent.redirect.guard import Group
from nodeagent.redirect.guarding import Guarding
from nodeagent.redirect.listeners import Listeners, Place
from nodeagent.redirect.netns import Namespace
from nodeagent.redirect.nftables import Nft
from nodeagent.redirect.pins import DEFAULT_ROOT
from nodeagent.redirect.plan import DNS_CAPTURE_PORT, INBOUND_PLAIN_PORT, Options, make_plan
from nodeagent.redirect.probing import ROUND_S as PROBES_S
from nodeagent.redirect.probing import Probing
from nodeagent.redirect.redirection import TUNNEL_PORTS, Redirection
from nodeagent.redirect.xtables import Iptables

_log: Final = log.get("capture")

ROUND_S: Final = 4.0
"""How often rules are compared whose change nobody announces."""
SILENT_S: Final = 300.0
"""How often those are whose change the kernel announces: for what we do not know."""


_NAMES: Final[Place] = ("127.0.0.1", DNS_CAPTURE_PORT)

_EXCEPTIONS: Final = [field.name for field in fields(Exceptions)]
"""What annotations say has one name from there to the plan."""


class Capture:
    """`executor.Redirect` by way of the backends."""

    def __init__(
        self,
        setting: str,
        *,
        prove_capture: bool,
        cgroup_root: Path | None = None,
        bpf_root: Path = DEFAULT_ROOT,
        memory: Path,
        listeners: str,
        direct: bool = False,
        probes: bool = False,
        kubelet: str = "",
    ) -> None:
        """Raises OperatorError: this node cannot capture in the way that `setting` asks for."""
        self._bpf = Bpf(bpf_root, listeners)
        backends: list[Backend] = [self._bpf, Nft(), Iptables()]
        self.redirection = Redirection(backends, setting, prove_capture=prove_capture)
        self.guard = Guarding(memory, listeners)
        """Behind capture, whichever backend does it."""
        self.probing = Probing(self._bpf, probes, kubelet)
        self._direct, self._no_maps = direct, ""
        self._changes: dict[str, Changes] = {}
        self._listeners: dict[str, Listeners] = {}
        self._cgroup_root = cgroup_root or cgroups.mounted_at()

    def open(self, path: str) -> Namespace:
        """Raises NamespaceError."""
        return self.redirection.open(path)

    def choose(self, member: Member, namespace: OpenNamespace) -> tuple[str, str]:
        """(backend, why). Raises RedirectError: none can."""
        choice = self.redirection.choose(self._sandbox(member, namespace))
        return choice.backend, choice.why

    async def put(self, member: Member, namespace: OpenNamespace) -> None:
        """Side by side: neither knows of the other, and nobody listens before both are in. Whoever fails, the other has
        ended when this does."""
        outcomes = await asyncio.gather(
            self.redirection.put(member.backend, self._sandbox(member, namespace)),
            self.guard.put(namespace, options=self._options(member)),
            asyncio.to_thread(self.probing.let, member.uid, member.ips),
            return_exceptions=True,
        )
        for failure in outcomes:
            if failure is not None:
                raise failure

    async def compare(self, member: Member, namespace: OpenNamespace) -> list[str]:
        different = await self.redirection.compare(member.backend, self._sandbox(member, namespace))
        different += await self.guard.compare(namespace, options=self._options(member))
        return different + await asyncio.to_thread(self.probing.missing, member.ips)

    async def inspect(self, member: Member, namespace: OpenNamespace) -> list[str]:
        """What in legacy tables takes the pod's TCP from its capture, one phrase each. It is not ours to mend."""
        plan = make_plan(self._options(member))
        return await namespace.run(lambda: legacy.inspect(member.backend, plan))

    async def release(self, member: Member, namespace: OpenNamespace) -> None:
        await self.guard.take_out(namespace)
        await self.redirection.release(member.backend, self._sandbox(member, namespace))

    async def take_out(self, member: Member, namespace: OpenNamespace) -> None:
        await asyncio.to_thread(self.probing.forget, member.uid)
        await self.guard.take_out(namespace)
        await self.redirection.take_out(member.backend, self._sandbox(member, namespace))

    def is_gone(self, member: Member) -> bool:
        """Where its namespace's name was, there is none; a directory that is missing as a whole says nothing."""
        name = Path(member.netns)
        return name.parent.is_dir() and not name.exists()

    def may_differ(self, member: Member, namespace: Namespace, looked_s_ago: float) -> bool:
        """Whether it is time to compare. Cost: microseconds."""
        if (changes := self._changes.get(namespace.identity)) is None:
            self._changes[namespace.identity] = Changes(namespace.fileno())
            return True
        patience_s = SILENT_S if self.redirection.is_announced(member.backend) else ROUND_S
        return changes.happened() or looked_s_ago > patience_s

    def deaf(self, member: Member, namespace: Namespace) -> list[int]:
        """The tunnel's ports at which nobody listens there. Raises OSError. Cost: tens of microseconds."""
        if (listeners := self._listeners.get(namespace.identity)) is None:
            listeners = self._listeners[namespace.identity] = Listeners(namespace.fileno())
        missing = listeners.missing(TUNNEL_PORTS)
        if member.dns_capture:
            missing |= {port for _, port in listeners.silent([_NAMES])}
        if member.backend == "bpf" and not self._bpf.hears(namespace):
            missing |= {INBOUND_PLAIN_PORT}
        return sorted(missing)

    def forget(self, namespace: OpenNamespace) -> None:
        """The pod has left."""
        if (changes := self._changes.pop(namespace.identity, None)) is not None:
            changes.close()
        if (listeners := self._listeners.pop(namespace.identity, None)) is not None:
            listeners.close()

    async def keep_probes(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(PROBES_S)
            before = self.probing.exempt
            await asyncio.to_thread(self.probing.keep)
            if self.probing.exempt != before:
                self._compare_all()

    def _compare_all(self) -> None:
        """What the plan says has changed."""
        for changes in self._changes.values():
            changes.close()
        self._changes.clear()

    async def tunnelled(self, namespace: OpenNamespace) -> int:
        return await self.redirection.tunnelled(namespace)

    async def listening(self, namespace: OpenNamespace) -> list[int]:
        return await self.redirection.listening(namespace)

    async def prove(self, member: Member, namespace: OpenNamespace) -> None:
        await self.redirection.prove(member.backend, self._sandbox(member, namespace), member.ips)

    async def put_hosts(self, wanted: Sequence[tuple[Group, tuple[Address, ...]]]) -> str:
        """By BPF, beside the rules of the host's namespace. Why not, or ""."""
        why = self.redirection.unusable.get("bpf", f"NODEMESH_CAPTURE={self.redirection.capture}")
        if why is None:
            return await asyncio.to_thread(self._bpf.put_hosts, wanted)
        return why

    async def meet(self, pid: int) -> None:
        """A tunnel has connected, and has not heard of any pod yet. Never fails."""
        if self._bpf.is_in_use or self.redirection.unusable.get("bpf", "not asked for") is None:
            await asyncio.to_thread(self._bpf.meet, pid)
        await self.guard.meet(pid)

    async def direct_maps(self) -> list[int]:
        """For a tunnel; none: there is no direct path. The descriptors stay ours."""
        if not self._direct or self._not_by_bpf():
            return []
        try:
            maps = await asyncio.to_thread(self._bpf.direct_maps)
        except BpfError as error:
            _log.warning("no direct path within the node", why=str(error))
            self._no_maps = str(error)
            return []
        self._no_maps = ""
        return maps

    def _not_by_bpf(self) -> str:
        """Why this node has no direct path, whatever the tunnel can; "": it may have."""
        why = self.redirection.unusable.get("bpf", f"NODEMESH_CAPTURE={self.redirection.capture}")
        return "" if why is None else f"no pod is captured by BPF: {why}"

    async def reset_direct(self, member: Member, namespace: Any) -> None:
        """No tunnel is left that would judge the pod's direct connections. Never fails."""
        if not self._direct or member.backend != "bpf":
            return
        try:
            if ended := await self._bpf.reset_direct(namespace):
                _log.warning("direct connections reset: no tunnel judges them", uid=member.uid, connections=ended)
        except (MeshError, OSError, ValueError) as error:
            _log.warning("direct connections not reset", uid=member.uid, why=str(error))

    def describe(self, direct_trouble: str = "") -> dict[str, Any]:
        """Of `GET /status`: the setting, and of each backend that it allows whether this node can; whether pods may
        talk directly, or why not although they should; why python-iptables failed to read a pod's legacy tables."""
        usable = {name: why or "usable" for name, why in self.redirection.unusable.items()}
        return {
            "setting": self.redirection.capture,
            **usable,
            "guard": self.guard.trouble or "in force",
            "direct": (self._not_by_bpf() or self._no_maps or direct_trouble or "on") if self._direct else "off",
            "probes": self.probing.trouble or "pass",
            "legacy": legacy.reader.trouble,
        }

    def close(self) -> None:
        legacy.reader.close()
        for changes in self._changes.values():
            changes.close()
        for listeners in self._listeners.values():
            listeners.close()

    def _sandbox(self, member: Member, namespace: OpenNamespace) -> Sandbox:
        return Sandbox(member.uid, namespace, cgroups.of_pod(self._cgroup_root, member.pod_uid), self._options(member))

    def _options(self, member: Member) -> Options:
        return Options(
            ingress_mode=member.ingress_mode,
            dns_capture=member.dns_capture,
            **{name: getattr(member, name) for name in _EXCEPTIONS},
            keep_connections=member.was_running,
            exempt_probes=self.probing.exempt,
            # The guard lets the mark out that only hooks on the control group keep the pod from giving itself.
            direct=self._direct and member.backend == "bpf" and not member.was_running,
        )
