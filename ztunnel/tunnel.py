"""One running tunnel: the parts, what connects them, and the order in which they begin and end.

Configuration before pods: no pod is served until policies and addresses are in force. At the end the agent's
connection goes first, so that no new pod is handed to a tunnel that is leaving; then the core drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from mesh import log
from ztunnel.admin import Answers, extend_dump
from ztunnel.dataplane import Dataplane
from ztunnel.identity import CaClient, Certificates
from ztunnel.lastgood import LastGood
from ztunnel.levels import CORE_SCOPES, Levels
from ztunnel.metrics import Metrics
from ztunnel.pods import Pods
from ztunnel.settings import Settings
from ztunnel.trust import Trust
from ztunnel.workload_api import Supplied, watch_bundles
from ztunnel.xds import XdsClient
from ztunnel.zds import ZdsClient

_DRAIN_SLACK_S: Final = 2.0
# After the agent named every pod; the control plane may still have to tell what they are called.
_COME_BACK_WITHIN_S: Final = 5.0

_log = log.get("ztunnel")


class Tunnel:
    def __init__(self, settings: Settings, dataplane: Dataplane, version: str) -> None:
        self._settings = settings
        self._dataplane = dataplane
        self._version = version
        self._metrics = Metrics()
        self._store = LastGood(settings.state_dir) if settings.state_dir else None
        self._trust = Trust(settings, dataplane.core.set_trust)
        self._certificates = self._identity_source()
        changed, roots = self._certificates.configuration_changed, self._trust.own_roots
        self._xds = XdsClient(settings, dataplane, self._metrics, self._store, changed, roots)
        self._pods = Pods(dataplane)
        self._zds = ZdsClient(settings.zds_socket, self._pods)
        self._levels = Levels(settings.log_level)
        self._stopping = asyncio.Event()
        self._cutting = asyncio.Event()
        self._drained = asyncio.Event()

    def _identity_source(self) -> Certificates | Supplied:
        if self._settings.spiffe_socket:
            return Supplied(self._settings, self._dataplane, self._trust, self._metrics)
        authority = CaClient(self._settings, self._trust.own_roots)
        return Certificates(self._dataplane, authority, self._metrics)

    def stop(self) -> None:
        """Drain and end; asked a second time, end without draining."""
        (self._cutting if self._stopping.is_set() else self._stopping).set()

    async def run(self) -> bool:
        """Until `stop`. True: drained; false: cut short. Raises OperatorError: a person has to act."""
        self._dataplane.listen(self._heard)
        try:
            self._trust.restore()
            await self._xds.restore()
            async with asyncio.TaskGroup() as tasks:
                rest = [tasks.create_task(work) for work in self._standing_work()]
                enrolment = tasks.create_task(self._enrolment())
                await self._stopping.wait()
                enrolment.cancel()
                clean = await self._drain()
                for task in rest:
                    task.cancel()
            return clean
        finally:
            self._dataplane.stop_listening()
            self._pods.close()
            if self._store:
                await self._store.flush()

    def _standing_work(self) -> list[Coroutine[Any, Any, None]]:
        work = [self._xds.run(), self._certificates.run(), self._pods.run(), self._trust.run(), self._forget_absent()]
        if not self._settings.spiffe_socket:
            work.append(watch_bundles(self._settings, self._trust))
        if self._store:
            work.append(self._store.run())
        if collector := self._settings.collector:
            from ztunnel.otlp import Exporter  # aiohttp's client is memory that only this wants

            resource = {
                "service.name": "ztunnel",
                "service.version": self._version,
                "k8s.pod.name": self._settings.pod_name,
            }
            resource["k8s.node.name"] = self._settings.node_name
            work.append(Exporter(collector, self._dataplane, self._metrics, resource).run())
        return work

    async def _enrolment(self) -> None:
        await self._xds.in_force.wait()
        await self._zds.run()

    async def _forget_absent(self) -> None:
        """Keys that were kept over a restart for pods that did not come back."""
        await self._zds.told.wait()
        await asyncio.sleep(_COME_BACK_WITHIN_S)
        await asyncio.to_thread(self._dataplane.core.forget_absent)

    async def _drain(self) -> bool:
        deadline_s = self._settings.drain_deadline_s
        _log.info(log.STOPPING, deadline_s=deadline_s)
        self._dataplane.core.drain(deadline_s)
        waits = [asyncio.create_task(event.wait()) for event in (self._drained, self._cutting)]
        await asyncio.wait(waits, timeout=deadline_s + _DRAIN_SLACK_S, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*waits)
        return self._drained.is_set()

    def _heard(self, kind: str, subject: str, detail: str) -> None:
        match kind:
            case "need_certificate":
                self._certificates.needed(subject, detail)
            case "certificate_restored":
                self._certificates.restored(subject, detail)
            case "identity_unused":
                self._certificates.unused(subject)
            case "drained":
                self._drained.set()
            case _:
                _log.error("fault in the core", kind=kind, where=subject, why=detail)

    def answers(self) -> Answers:
        """What the HTTP doors serve."""
        explain = self._dataplane.explain
        return Answers(self.status, self.pending, self.metrics, self.dump, explain, self._set_log_level, self.stop)

    def pending(self) -> list[str]:
        """What readiness waits for."""
        waits = {
            "draining": self._stopping.is_set(),
            "xds": not self._xds.in_force.is_set(),
            "zds": not self._zds.snapshot,
            "pods": bool(self._pods.waiting),
        }
        return [name for name, waiting in waits.items() if waiting]

    def status(self) -> dict[str, Any]:
        rotation = self._certificates.rotation
        return {
            "version": self._version,
            "node": self._settings.node_name,
            "access_log": self._settings.access_log,
            "ready": not self.pending(),
            "pending": self.pending(),
            "xds": {
                "address": self._settings.xds.target,
                "connected": self._xds.connected,
                "error": self._xds.last_error,
                "last_message": self._xds.last_message,
                "refused": self._xds.refused,
                "resources": self._xds.resources(),
            },
            "policies": {"missing": self._missing_policies()},
            "zds": {
                "socket": str(self._settings.zds_socket),
                "connected": self._zds.connected,
                "pods": sorted(self._pods.served),
                "waiting": self._pods.waiting,
            },
            "certificates": {"expiries": rotation.expiries(), "troubles": rotation.troubles()},
            "trust": {"troubles": self._trust.troubles()},
        }

    def _missing_policies(self) -> list[dict[str, str]]:
        found = self._dataplane.core.missing_policies()
        return [{"pod": uid, "policy": policy, "refused": why} for uid, policy, why in found]

    async def metrics(self) -> bytes:
        """The core's series, then the shell's."""
        self._metrics.set("nodemesh_xds_connected", self._xds.connected)
        self._metrics.set("nodemesh_zds_connected", self._zds.connected)
        held, dropped = self._dataplane.core.keys()
        self._metrics.set("nodemesh_private_keys", len(held))
        self._metrics.set("nodemesh_policies_missing", len(self._dataplane.core.missing_policies()))
        self._metrics.set("nodemesh_private_keys_dropped_total", dropped)
        self._metrics.set("nodemesh_pods_waiting", len(self._pods.waiting))
        self._metrics.set("nodemesh_xds_last_message_timestamp_seconds", self._xds.last_message)
        for url, count in self._xds.resources().items():
            self._metrics.set("nodemesh_xds_resources", count, url=url)
        return await self._dataplane.metrics() + self._metrics.render()

    async def dump(self) -> bytes:
        extra = {"version": {"version": self._version}, "config": self._settings.public()}
        return extend_dump(await self._dataplane.dump(), extra)

    def _set_log_level(self, wanted: str | None) -> str:
        if wanted is None:
            return str(self._levels)
        first = Levels(self._settings.log_level)
        scopes = log.components() | {*CORE_SCOPES}
        self._levels = levels = first if wanted == "reset" else self._levels.changed(wanted, scopes)
        for scope in CORE_SCOPES:
            self._dataplane.core.set_log_level(levels.of(scope), scope)
        log.configure(self._settings.log_format, levels.level, levels.scopes)
        return str(levels)
