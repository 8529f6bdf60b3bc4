"""Certificates for the identities that run here: asks the CA, installs the answers, renews in time.

Keys are born and stay in the core; this module moves requests and chains. When to ask is `rotation`'s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from mesh import log
from mesh.errors import MeshError, PeerError
from mesh.gen.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.channel import call_metadata, open_channel
from ztunnel.dataplane import Dataplane
from ztunnel.metrics import Metrics
from ztunnel.rotation import Rotation, Urgency
from ztunnel.settings import Settings

_METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_TIMEOUT_S: Final = 10.0

_log = log.get("identity")


class Authority(Protocol):
    async def sign(self, identity: str, request_pem: str) -> list[str]:
        """The chain, PEM: leaf, intermediates, roots. Raises MeshError."""


class CaClient:
    """Istio's `CreateCertificate`. A connection per request: they are hours apart, and each reads the roots anew."""

    def __init__(self, settings: Settings, own_roots: Callable[[], str] = lambda: "") -> None:
        self._settings = settings
        self._own_roots = own_roots

    async def sign(self, identity: str, request_pem: str) -> list[str]:
        request = IstioCertificateRequest(csr=request_pem, validity_duration=int(self._settings.secret_ttl_s))
        request.metadata.update({"ImpersonatedIdentity": identity})
        endpoint = self._settings.ca
        metadata = call_metadata(endpoint, self._settings.auth_token, self._settings.cluster_id)
        try:
            async with open_channel(endpoint, self._own_roots()) as channel:
                response = await _create_certificate(channel)(request, metadata=metadata, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise PeerError(f"the CA at {endpoint.target} says {error.code().name}: {error.details()}") from None
        return list(response.cert_chain)


def _create_certificate(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        _METHOD,
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )


class Certificates:
    """Answers the core's need for certificates. `clock` gives Unix seconds, `chance` a number in [-1, 1]."""

    def __init__(
        self,
        dataplane: Dataplane,
        authority: Authority,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        self._dataplane = dataplane
        self._authority = authority
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._changed = asyncio.Event()
        self.rotation = Rotation()

    def needed(self, identity: str, urgency: str) -> None:
        """The core's event `need_certificate`."""
        self.rotation.want(identity, Urgency.NOW if urgency == "now" else Urgency.PREFETCH, self._clock())
        self._changed.set()

    def unused(self, identity: str) -> None:
        """The core's event `identity_unused`."""
        self.rotation.unused(identity)
        self._dataplane.core.forget_identity(identity)
        self._metrics.forget("nodemesh_certificate_expiry_seconds", identity=identity)

    def restored(self, identity: str, validity: str) -> None:
        """The core's event `certificate_restored`: in use since before the restart; renewed when its time comes."""
        not_before, not_after = (float(moment) for moment in validity.split())
        self.rotation.want(identity, Urgency.PREFETCH, self._clock())
        if self.rotation.issued(identity, not_before, not_after, self._clock(), self._chance()):
            self._metrics.set("nodemesh_certificate_expiry_seconds", not_after, identity=identity)
            _log.info("certificate restored", identity=identity, remaining_s=round(not_after - self._clock()))
        self._changed.set()

    def configuration_changed(self) -> None:
        """What the CA refused may be known to it now."""
        self.rotation.hurry(self._clock())
        self._changed.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as requests:
            while True:
                self._changed.clear()
                for identity in self.rotation.due(self._clock()):
                    requests.create_task(self.obtain(identity))
                await self._wait()

    async def _wait(self) -> None:
        wake_at = self.rotation.wake_at()
        try:
            async with asyncio.timeout(None if wake_at is None else max(wake_at - self._clock(), 0)):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def obtain(self, identity: str) -> None:
        """One request from key to installed chain; every outcome is told to the timetable and to the core."""
        try:
            request_pem = await self._dataplane.new_key(identity)
            chain = await self._authority.sign(identity, request_pem)
            not_before, not_after = await self._dataplane.install_chain(identity, chain)
        except (MeshError, ValueError) as error:
            self._failed(identity, str(error))
        else:
            self._issued(identity, not_before, not_after)
        self._changed.set()

    def _issued(self, identity: str, not_before: float, not_after: float) -> None:
        self._metrics.count("nodemesh_certificate_requests_total", result="issued")
        if self.rotation.issued(identity, not_before, not_after, self._clock(), self._chance()):
            self._metrics.set("nodemesh_certificate_expiry_seconds", not_after, identity=identity)
            _log.info(log.CERTIFICATE_ISSUED, identity=identity, lifetime_s=round(not_after - not_before))
        else:
            self._dataplane.core.forget_identity(identity)

    def _failed(self, identity: str, why: str) -> None:
        self._metrics.count("nodemesh_certificate_requests_total", result="failed")
        if self.rotation.failed(identity, why, self._clock()):
            self._dataplane.core.certificate_failed(identity, why)
            _log.warning(log.CERTIFICATE_FAILED, identity=identity, why=why)
