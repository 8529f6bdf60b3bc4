"""Envoy's SDS, served to the one Envoy beside us over a Unix socket: the certificate, and whom to believe.

Two secrets: `identity`, and `trust`, which is one bundle per trust domain, so that no authority can vouch for another's
names.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc.aio

from mesh.delta import Publisher, Response, Subscribed, Versioned
from mesh.discovery import SECRETS, handler
from mesh.envoy import SECRET, pack
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest
from waypoint.identity import Held

_SPIFFE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


def secrets(held: Held) -> dict[str, Versioned]:
    """Nothing is offered by halves: until both are there, Envoy waits and its listeners refuse."""
    if not held.complete:
        return {}
    identity = {
        "certificate_chain": {"inline_string": held.chain},
        "private_key": {"inline_string": held.key},
    }
    domains = [
        {"name": name, "trust_bundle": {"inline_string": "".join(map(_pem, roots))}}
        for name, roots in sorted(held.roots.items())
        if roots  # a bundle without certificates refuses everybody of its domain, as one that is not there
    ]
    validator = {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": {"@type": _SPIFFE, "trust_domains": domains},
    }
    return {
        "identity": pack(SECRET, {"name": "identity", "tls_certificate": identity}),
        "trust": pack(SECRET, {"name": "trust", "validation_context": {"custom_validator_config": validator}}),
    }


def _pem(der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


class Secrets:
    """The state that is served; `publish` replaces it."""

    def __init__(self) -> None:
        self._world: Mapping[str, Versioned] = {}
        self._changed = asyncio.Event()

    def publish(self, world: Mapping[str, Versioned]) -> None:
        self._world = world
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _stream(
        self, requests: AsyncIterator[DeltaDiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        publisher, asked, changed = Publisher(), asyncio.ensure_future(anext(requests, None)), self._changed
        waiting = asyncio.ensure_future(changed.wait())
        try:
            while True:
                await asyncio.wait((asked, waiting), return_when=asyncio.FIRST_COMPLETED)
                responses: list[Response | None] = []
                if asked.done():
                    request = asked.result()
                    if request is None:
                        return
                    responses = self._receive(publisher, request)
                    asked = asyncio.ensure_future(anext(requests, None))
                if waiting.done():
                    waiting = asyncio.ensure_future(self._changed.wait())
                    responses.append(self._offer(publisher))
                for response in responses:
                    if response is not None:
                        await context.write(response)
        finally:
            asked.cancel()
            waiting.cancel()

    def _receive(self, publisher: Publisher, request: DeltaDiscoveryRequest) -> list[Response | None]:
        found: list[Response | None] = []
        for outcome in publisher.handle(request):
            if isinstance(outcome, Subscribed):
                found.append(self._offer(publisher))
            else:
                found.append(publisher.next(SECRET))
        return found

    def _offer(self, publisher: Publisher) -> Response | None:
        """What is not there yet is not answered, or Envoy would believe that it does not exist."""
        return publisher.offer(SECRET, self._world) if self._world else None

    async def serve(self, path: Path) -> grpc.aio.Server:
        """Started. The socket is in a directory that nobody else may enter."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(SECRETS, self._stream),))
        path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        return server
