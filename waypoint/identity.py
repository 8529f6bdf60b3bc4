"""The proxy's certificate and the roots that it believes in: asked from the control plane, renewed in time.

Owns the private key, which is born here and leaves this process only to Envoy, over SDS (`sds.py`): never a file.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh import log
from mesh.backoff import Backoff
from mesh.errors import MeshError, OperatorError, PeerError
from mesh.gen.ca_pb2 import IstioCertificateRequest
from mesh.gen.ca_pb2_grpc import IstioCertificateServiceStub
from mesh.gen.spiffe_pb2 import X509BundlesRequest
from mesh.gen.spiffe_pb2_grpc import SpiffeWorkloadAPIStub
from mesh.ids import SpiffeId
from waypoint.settings import Settings, read_token

HEADER: Final = ("workload.spiffe.io", "true")
TTL_S: Final = 24 * 3600
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
ANSWER_S: Final = 10.0
_log: Final = log.get("identity")
Bundles = dict[str, list[bytes]]


class Held:
    """What Envoy is to be given; `changed` is called after every change. `expires`: Unix seconds."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.chain = ""
        self.key = ""
        self.expires = 0.0
        self._delivered: Bundles = {}
        self._federated: Bundles = {}

    def certificate(self, chain: str, key: str, expires: float) -> None:
        self.chain, self.key, self.expires = chain, key, expires
        self._changed()

    def bundles(self, roots: Bundles) -> None:
        """As the control plane says."""
        if roots != self._delivered:
            self._delivered = roots
            self._changed()

    def federated(self, roots: Bundles) -> None:
        """As the operator's files say, which count first."""
        if roots != self._federated:
            self._federated = roots
            self._changed()

    @property
    def roots(self) -> Bundles:
        return self._delivered | self._federated

    @property
    def complete(self) -> bool:
        return bool(self.chain and self._delivered)


def channel(settings: Settings) -> grpc.aio.Channel:
    """Raises OperatorError: the roots cannot be read."""
    try:
        roots = settings.roots.read_bytes()
    except OSError as error:
        raise OperatorError(f"{settings.roots}: {error.strerror}", where="XDS_ROOT_CA") from None
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.keepalive_time_ms", 30_000)]
    return grpc.aio.secure_channel(settings.server_name, grpc.ssl_channel_credentials(roots), options=options)


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {read_token(settings.token)}"),)


async def keep_certificate(settings: Settings, held: Held) -> None:
    """For ever: a new one after about half of the old one's life; a failure is tried again, harmless till then."""
    backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
    while True:
        try:
            not_before = await _renew(settings, held)
        except (grpc.aio.AioRpcError, MeshError, ValueError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            _log.warning(log.CERTIFICATE_FAILED, identity=str(settings.identity), why=why)
            await asyncio.sleep(backoff.failed())
            continue
        backoff.worked()
        life = held.expires - not_before
        await asyncio.sleep(max(not_before + life * random.uniform(0.45, 0.55) - time.time(), 1.0))


async def _renew(settings: Settings, held: Held) -> float:
    key = ec.generate_private_key(ec.SECP256R1())
    async with channel(settings) as open_channel:
        stub: Any = IstioCertificateServiceStub(open_channel)  # type: ignore[no-untyped-call]
        request = IstioCertificateRequest(csr=_csr(key, settings.identity), validity_duration=TTL_S)
        request.metadata.update({"ImpersonatedIdentity": str(settings.identity)})
        answer = await stub.CreateCertificate(request, metadata=metadata(settings), timeout=ANSWER_S)
    if not answer.cert_chain:
        raise PeerError("the control plane answered without a certificate")
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    if leaf.public_key() != key.public_key():
        raise PeerError("the control plane's certificate is for another key")
    held.certificate(answer.cert_chain[0], _pem(key), leaf.not_valid_after_utc.timestamp())
    _log.info(log.CERTIFICATE_ISSUED, identity=str(settings.identity), expires=leaf.not_valid_after_utc.isoformat())
    return leaf.not_valid_before_utc.timestamp()


def _csr(key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> str:
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    kind = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*kind).decode()


async def keep_bundles(settings: Settings, held: Held) -> None:
    """For ever: the roots of each trust domain, as the control plane tells them."""
    backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
    while True:
        try:
            async with channel(settings) as open_channel:
                stub: Any = SpiffeWorkloadAPIStub(open_channel)  # type: ignore[no-untyped-call]
                calls = (*metadata(settings), HEADER)
                async for message in stub.FetchX509Bundles(X509BundlesRequest(), metadata=calls):
                    backoff.worked()
                    held.bundles({name.removeprefix("spiffe://"): _split(der) for name, der in message.bundles.items()})
        except (grpc.aio.AioRpcError, MeshError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            _log.warning("trust bundles not received", why=why)
        await asyncio.sleep(backoff.failed())


def _split(der: bytes) -> list[bytes]:
    """Concatenated certificates: each is an ASN.1 SEQUENCE that says its own length."""
    found: list[bytes] = []
    while der:
        if len(der) < 4 or der[0] != 0x30:
            raise PeerError("a trust bundle is not certificates in DER")
        extra = der[1] & 0x7F if der[1] & 0x80 else 0
        length = int.from_bytes(der[2 : 2 + extra], "big") if extra else der[1]
        size = 2 + extra + length
        found.append(der[:size])
        der = der[size:]
    return found
