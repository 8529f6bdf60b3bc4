"""RUN/nodeagent.sock: what the agent knows, as JSON, for meshctl. Reads only."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from nodeagent.enrol.registry import Registry, describe
from nodeagent.host_workloads import Hosts
from nodeagent.sockets import listen_on

SHUTDOWN_S: Final = 1.0
_dumps = partial(json.dumps, indent=1)


class Admin:
    def __init__(
        self,
        node: str,
        registry: Registry,
        tunnels: Callable[[], int],
        capture: Callable[[], dict[str, Any]],
        hosts: Hosts,
        cluster: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        """`cluster`: how the Kubernetes API is followed; None: it is not."""
        self._hosts = hosts
        self._node, self._registry, self._tunnels, self._capture = node, registry, tunnels, capture
        self._cluster = cluster
        self._runner: web.AppRunner | None = None

    async def start(self, path: Path) -> None:
        """Raises OperatorError."""
        app = web.Application()
        app.add_routes([web.get("/status", self._status), web.get("/pods", self._pods)])
        app.add_routes([web.get("/verify", self._verify), web.get("/healthz/ready", self._ready)])
        app.add_routes([web.get("/metrics", self._metrics)])
        # Who has stopped waiting is not worked for: on a starving node one `/verify` after the other would pile up.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, listen_on(path, socket.SOCK_STREAM)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self.status(), dumps=_dumps)

    async def _ready(self, _: web.Request) -> web.Response:
        """For a probe: an ADD would be served."""
        return web.Response(status=200 if self._tunnels() > 0 else 503)

    async def _pods(self, _: web.Request) -> web.Response:
        return web.json_response([describe(pod) for pod in self._registry.pods], dumps=_dumps)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self._registry.repairs.render())

    async def _verify(self, _: web.Request) -> web.Response:
        return web.json_response(await self._registry.verify() + await self._hosts.verify(), dumps=_dumps)

    def status(self) -> dict[str, Any]:
        """`ready`: an ADD would be served."""
        states = Counter(pod.state.name for pod in self._registry.pods)
        captured = Counter(pod.member.backend for pod in self._registry.pods)
        said = {"node": self._node, "ready": self._tunnels() > 0, "tunnels": self._tunnels(), "pods": dict(states)}
        if on_host := self._hosts.describe():
            said["host_workloads"] = on_host
        if foreign := {pod.member.uid: pod.foreign for pod in self._registry.pods if pod.foreign}:
            said["foreign_rules"] = foreign
        return {**said, "capture": self._capture(), "captured_by": dict(captured), "kubernetes": self._cluster()}
