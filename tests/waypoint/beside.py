"""A real Envoy beside a real control plane's door, both on ports of the kernel's choice: what does it accept?"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from controlplane import server
from controlplane.attest import Tokens
from controlplane.ca import load_authority
from controlplane.envoys import Envoys
from controlplane.push import Board
from mesh.ids import SpiffeId
from waypoint.bootstrap import bootstrap
from waypoint.envoy import Runner, binary
from waypoint.identity import Held, keep_bundles, keep_certificate
from waypoint.sds import Secrets, secrets
from waypoint.settings import Settings


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


class Beside:
    """`envoys` takes what is to be pushed; `nack` is the last refusal; `ask` is Envoy's admin interface."""

    def __init__(self, envoys, discovery, runner):
        self.envoys, self.discovery, self.runner = envoys, discovery, runner

    @property
    def conversation(self):
        return self.discovery.sessions[0].conversation if self.discovery.sessions else None

    @property
    def nack(self):
        found = self.conversation.last_nack
        return found and f"{found.type_url.rpartition('.')[2]}: {found.message}"

    async def ask(self, target):
        return (await self.runner.current.ask(target))[1].decode()

    async def push(self, world, l7):
        self.envoys.propose(world, l7)
        await self.synced(world.version)

    async def synced(self, version):
        async with asyncio.timeout(90):
            while not (  # noqa: ASYNC110
                self.conversation and self.conversation.synced_version == version and await self.runner.is_ready()
            ):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def envoy_beside(directory: Path, world, l7, proxy: str, sinks=()):
    authority = load_authority(directory / "state", "cluster.local")
    tokens, envoys = Tokens(directory / "state"), Envoys(world, l7)
    board = Board(world)
    discovery = server.Discovery(board, tokens, envoys)
    certificates = server.Certificates(authority, tokens, board, "cluster.local", envoys)
    certificate = server.ServerCertificate(authority, server.NAMES)
    grpc_server, port = server.listen(
        ("127.0.0.1", 0), certificate, discovery, certificates, server.Bundles(authority, tokens, "cluster.local")
    )
    await grpc_server.start()
    roots = directory / "state" / "ca" / "root-cert.pem"
    namespace, _, name = proxy.partition("/")
    settings = Settings(
        proxy=proxy,
        identity=SpiffeId("cluster.local", namespace, l7.proxies[proxy].service_account),
        server=("127.0.0.1", port),
        roots=roots,
        token=tokens.create(f"{namespace}@{name}", 3600),
        trust_bundles=None,
        run_dir=directory,
        envoy="",
        concurrency=1,
        max_connections=1000,
        max_heap_mib=0,
        drain_s=1.0,
        stats=("127.0.0.1", 0),
        readiness=("127.0.0.1", 0),
        sinks=sinks,
        flush_s=0.1 if sinks else 5.0,
        cluster_id="Kubernetes",
        place={"REGION": "", "ZONE": "", "SUBZONE": ""},
        envoy_log_level="warning",
        log_format="console",
        log_level="info",
    )
    identity = directory / "identity.sock"
    served = Secrets()
    held = Held(lambda: served.publish(secrets(held)))
    runner = Runner(
        binary(""),
        directory,
        lambda path: bootstrap(settings, settings.token, path, identity, 1 << 30),
        1,
        0.0,
        "warning",
    )
    sds = await served.serve(identity)
    tasks = [
        asyncio.ensure_future(each)
        for each in (keep_certificate(settings, held), keep_bundles(settings, held), runner.run(), envoys.run())
    ]
    beside = Beside(envoys, discovery, runner)
    try:
        await beside.synced(world.version)
        yield beside
    finally:
        with suppress(Exception):
            await runner.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sds.stop(0)
        await grpc_server.stop(0)
