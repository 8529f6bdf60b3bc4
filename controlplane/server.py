"""Door 3: discovery and certificates over gRPC and TLS, every call with a join token.

Owns the listener, its certificate and the list of connected tunnels. What is said is `push.py` and `ca.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from controlplane.attest import Callers, proxy_key
from controlplane.ca import SERVER_LIFETIME, Authority, KeyPair, entitlement, proxy_entitlement, proxy_identity
from controlplane.envoys import EnvoyConversation, Envoys, place_of
from controlplane.push import Board, Conversation
from mesh import log
from mesh.delta import Response
from mesh.discovery import AGGREGATED, handler
from mesh.errors import OperatorError, PeerError
from mesh.gen.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.gen.ca_pb2_grpc import IstioCertificateServiceServicer, add_IstioCertificateServiceServicer_to_server
from mesh.gen.spiffe_pb2 import X509BundlesRequest, X509BundlesResponse
from mesh.gen.spiffe_pb2_grpc import SpiffeWorkloadAPIServicer, add_SpiffeWorkloadAPIServicer_to_server
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest
from mesh.ids import SpiffeId

NAMES: Final = ("controlplane", "istiod.istio-system.svc", "localhost", "127.0.0.1")
IMPERSONATED: Final = "ImpersonatedIdentity"
# Longer than a source needs to notice a change.
NEWS_S: Final = 0.3
SPIFFE_HEADER: Final = "workload.spiffe.io"
# How soon after a rotation's step every tunnel is told.
BUNDLES_S: Final = 1.0
MAX_LIFETIME_S: Final = 10 * 365 * 86400
# A tunnel that resumes names every resource it holds: 5 MB for 50,000 pods.
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
MAX_CALLS: Final = 10_000
OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # or a second control plane would share the port in silence
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # As istiod: tokens are judged again, and a fleet spreads again after a restart.
    ("grpc.max_connection_age_ms", 30 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 10_000),
)
_log: Final = log.get("server")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class Session:
    """One connected tunnel or proxy."""

    node: str
    peer: str
    conversation: Conversation | EnvoyConversation
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    nacked_at: datetime | None = None

    def describe(self) -> dict[str, Any]:
        nack = self.conversation.last_nack
        return {
            **({"proxy": proxy} if (proxy := proxy_key(self.node)) else {"node": self.node}),
            "peer": self.peer,
            "connected_since": self.since.isoformat(timespec="seconds"),
            "synced_version": self.conversation.synced_version,
            "last_nack": {
                "type_url": nack.type_url,
                "message": nack.message,
                "at": self.nacked_at.isoformat(timespec="seconds") if self.nacked_at else None,
            }
            if nack
            else None,
        }


class Discovery:
    """One task per stream, which both answers and pushes, so that a conversation is never touched by two."""

    def __init__(self, board: Board, tokens: Callers, envoys: Envoys) -> None:
        self._board = board
        self._tokens = tokens
        self._envoys = envoys
        self.sessions: list[Session] = []

    async def DeltaAggregatedResources(self, requests: AsyncIterator[DeltaDiscoveryRequest], context: Context) -> None:
        node = await _caller(context, self._tokens)
        if proxy_key(node):
            await self._proxy(node, requests, context)
        else:
            session = Session(node, context.peer(), Conversation(self._board.current))
            await self._serve(session, requests, context, self._board.newer_than)

    async def _proxy(self, node: str, requests: AsyncIterator[DeltaDiscoveryRequest], context: Context) -> None:
        """An Envoy says in its first request where it is."""
        first = await anext(requests, None)
        if first is None:
            return
        who = proxy_key(node), place_of(first)
        with self._envoys.connected(who):
            current = self._envoys.current
            await asyncio.to_thread(current.of, who)
            session = Session(node, context.peer(), EnvoyConversation(current, who))
            await self._serve(session, _after(first, requests), context, self._envoys.newer_than)

    async def _serve(
        self,
        session: Session,
        requests: AsyncIterator[DeltaDiscoveryRequest],
        context: Context,
        newer_than: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self.sessions.append(session)
        _log.info(log.PEER_CONNECTED, node=session.node, address=session.peer)
        try:
            await self._converse(session, requests, context, newer_than)
        except PeerError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self.sessions.remove(session)
            _log.info(log.PEER_LOST, node=session.node, address=session.peer)

    async def _converse(
        self,
        session: Session,
        requests: AsyncIterator[DeltaDiscoveryRequest],
        context: Context,
        newer_than: Callable[[Any], Awaitable[Any]],
    ) -> None:
        conversation = session.conversation
        asked = asyncio.ensure_future(anext(requests, None))
        newer = asyncio.ensure_future(newer_than(conversation.target))
        try:
            while True:
                await asyncio.wait((asked, newer), return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    request = asked.result()
                    if request is None:
                        return
                    await _write(context, self._receive(session, request))
                    asked = asyncio.ensure_future(anext(requests, None))
                if newer.done():
                    await _write(context, conversation.update(newer.result()))
                    newer = asyncio.ensure_future(newer_than(conversation.target))
        finally:
            asked.cancel()
            newer.cancel()

    def _receive(self, session: Session, request: DeltaDiscoveryRequest) -> list[Response]:
        before = session.conversation.last_nack
        responses = session.conversation.receive(request)
        nack = session.conversation.last_nack
        if nack is not None and nack is not before:
            session.nacked_at = datetime.now(UTC)
            _log.warning("push refused", node=session.node, type_url=nack.type_url, why=nack.message)
        return responses


async def _after(
    first: DeltaDiscoveryRequest, rest: AsyncIterator[DeltaDiscoveryRequest]
) -> AsyncIterator[DeltaDiscoveryRequest]:
    yield first
    async for each in rest:
        yield each


class Certificates(IstioCertificateServiceServicer):
    """Issues what is due to the caller's node in the world of this moment."""

    def __init__(self, authority: Authority, tokens: Callers, board: Board, trust_domain: str, envoys: Envoys) -> None:
        self._authority = authority
        self._tokens = tokens
        self._board = board
        self._envoys = envoys
        self._trust_domain = trust_domain

    async def CreateCertificate(self, request: IstioCertificateRequest, context: Context) -> IstioCertificateResponse:
        node = await _caller(context, self._tokens)
        identity = await self._identity(node, request, context)
        try:
            await self._require_entitlement(node, identity)
        except PeerError as error:
            _log.warning(log.CERTIFICATE_FAILED, node=node, identity=str(identity), why=str(error))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        ttl = timedelta(seconds=min(max(request.validity_duration, 0), MAX_LIFETIME_S))
        try:
            chain = self._authority.issue(request.csr, identity, ttl)
        except PeerError as error:
            _log.warning(log.CERTIFICATE_FAILED, node=node, identity=str(identity), why=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        _log.info(log.CERTIFICATE_ISSUED, node=node, identity=str(identity))
        return IstioCertificateResponse(cert_chain=chain)

    async def _require_entitlement(self, node: str, identity: SpiffeId) -> None:
        """A new pod's node may ask before its document has been read here: the next world decides. Raises PeerError."""
        if proxy := proxy_key(node):
            proxy_entitlement(self._envoys.latest[1], proxy, identity, self._trust_domain)
            return
        world = self._board.latest
        try:
            entitlement(world, node, identity, self._trust_domain)
        except PeerError:
            entitlement(await self._board.later_than(world, NEWS_S), node, identity, self._trust_domain)

    async def _identity(self, node: str, request: IstioCertificateRequest, context: Context) -> SpiffeId:
        """That is asked for. Istio's agents, which run beside an Envoy, name none and mean their own."""
        wanted = request.metadata.fields.get(IMPERSONATED)
        try:
            if wanted is None and (proxy := proxy_key(node)):
                return proxy_identity(self._envoys.latest[1], proxy, self._trust_domain)
            if wanted is None or wanted.WhichOneof("kind") != "string_value":
                raise ValueError(f"the request's metadata must name the {IMPERSONATED}")
            return SpiffeId.parse(wanted.string_value)
        except PeerError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


class Bundles(SpiffeWorkloadAPIServicer):
    """Roots apart from leaves: the part of SPIFFE's Workload API that is about trust, for whoever has a join token."""

    def __init__(self, authority: Authority, tokens: Callers, trust_domain: str) -> None:
        self._authority = authority
        self._tokens = tokens
        self._key = f"spiffe://{trust_domain}"

    async def FetchX509Bundles(
        self, _request: X509BundlesRequest, context: Context
    ) -> AsyncIterator[X509BundlesResponse]:
        """The state at once, then every change."""
        await _caller(context, self._tokens)
        if dict(context.invocation_metadata() or ()).get(SPIFFE_HEADER) != "true":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"metadata {SPIFFE_HEADER}: true is required")
        sent, complained = None, ""
        while True:
            self._authority.refresh()
            if self._authority.trouble != complained:
                complained = self._authority.trouble
                _log.error("the authority's files are not in force", why=complained)
            roots = b"".join(root.public_bytes(Encoding.DER) for root in self._authority.trusted)
            if roots != sent:
                sent = roots
                yield X509BundlesResponse(bundles={self._key: roots})
            await asyncio.sleep(BUNDLES_S)


async def _caller(context: Context, tokens: Callers) -> str:
    """The node that calls; ends the call otherwise."""
    metadata = dict(context.invocation_metadata() or ())
    try:
        return await tokens.caller(metadata.get("authorization"), _host(context.peer()))
    except PeerError as error:
        _log.warning("caller refused", address=context.peer(), why=str(error))
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
    except OperatorError as error:
        _log.error("join tokens cannot be read", why=str(error))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane cannot read its join tokens")
    raise AssertionError("abort does not return")


def _host(peer: str) -> str:
    """Of gRPC's `ipv4:1.2.3.4:5`, without the port: that is another one with every connection."""
    return peer.rpartition(":")[0]


async def _write(context: Context, responses: Iterable[Response]) -> None:
    for response in responses:
        await context.write(response)


class ServerCertificate:
    """The door's own certificate; a new one for handshakes after half the old one's life, and under a new root."""

    def __init__(self, authority: Authority, names: Iterable[str]) -> None:
        self._authority = authority
        self._names = tuple(names)
        self._current = authority.server_certificate(self._names)
        self.configuration = _configuration(self._current)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """For each handshake, on a thread of gRPC's; None leaves the last one in use."""
        self._authority.refresh()
        same_root = self._current.chain.endswith(self._authority.root_pem)
        if same_root and self._current.not_after - self._authority.now() > SERVER_LIFETIME / 2:
            return None
        self._current = self._authority.server_certificate(self._names)
        self.configuration = _configuration(self._current)
        return self.configuration


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])


def listen(
    address: tuple[str, int],
    certificate: ServerCertificate,
    discovery: Discovery,
    certificates: Certificates,
    bundles: Bundles,
) -> tuple[grpc.aio.Server, int]:
    """A server that is bound but not started, and its port. Raises OperatorError: the address cannot be taken."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((handler(AGGREGATED, discovery.DeltaAggregatedResources),))
    add_IstioCertificateServiceServicer_to_server(certificates, server)  # type: ignore[no-untyped-call]
    add_SpiffeWorkloadAPIServicer_to_server(bundles, server)  # type: ignore[no-untyped-call]
    renewed: Any = certificate.renewed  # the stubs do not know that it may return None
    credentials = grpc.dynamic_ssl_server_credentials(certificate.configuration, renewed)
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server, server.add_secure_port(shown, credentials)
    except RuntimeError:
        raise OperatorError(f"cannot listen on {shown}: is it in use?", where="CONTROLPLANE_ADDR") from None
