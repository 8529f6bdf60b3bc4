"""SPIFFE's Workload API: certificates from a socket (SPIRE's agent), trust bundles from there or from the CA's door.

Every message is the whole state: what it no longer names is dropped at once. The source decides which identities this
node gets; only those that a pod here needs are taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio

from mesh import log
from mesh.backoff import Backoff
from mesh.errors import MeshError, OperatorError, PeerError
from mesh.gen.spiffe_pb2 import X509SVID, X509BundlesRequest, X509BundlesResponse, X509SVIDRequest, X509SVIDResponse
from mesh.gen.spiffe_pb2_grpc import SpiffeWorkloadAPIStub
from mesh.spiffe_bundle import pem_of_der, trust_domain_of
from ztunnel.channel import call_metadata, open_channel
from ztunnel.dataplane import Dataplane
from ztunnel.metrics import Metrics
from ztunnel.rotation import Rotation, Urgency
from ztunnel.settings import Settings
from ztunnel.trust import Trust

HEADER: Final = ("workload.spiffe.io", "true")
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
_NOT_THERE: Final = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT)

_log = log.get("workload-api")


async def watch_bundles(settings: Settings, trust: Trust) -> None:
    """From the CA's door, for ever; ends when that CA does not serve bundles, as istiod's does not.

    Then the roots count that come with each certificate.
    """
    backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
    endpoint = settings.ca
    while True:
        try:
            metadata = (*call_metadata(endpoint, settings.auth_token, settings.cluster_id), HEADER)
            async with open_channel(endpoint, trust.own_roots()) as channel:
                stub: Any = SpiffeWorkloadAPIStub(channel)  # type: ignore[no-untyped-call]
                async for message in stub.FetchX509Bundles(X509BundlesRequest(), metadata=metadata):
                    backoff.worked()
                    deliver_bundles(message, trust)
        except grpc.aio.AioRpcError as error:
            if error.code() in _NOT_THERE:
                _log.info("the CA serves no trust bundles", address=endpoint.target)
                return
            _log.debug("trust bundles not received", address=endpoint.target, why=error.details())
        except (OperatorError, ValueError) as error:
            _log.warning("trust bundles not received", address=endpoint.target, why=str(error))
        await asyncio.sleep(backoff.failed())


def deliver_bundles(message: X509BundlesResponse, trust: Trust) -> None:
    """Raises ValueError: something in it is not what it should be, and nothing of it counts."""
    trust.deliver(_bundles(message.bundles), list(message.crl))


def _bundles(bundles: Mapping[str, bytes]) -> dict[str, str]:
    return {trust_domain_of(key): pem_of_der(der) for key, der in bundles.items()}


class Supplied:
    """Certificates that a Workload API gives; stands where `identity.Certificates` does."""

    def __init__(
        self,
        settings: Settings,
        dataplane: Dataplane,
        trust: Trust,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._dataplane = dataplane
        self._trust = trust
        self._metrics = metrics
        self._clock = clock
        self._offered: dict[str, X509SVID] = {}
        self._bundle_of: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.rotation = Rotation()
        """Used as a register of what is wanted, installed and refused; when to renew is the source's decision."""

    def needed(self, identity: str, urgency: str) -> None:
        """The core's event `need_certificate`."""
        self.rotation.want(identity, Urgency.NOW if urgency == "now" else Urgency.PREFETCH, self._clock())
        self._changed.set()

    def unused(self, identity: str) -> None:
        """The core's event `identity_unused`."""
        self.rotation.unused(identity)
        self._dataplane.core.forget_identity(identity)
        self._metrics.forget("nodemesh_certificate_expiry_seconds", identity=identity)

    def configuration_changed(self) -> None:
        self._changed.set()

    def restored(self, identity: str, validity: str) -> None:
        """The core's event `certificate_restored`: keys from a socket are not kept, so this is of another source."""
        self._dataplane.core.forget_identity(identity)
        self.needed(identity, "prefetch")

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self.install()

    async def _listen(self) -> None:
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        target = self._settings.spiffe_socket
        while True:
            why = "the stream ended"
            try:
                async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
                    stub: Any = SpiffeWorkloadAPIStub(channel)  # type: ignore[no-untyped-call]
                    async for message in stub.FetchX509SVID(X509SVIDRequest(), metadata=(HEADER,)):
                        backoff.worked()
                        self.take(message)
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    self._withdraw(set(self._offered))
            except (PeerError, ValueError) as error:
                why = str(error)
            wait_s = backoff.failed()
            self._tell_waiting(f"the Workload API at {target} says {why}")
            _log.warning(log.PEER_LOST, address=target, why=why, retry_s=wait_s)
            await asyncio.sleep(wait_s)

    def take(self, message: X509SVIDResponse) -> None:
        """A new whole state. Raises ValueError, PeerError: it is not one, and the last one stays."""
        offered: dict[str, X509SVID] = {}
        for svid in message.svids:
            offered.setdefault(svid.spiffe_id, svid)  # the first of a name is the source's default
        bundles = {key: der for key, der in message.federated_bundles.items()}
        for svid in offered.values():
            bundles["spiffe://" + svid.spiffe_id.removeprefix("spiffe://").partition("/")[0]] = svid.bundle
        pems = _bundles(bundles)
        self._trust.deliver(pems, list(message.crl))
        self._withdraw(self._offered.keys() - offered.keys())
        self._offered, self._bundle_of = offered, pems
        for identity in self.rotation.expiries():
            self.rotation.want(identity, Urgency.PREFETCH, self._clock())
        self._changed.set()

    async def install(self) -> None:
        """What is offered and wanted here."""
        for identity in self.rotation.wanted():
            svid = self._offered.get(identity)
            if svid is None:
                self._failed(identity, f"the Workload API offers no certificate for {identity}")
                continue
            try:
                chain = [pem_of_der(svid.x509_svid), self._bundle_of[trust_domain_of(_domain(identity))]]
                validity = await self._dataplane.install_svid(identity, svid.x509_svid_key, chain)
            except (MeshError, ValueError) as error:
                self._failed(identity, str(error))
            else:
                self._issued(identity, *validity)

    def _issued(self, identity: str, not_before: float, not_after: float) -> None:
        news = self.rotation.expiries().get(identity) != not_after
        if self.rotation.issued(identity, not_before, not_after, self._clock(), 0.0) and news:
            self._metrics.count("nodemesh_certificate_requests_total", result="issued")
            self._metrics.set("nodemesh_certificate_expiry_seconds", not_after, identity=identity)
            _log.info(log.CERTIFICATE_ISSUED, identity=identity, lifetime_s=round(not_after - not_before))

    def _failed(self, identity: str, why: str) -> None:
        known = self.rotation.troubles().get(identity)
        if self.rotation.failed(identity, why, self._clock()):
            self._dataplane.core.certificate_failed(identity, why)
            if known != why:
                self._metrics.count("nodemesh_certificate_requests_total", result="failed")
                _log.warning(log.CERTIFICATE_FAILED, identity=identity, why=why)

    def _tell_waiting(self, why: str) -> None:
        for identity in self.rotation.wanted() - self.rotation.expiries().keys():
            self._failed(identity, why)

    def _withdraw(self, identities: set[str]) -> None:
        """The source took them back: SPIFFE Workload API §5.2.1."""
        for identity in identities & self.rotation.expiries().keys():
            _log.warning("certificate withdrawn by its source", identity=identity)
            self._dataplane.core.forget_identity(identity)
            self._metrics.forget("nodemesh_certificate_expiry_seconds", identity=identity)
            self.rotation.unused(identity)
            self.rotation.want(identity, Urgency.PREFETCH, self._clock())
        self._offered = {name: svid for name, svid in self._offered.items() if name not in identities}


def _domain(identity: str) -> str:
    return "spiffe://" + identity.removeprefix("spiffe://").partition("/")[0]
