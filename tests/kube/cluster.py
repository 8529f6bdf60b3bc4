"""The stand-in API server in the test's own loop, over real HTTPS on loopback, and the shorthand to fill it."""

import asyncio
import contextlib

from aiohttp import web

from kube import informer
from kube.access import Access
from kube.client import Client
from lab.apiserver import access as standin_access
from lab.apiserver.__main__ import certificate
from lab.apiserver.kinds import BY_PATH
from lab.apiserver.server import Server
from lab.apiserver.store import Store

SOON_S = 60.0
PODS, NODES, NAMESPACES = (BY_PATH["", "v1", plural] for plural in ("pods", "nodes", "namespaces"))
SERVICE_ACCOUNTS = BY_PATH["", "v1", "serviceaccounts"]
POLICIES = BY_PATH["security.istio.io", "v1", "authorizationpolicies"]


def pod(name, namespace="shop", node="node-1", **more):
    about = {"name": name, "namespace": namespace, **more.pop("metadata", {})}
    return {"metadata": about, "spec": {"nodeName": node, "containers": [{"name": "app", "image": "x"}]}, **more}


class Api:
    """`write` and `server` are the stand-in's own; `connect` makes clients of it."""

    def __init__(self, directory, *, rbac=False, bookmark_s=60.0):
        self.directory = directory
        self.store = Store()
        self.tokens = standin_access.Access(self.store, b"key", rbac=rbac)
        self.server = Server(self.store, self.tokens, bookmark_s=bookmark_s)
        self._runner = self.port = None
        self.clients = []
        self.create(SERVICE_ACCOUNTS, "mesh", {"metadata": {"name": "agent"}})

    async def start(self):
        directory = self.directory / "account"
        directory.mkdir(exist_ok=True)
        context = certificate(directory, ("127.0.0.1",))
        self._runner = web.AppRunner(self.server.application(), shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port or 0, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]
        (directory / "token").write_text(self.token())

    def token(self, ttl_s=600, audiences=()):
        return self.tokens.issue("mesh", "agent", list(audiences), ttl_s)

    async def stop(self):
        await self.server.close(self._runner)

    @property
    def access(self):
        return Access(f"https://127.0.0.1:{self.port}", self.directory / "account")

    def connect(self):
        self.clients.append(Client(self.access))
        return self.clients[-1]

    def create(self, kind, namespace, item):
        made = self.store.create(kind, namespace, item)
        self.server.wake()
        return made

    def change(self, kind, namespace, name, **metadata):
        item = self.store.get(kind, namespace, name)
        self.store.replace(kind, namespace, {**item, "metadata": {**item["metadata"], **metadata}})
        self.server.wake()

    def set_status(self, kind, namespace, name, status):
        item = self.store.get(kind, namespace, name)
        self.store.replace(kind, namespace, {**item, "status": status}, "status")
        self.server.wake()

    def delete(self, kind, namespace, name):
        self.store.delete(kind, namespace, name)
        self.server.wake()

    def forget_history(self):
        self.server.compact()

    def hang_up(self):
        self.server.disconnect()


@contextlib.asynccontextmanager
async def api(directory, **how):
    made = Api(directory, **how)
    await made.start()
    try:
        yield made
    finally:
        for client in made.clients:
            await client.close()
        await made.stop()


def play(directory, story, **how):
    """Runs `story(api)`, which has to end soon."""

    async def main():
        async with asyncio.timeout(SOON_S), api(directory, **how) as made:
            await story(made)

    patience_s, informer.FIRST_S = informer.FIRST_S, 0.01
    try:
        asyncio.run(main())
    finally:
        informer.FIRST_S = patience_s


@contextlib.asynccontextmanager
async def running(*coroutines):
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition):
    """Some turns of the loop later."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.002)
