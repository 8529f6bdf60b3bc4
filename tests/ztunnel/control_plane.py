"""A control plane on loopback for tests: delta ADS and CreateCertificate over TLS, and what it was told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from mesh.delta import Nacked, Publisher, Subscribed, Versioned
from mesh.discovery import AGGREGATED, handler
from mesh.gen import ca_pb2, ca_pb2_grpc
from tests.ztunnel.authority import Authority


class ControlPlane(ca_pb2_grpc.IstioCertificateServiceServicer):
    """`refuses`: (status code, details) that every stream and call is answered with."""

    def __init__(self, authority: Authority):
        self.authority = authority
        self.worlds: dict[str, dict[str, Versioned]] = {}
        self.refuses: tuple[grpc.StatusCode, str] | None = None
        self.requests, self.nacks, self.metadata, self.certificate_requests = [], [], [], []
        self.hang_up = asyncio.Event()
        self._changed: list[asyncio.Event] = []

    def publish(self, type_url: str, **versions: tuple[str, bytes]) -> None:
        self.worlds = {**self.worlds, type_url: {n: Versioned(v, type_url, d) for n, (v, d) in versions.items()}}
        for event in self._changed:
            event.set()

    async def DeltaAggregatedResources(self, requests, context):
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refuses:
            await context.abort(*self.refuses)
        publisher, changed, known = Publisher(max_resources=2), asyncio.Event(), set()
        self._changed.append(changed)
        reading = asyncio.create_task(self._read(requests, publisher, changed, known, context))
        try:
            while not self.hang_up.is_set():
                await changed.wait()
                changed.clear()
                for url in list(known):
                    response = publisher.offer(url, self.worlds.get(url, {}))
                    if response is not None:
                        yield response
            self.hang_up.clear()
        finally:
            reading.cancel()
            self._changed.remove(changed)

    def end_streams(self) -> None:
        self.hang_up.set()
        for event in self._changed:
            event.set()

    async def _read(self, requests, publisher, changed, known, context):
        async for request in requests:
            self.requests.append(request)
            for outcome in publisher.handle(request):
                if isinstance(outcome, Subscribed):
                    known.add(outcome.type_url)
                elif isinstance(outcome, Nacked):
                    self.nacks.append(outcome.message)
            changed.set()

    async def CreateCertificate(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self.certificate_requests.append(request)
        if self.refuses:
            await context.abort(*self.refuses)
        return ca_pb2.IstioCertificateResponse(
            cert_chain=self.authority.chain(request.metadata["ImpersonatedIdentity"], request.csr)
        )


@asynccontextmanager
async def listening(plane: ControlPlane, dns_name: str = "localhost"):
    """Yields the port."""
    key_and_chain = plane.authority.server(dns_name)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(AGGREGATED, plane.DeltaAggregatedResources),))
    ca_pb2_grpc.add_IstioCertificateServiceServicer_to_server(plane, server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([key_and_chain]))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)
