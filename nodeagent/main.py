"""The node agent's composition: who is made, in which order it opens its doors, and how it ends.

Ends without touching a pod: rules, the plugin and its configuration stay, so that new pods wait for the next agent and
running ones keep their tunnel. Doors open from the inside out: pods of an earlier agent, tunnels, admin, plugin.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from mesh import log
from mesh.directory import Directory
from mesh.errors import LocalError, MeshError, OperatorError
from mesh.ids import Uid
from nodeagent import zds
from nodeagent.admin import Admin
from nodeagent.capture import Capture
from nodeagent.enrol import machine as m
from nodeagent.enrol.executor import Namespace, NoTunnel, Pod
from nodeagent.enrol.keeper import Keeper
from nodeagent.enrol.plugin_server import PluginServer
from nodeagent.enrol.pods import FilePods
from nodeagent.enrol.registry import Registry
from nodeagent.enrol.sandboxes import CniCache
from nodeagent.enrol.store import Member, Store
from nodeagent.heirlooms import Heirlooms
from nodeagent.host_documents import HostDocuments, HostWorkload
from nodeagent.host_workloads import Hosts
from nodeagent.host_workloads import Namespace as HostNamespace
from nodeagent.kubernetes import Cluster
from nodeagent.opener import Opener, revive
from nodeagent.redirect import groups
from nodeagent.settings import Settings
from nodeagent.uninstall import uninstall

_log: Final = log.get("nodeagent")

UNJUDGED_S: Final = 3.0
"""How long direct connections go on without a tunnel that judges them: one that restarts takes less."""


class TunnelOfNode:
    """`executor.Tunnel` and `keeper.Tunnel` by ZDS."""

    def __init__(self, server: zds.ZdsServer) -> None:
        self._server = server

    async def add(self, member: Member, namespace: Namespace) -> None:
        try:
            await self._server.add(_workload(member, namespace))
        except zds.NotConnected as error:
            raise NoTunnel(str(error)) from None

    async def renew(self, member: Member, namespace: Namespace, ports: Sequence[int]) -> None:
        try:
            await self._server.renew(_workload(member, namespace), ports)
        except zds.NotConnected as error:
            raise NoTunnel(str(error)) from None

    @property
    def is_there(self) -> bool:
        return self._server.connected > 0

    async def add_host(self, who: HostWorkload, namespace: HostNamespace) -> None:
        await self._server.add(_host_workload(who, namespace))

    async def renew_host(self, who: HostWorkload, namespace: HostNamespace) -> None:
        await self._server.renew(_host_workload(who, namespace), ())

    async def remove(self, uid: Uid) -> None:
        await self._server.remove(uid)


def _host_workload(who: HostWorkload, namespace: HostNamespace) -> zds.Workload:
    addresses = tuple(map(str, who.addresses))
    return zds.Workload(who.uid, who.namespace, who.name, who.service_account, namespace, addresses=addresses)


def _heirlooms(settings: Settings) -> tuple[Heirlooms, Opener]:
    """Without cgroup v2 nobody asks whose a socket is. With it and without a group of their own, sockets that outlive a
    tunnel would be taken for a stranger's: then none does."""
    if settings.listeners_kept_s == 0:
        return Heirlooms(), Opener(None)
    group: Path | None = None
    try:
        group = groups.mount() / settings.listener_group
        group.mkdir(parents=True, exist_ok=True)
    except groups.NoGroup:
        _log.debug("no cgroup v2: listening sockets need no group")
    except OSError as error:
        _log.warning(
            "tunnels bind their own sockets, an upgrade refuses connections", path=str(group), why=error.strerror
        )
        return Heirlooms(), Opener(None)
    opener = Opener(group)
    return Heirlooms(settings.listeners_kept_s, opener.open, revive), opener


def _workload(member: Member, namespace: Namespace) -> zds.Workload:
    return zds.Workload(member.uid, member.namespace, member.name, member.service_account, namespace, member.search)


def _workload_of(pod: Pod) -> zds.Workload:
    return _workload(pod.member, pod.namespace)


class Agent:
    """One node's agent, wired."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._over = asyncio.Event()
        self._bug: BaseException | None = None
        self._unjudged: asyncio.Task[None] | None = None
        self._capture = Capture(
            settings.capture,
            prove_capture=settings.canary,
            cgroup_root=settings.cgroup_root,
            bpf_root=settings.bpf_root,
            memory=settings.state_dir / "tunnels.json",
            listeners=settings.listener_group,
            direct=settings.same_node_direct,
            probes=settings.exempt_probes,
            kubelet=settings.kubelet_group,
        )
        api = settings.api
        self._cluster = Cluster(api, settings.node, settings.taint_after_s) if api else None
        self._directory = Directory(settings.pods_dir)
        source = self._cluster.pods if self._cluster else FilePods(self._directory)
        self.registry = Registry(
            settings.cluster,
            settings.node,
            source,
            Store(settings.state_dir),
            self._capture,
            dns_capture=settings.dns_capture,
        )
        self._heirlooms, self._opener = _heirlooms(settings)
        self._zds = zds.ZdsServer(
            self._snapshot, self._heard, self._tunnels_lost, self._meet, self._heirlooms, self._capture.direct_maps
        )
        tunnel = TunnelOfNode(self._zds)
        self.registry.use(tunnel)
        documents = HostDocuments(self._directory, settings.cluster, settings.node)
        self.hosts = Hosts(documents, lambda: self._capture.guard.tunnels, tunnel, self._capture.put_hosts)
        self._admin = Admin(
            settings.node,
            self.registry,
            lambda: self._zds.connected,
            lambda: self._capture.describe(self._zds.direct_trouble),
            self.hosts,
            self._describe_cluster,
        )
        self._keeper = Keeper(
            self.registry,
            source,
            CniCache(settings.cni_cache_dir),
            self._capture,
            drain_s=settings.drain_s,
            round_s=settings.watch_s,
        )
        self._plugin = PluginServer(self.registry, lambda: self._zds.connected > 0)
        if self._cluster:
            self._cluster.attach(self.registry, lambda: self._zds.connected > 0)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises what a task of ours broke down with: a bug ends the agent."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._broke_down)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        async with AsyncExitStack() as doors:
            doors.enter_context(self._directory)
            doors.push_async_callback(self.registry.stop)
            doors.callback(self._capture.close)
            await asyncio.to_thread(self._capture.probing.recall)
            self.registry.readopt()
            found = [(pod.member.uid, pod.member.ips) for pod in self.registry.pods]
            await asyncio.to_thread(self._capture.probing.begin, found)
            await self.hosts.adopt()
            doors.callback(self._close_opener)
            doors.callback(self._judged)
            doors.push_async_callback(self._zds.stop)
            self._zds.start(self._settings.zds_socket, self._settings.tunnel_user)
            if self._cluster:
                following = asyncio.create_task(self._cluster.run(), name="the Kubernetes API")
                following.add_done_callback(self._ended)
                doors.push_async_callback(_cancelled, following)
            doors.push_async_callback(self._admin.stop)
            await self._admin.start(self._settings.admin_socket)
            doors.push_async_callback(self._plugin.stop)
            await self._plugin.start(self._settings.plugin_socket)
            for what, work in {"host workloads": self.hosts.run(), "probes": self._capture.keep_probes()}.items():
                keeping = asyncio.create_task(work, name=what)
                keeping.add_done_callback(self._ended)
                doors.push_async_callback(_cancelled, keeping)
            doors.push_async_callback(self._keeper.stop)
            self._keeper.start()
            _log.info(log.READY, node=self._settings.node, pods=len(self.registry.pods))
            await self._over.wait()
            _log.info(log.STOPPING)
        if self._bug is not None:
            raise self._bug

    def _close_opener(self) -> None:
        """With workloads in the mesh their sockets' group stays: the next agent and tunnel know them by it."""
        self._opener.close()
        if not self.registry.pods and not self.hosts.snapshot():
            self._opener.leave_no_group()

    def _describe_cluster(self) -> dict[str, Any] | None:
        return self._cluster.describe() if self._cluster else None

    def _snapshot(self) -> list[zds.Workload]:
        on_host = [_host_workload(who, namespace) for who, namespace in self.hosts.snapshot()]
        return [_workload_of(pod) for pod in self.registry.snapshot()] + on_host

    async def _meet(self, pid: int) -> None:
        self._judged()
        if self._heirlooms.wanted:
            await asyncio.to_thread(self._opener.prepare)
        await self._capture.meet(pid)
        await self.hosts.renew()

    def _judged(self) -> None:
        if self._unjudged is not None:
            self._unjudged.cancel()

    async def _reset_direct(self) -> None:
        await asyncio.sleep(UNJUDGED_S)
        for pod in self.registry.pods:
            await self._capture.reset_direct(pod.member, pod.namespace)

    def _tunnels_lost(self) -> None:
        self._judged()
        self._unjudged = asyncio.create_task(self._reset_direct(), name="direct connections")
        self._unjudged.add_done_callback(self._ended)
        self.registry.tell_all(m.TunnelLost)
        self.hosts.lost()

    def _heard(self, uid: str, why: str | None) -> None:
        """A tunnel's word on a workload of the snapshot."""
        if self.hosts.heard(Uid(uid), why):
            return
        if why is None:
            self.registry.tell(Uid(uid), m.Serving)
            return
        self.registry.tell(Uid(uid), lambda pod: m.Failed(pod, f"the tunnel refused it: {why}"))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Of work that never ends by itself."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke_down(asyncio.get_running_loop(), {"message": task.get_name(), "exception": error})

    def _broke_down(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or (isinstance(error, (MeshError, OSError)) and not isinstance(error, LocalError)):
            loop.default_exception_handler(context)
            return
        _log.error("a task broke down", what=context.get("message"), why=repr(error))
        self._bug = self._bug or error
        self._over.set()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def serve(settings: Settings) -> None:
    """Raises OperatorError when a door cannot be opened."""
    await Agent(settings).run()


def main(variables: Mapping[str, str] = os.environ, arguments: Sequence[str] | None = None) -> None:
    """`nodeagent [run]`, `nodeagent uninstall`. Exit code 2: the operator has to help, one sentence says how."""
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        if words not in ([], ["run"], ["uninstall"]):
            raise OperatorError("the commands are `run` and `uninstall`; all settings come from the environment")
        settings = Settings.read(variables)
        log.configure(settings.log_format, settings.log_level)
        if settings.api is not None:
            settings.api.check()
        if os.geteuid() != 0:
            raise OperatorError("the node agent enters network namespaces and has to run as root")
        asyncio.run(uninstall(settings) if words == ["uninstall"] else serve(settings))
    except OperatorError as error:
        log.refuse("nodeagent", error)


if __name__ == "__main__":
    main()
