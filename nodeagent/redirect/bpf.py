"""The `bpf` backend: hooks on the workload's control group for what leaves, a socket look-up in its namespace for what
arrives; no packet is rewritten and netfilter is not used.

What it puts in is pinned, so capture outlives the agent. The tunnel is known by its control group and nothing else:
every implementation that binds 15001, 15006 and 15008 in the pod's namespace is served, however often it restarts.
bpf/README.md tells how the parts work together; what is captured is decided in bpf/capture.h.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from mesh import log
from mesh.errors import MeshError
from nodeagent import libbpf
from nodeagent.libbpf import BpfError, Map
from nodeagent.redirect import bpf_records as records
from nodeagent.redirect import groups, orphans, routes
from nodeagent.redirect.backend import OpenNamespace, RedirectError, Sandbox
from nodeagent.redirect.bpf_programs import (
    DIRECT_HOOKS,
    PROBE_HOOKS,
    SK_LOOKUP,
    TUNNEL_HOOKS,
    WORKLOAD_HOOKS,
    Hook,
    Programs,
    try_out,
)
from nodeagent.redirect.guard import Group
from nodeagent.redirect.pins import DEFAULT_ROOT, Pins
from nodeagent.redirect.plan import DNS_PORT, INBOUND_PLAIN_PORT

_log: Final = log.get("bpf")

INBOUND: Final = "inbound"
"""Name of the link on the namespace."""
_FILESYSTEMS: Final = Path("/proc/filesystems")
_COOKIE: Final = "cookie:"
_ALL_HOOKS: Final = {**DIRECT_HOOKS, **WORKLOAD_HOOKS}
NEW_CONNECTIONS: Final = ["connect4", "connect6", "sendmsg4", "sendmsg6", INBOUND]
"""What only looks at what begins."""
T = TypeVar("T")


class Bpf:
    """One node's. Coroutines run on threads inside the workload's namespace, one at a time."""

    name = "bpf"

    def __init__(self, root: Path = DEFAULT_ROOT, listeners: str = "") -> None:
        """`listeners`: the control group, if there is one, whose sockets tunnels accept from; a path as in /proc."""
        self._pins, self._listeners = Pins(root), listeners
        self._lock = threading.Lock()
        self._loaded: Programs | None = None
        self._tunnel_fault: str | None = None

    def unusable(self) -> str | None:
        """Found out by loading, which is the only sure way to know."""
        kernel = _FILESYSTEMS.read_text(encoding="ascii").split()
        if "bpf" not in kernel or "cgroup2" not in kernel:
            return "the kernel lacks bpffs or cgroup v2"
        try:
            try_out()
        except BpfError as error:
            return str(error)
        return None

    def cannot(self, sandbox: Sandbox) -> str | None:
        if sandbox.cgroup is None:
            return "its control group is unknown"
        if not sandbox.namespace.identity.startswith(_COOKIE):
            return "the kernel gives namespaces no cookies (Linux 5.14)"
        if sandbox.options.virtual_interfaces:
            return "what comes in from its virtual interfaces is no connect() of a process"
        return self._tunnel_fault

    async def put(self, sandbox: Sandbox) -> None:
        await sandbox.namespace.run(lambda: self._alone(lambda: self._put(sandbox)))

    async def compare(self, sandbox: Sandbox) -> list[str]:
        return await sandbox.namespace.run(lambda: self._alone(lambda: self._compare(sandbox)))

    async def release(self, sandbox: Sandbox) -> None:
        await sandbox.namespace.run(lambda: self._alone(lambda: self._let_pass(sandbox)))

    async def take_out(self, sandbox: Sandbox) -> None:
        await sandbox.namespace.run(lambda: self._alone(lambda: self._take_out(_cookie(sandbox.namespace))))

    def hears(self, namespace: OpenNamespace) -> bool:
        """What arrives there finds a listener. Cost: one system call; on the caller's thread."""
        if (programs := self._loaded) is None:
            return True  # nothing was looked at yet
        return programs.listeners.get(records.pack_listener(_cookie(namespace), INBOUND_PLAIN_PORT)) is not None

    @property
    def is_in_use(self) -> bool:
        """By workloads of an earlier agent, whatever the setting is now."""
        return bool(self._pins.workloads())

    def direct_maps(self) -> list[int]:
        """What a tunnel needs to grant the direct path; the descriptors stay ours. Raises BpfError. Blocks."""
        return self._alone(lambda: self._programs.direct_fds)

    async def reset_direct(self, namespace: OpenNamespace) -> int:
        """Ends what goes directly out of the namespace: how many. Raises MeshError."""
        found = await namespace.run(lambda: self._alone(lambda: self._reset_direct(_cookie(namespace))))
        return len(found)

    def _reset_direct(self, cookie: int) -> list[orphans.Orphan]:
        direct = self._programs.direct
        keyed = [(key, record) for key in direct.having(b"") if (record := direct.get(key)) is not None]
        found = {key: orphan for key, record in keyed if (orphan := orphans.Orphan.read(key, record)).netns == cookie}
        orphans.reset(found.values())
        for key in found:
            direct.discard(key)
        return list(found.values())

    def put_hosts(self, wanted: Sequence[tuple[Group, tuple[records.Address, ...]]]) -> str:
        """Exactly these control groups of the host's namespace have their TCP turned round when it is opened. What they
        ask for names, and what arrives, is left to others. Why it could not be done: then to none; "": done. Blocks."""
        try:
            if self._tunnel_fault is None:
                self._alone(lambda: self._put_hosts(wanted))
                return ""
            why = self._tunnel_fault
        except (MeshError, OSError) as error:
            why = str(error)
        with suppress(MeshError, OSError):
            self._alone(lambda: self._put_hosts([]))
        return why

    def meet(self, pid: int) -> None:
        """A tunnel has connected, and has not heard of any pod yet. Never fails; blocks for milliseconds."""
        try:
            for group in (groups.of_process(pid), *self._of_listeners()):
                self._alone(partial(self._hook, groups.TOP / group.path, self._pins.tunnel(group.number), TUNNEL_HOOKS))
            self._alone(self._drop_dead_tunnels)
        except MeshError as error:
            self._tunnel_fault = f"the tunnel cannot be told apart: {error}"
            _log.warning("tunnel not prepared for capture by BPF", why=str(error))
        else:
            self._tunnel_fault = None

    def let_probe(self, kubelets: Sequence[Group]) -> None:
        """Exactly these control groups' connections to pods in `probed` come from the probes' address. Blocks. Raises
        MeshError."""
        self._alone(lambda: self._let_probe(kubelets))

    def _let_probe(self, kubelets: Sequence[Group]) -> None:
        wanted = {self._pins.kubelet(group.number): group for group in kubelets}
        for pins in self._pins.kubelets():
            if pins not in wanted:
                _unlink_all(pins, PROBE_HOOKS)
        for pins, group in wanted.items():
            self._hook(groups.TOP / group.path, pins, PROBE_HOOKS)

    @property
    def probed(self) -> Map:
        """The addresses of pods that let probes pass. Raises BpfError."""
        return self._alone(lambda: self._programs.probed)

    def _of_listeners(self) -> list[Group]:
        try:
            return [groups.of_path(self._listeners)] if self._listeners else []
        except groups.NoGroup:
            return []

    def _alone(self, job: Callable[[], T]) -> T:
        with self._lock:
            return job()

    @property
    def _programs(self) -> Programs:
        """Loaded when first needed. Raises BpfError."""
        if self._loaded is None:
            self._loaded = Programs(self._pins)
            self._succeed(self._loaded)
        return self._loaded

    # What is put in, in the order in which it takes effect ------------------------------------------------------------

    def _put(self, sandbox: Sandbox) -> None:
        """Raises RedirectError; then nothing is there that was not there before."""
        cookie, programs = _cookie(sandbox.namespace), self._programs
        pins = self._pins.workload(cookie)
        known = pins.is_dir()
        try:
            routes.put()
            routes.keep_marks(True)
            self._write_down(cookie, programs, sandbox)
            pins.mkdir(mode=0o700, exist_ok=True)
            self._hook_namespace(sandbox.namespace, cookie, pins)
            self._hook(_cgroup(sandbox), pins, _hooks(sandbox))
            self._replace_earlier(cookie)
        except BpfError as error:
            if not known:
                self._take_out(cookie)
            raise RedirectError(str(error)) from None

    def _let_pass(self, sandbox: Sandbox) -> None:
        """Also of who is about to join: the tunnel's hooks mark what it opens for a client only in a workload's
        namespace, and the first client may come before anything is captured."""
        cookie = _cookie(sandbox.namespace)
        routes.put()
        routes.keep_marks(True)
        self._write_down(cookie, self._programs, sandbox)
        _unlink_all(self._pins.workload(cookie), NEW_CONNECTIONS)

    def _write_down(self, cookie: int, programs: Programs, sandbox: Sandbox) -> None:
        who = records.pack_id(records.Kind.NETNS, cookie)
        addresses = routes.addresses()
        for table, wanted in _tables(programs, records.entries(who, sandbox.options, addresses)):
            for key in wanted:
                table[key] = b"\1"
            for key in set(table.having(who)) - wanted:
                table.discard(key)
        programs.workloads[who] = records.pod(sandbox.options, addresses).pack()

    def _put_hosts(self, wanted: Sequence[tuple[Group, tuple[records.Address, ...]]]) -> None:
        programs, named = self._programs, {self._pins.host(group.number) for group, _ in wanted}
        for pins in self._pins.hosts():
            if pins not in named:
                number = int(pins.name.removeprefix("cgroup-"))
                self._forget(records.pack_id(records.Kind.CGROUP, number), pins)
        for group, addresses in wanted:
            who = records.pack_id(records.Kind.CGROUP, group.number)
            programs.left_ports[records.pack_port(who, records.Direction.OUT, DNS_PORT)] = b"\1"
            for address in addresses:
                programs.own[records.pack_own(who, address)] = b"\1"
            programs.workloads[who] = records.host(addresses).pack()
            self._hook(groups.TOP / group.path, self._pins.host(group.number), WORKLOAD_HOOKS)

    def _hook_namespace(self, namespace: OpenNamespace, cookie: int, pins: Path) -> None:
        """This type of link does not tell whether it is this version's; an agent of another version replaced them all
        when it began."""
        pin = pins / INBOUND
        there = libbpf.describe(pin)
        if there is not None and there.target:
            return
        libbpf.unlink(pin)
        with self._programs.inbound(cookie) as loaded:
            libbpf.link(loaded.programs[SK_LOOKUP.program], namespace.fileno(), SK_LOOKUP.attach_type, pin)

    def _hook(self, cgroup: Path, pins: Path, hooks: dict[str, Hook]) -> None:
        """Raises BpfError, RedirectError."""
        programs = self._programs
        pins.mkdir(mode=0o700, exist_ok=True)
        with _directory(cgroup) as (fd, number):
            for name, hook in hooks.items():
                there = libbpf.describe(pins / name)
                if there is not None and there.target == number:
                    if there.program != programs.ids[hook.program]:
                        libbpf.update(pins / name, programs.fd(hook))
                    continue
                libbpf.unlink(pins / name)
                libbpf.link(programs.fd(hook), fd, hook.attach_type, pins / name)

    # What is there ----------------------------------------------------------------------------------------------------

    def _compare(self, sandbox: Sandbox) -> list[str]:
        cookie, programs = _cookie(sandbox.namespace), self._programs
        pins = self._pins.workload(cookie)
        group = sandbox.cgroup.stat().st_ino if sandbox.cgroup and sandbox.cgroup.is_dir() else None
        found = routes.missing()
        if not routes.keeps_marks():
            found.append("answers do not keep the packet's mark (net.ipv4.tcp_fwmark_accept, fwmark_reflect)")
        who, addresses = records.pack_id(records.Kind.NETNS, cookie), routes.addresses()
        if programs.workloads.get(who) != records.pod(sandbox.options, addresses).pack():
            found.append("its entry in the map of workloads is not ours")
        wanted = records.entries(who, sandbox.options, addresses)
        if any(frozenset(table.having(who)) != keys for table, keys in _tables(programs, wanted)):
            found.append("its addresses or exclusions in the maps are not ours")
        if (inbound := libbpf.describe(pins / INBOUND)) is None or not inbound.target:
            found.append("the look-up of arriving connections is missing")
        for name, hook in _hooks(sandbox).items():
            found += _fault(name, libbpf.describe(pins / name), group, programs.ids[hook.program])
        return found

    # What is taken out, in the opposite order -------------------------------------------------------------------------

    def _take_out(self, cookie: int) -> None:
        self._forget(records.pack_id(records.Kind.NETNS, cookie), self._pins.workload(cookie))
        self._replace_earlier(cookie)
        routes.keep_marks(False)
        routes.take_out()

    def _forget(self, who: bytes, pins: Path) -> None:
        _unlink_all(pins, [*reversed(_ALL_HOOKS), INBOUND])
        programs = self._programs
        programs.workloads.discard(who)
        for table, _ in _tables(programs, records.Entries()):
            for key in table.having(who):
                table.discard(key)

    # Agents before this one -------------------------------------------------------------------------------------------

    def _succeed(self, programs: Programs) -> None:
        """Links of an earlier version get this one's programs, in place; links that hold nothing any more go."""
        self._drop_dead_tunnels()
        for pins in self._pins.workloads():
            if _is_dead(pins):
                cookie = int(pins.name.removeprefix("netns-"))
                self._forget(records.pack_id(records.Kind.NETNS, cookie), pins)
        if earlier := programs.earlier():
            self._upgrade(programs)
            for directory in earlier:
                for pin in directory.iterdir():
                    pin.unlink()
                directory.rmdir()

    def _drop_dead_tunnels(self) -> None:
        """Their control groups are gone, and with them what hung there."""
        for pins in self._pins.tunnels():
            if _is_dead(pins):
                _unlink_all(pins, TUNNEL_HOOKS)

    def _upgrade(self, programs: Programs) -> None:
        every = ((self._pins.tunnels(), TUNNEL_HOOKS), (self._pins.workloads(), _ALL_HOOKS))  # takers before givers
        for pins, hooks in (*every, (self._pins.kubelets(), PROBE_HOOKS)):
            for directory in pins:
                for name, hook in hooks.items():
                    if (directory / name).exists():
                        libbpf.update(directory / name, programs.fd(hook))
        for directory in self._pins.workloads():
            with programs.inbound(int(directory.name.removeprefix("netns-"))) as loaded:
                libbpf.update(directory / INBOUND, loaded.programs[SK_LOOKUP.program])
        _log.info("capture by BPF upgraded in place", workloads=len(self._pins.workloads()))

    def _replace_earlier(self, cookie: int) -> None:
        """Pins of other schemas hold other maps: theirs go once ours are in force."""
        for pins in self._pins.earlier():
            if pins.name == self._pins.workload(cookie).name:
                _unlink_all(pins, [pin.name for pin in pins.iterdir()])


def _hooks(sandbox: Sandbox) -> dict[str, Hook]:
    return _ALL_HOOKS if sandbox.options.direct else WORKLOAD_HOOKS


def _tables(programs: Programs, keys: records.Entries) -> list[tuple[Map, frozenset[bytes]]]:
    return [
        (programs.own, keys.own),
        (programs.left_ports, keys.left_ports),
        (programs.left_ranges, keys.left_ranges),
    ]


def _is_dead(pins: Path) -> bool:
    """What they hung on is gone. A pin that somebody took says nothing: the others still hold."""
    links = [libbpf.describe(pin) for pin in pins.iterdir()]
    return not links or any(link is not None and not link.target for link in links)


def _fault(name: str, there: libbpf.LinkInfo | None, group: int | None, program: int) -> list[str]:
    if there is None:
        return [f"the hook {name} is missing"]
    if not there.target or there.target != group:
        return [f"the hook {name} is not on the pod's control group"]
    return [] if there.program == program else [f"the hook {name} runs another version"]


def _unlink_all(pins: Path, names: Iterator[str] | list[str] | dict[str, Hook]) -> None:
    for name in names:
        libbpf.unlink(pins / name)
    with suppress(OSError):
        pins.rmdir()


def _cookie(namespace: OpenNamespace) -> int:
    return int(namespace.identity.removeprefix(_COOKIE))


def _cgroup(sandbox: Sandbox) -> Path:
    if sandbox.cgroup is None:
        raise RedirectError("its control group is unknown")
    return sandbox.cgroup


@contextmanager
def _directory(cgroup: Path) -> Iterator[tuple[int, int]]:
    """Open descriptor and id. Raises RedirectError."""
    try:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RedirectError(f"the control group {cgroup} cannot be opened: {error.strerror}") from None
    try:
        yield fd, os.fstat(fd).st_ino
    finally:
        os.close(fd)
