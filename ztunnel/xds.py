"""The configuration stream: connects, applies what comes, acknowledges or refuses, reconnects for ever.

Owns no protocol state (that is `mesh.delta`) and no tables (that is the core). What is in force survives every
disconnect. Source: Istio's ztunnel, `src/xds/client.rs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from mesh import log
from mesh.backoff import Backoff
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, REFUSED, Batch, Received, Subscriber
from mesh.errors import OperatorError, PeerError
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, Node
from ztunnel.channel import call_metadata, open_channel
from ztunnel.dataplane import Applied, Damaged, Dataplane, read_response
from ztunnel.lastgood import LastGood
from ztunnel.metrics import Metrics
from ztunnel.settings import Settings

TYPES: Final = (AUTHORIZATION_TYPE, ADDRESS_TYPE)  # policies are asked for first: addresses without them would widen
_METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
MOST_REFUSED: Final = 100
_REFUSED_US: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# What gRPC says of a call that ended while it was written to: it forgets why. The next one is not written to at once.
_LOST: Final = "Internal error from Core"
_ANSWER_S: Final = 0.5
_IDLE, _CONNECTING = grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING
# For so long parts of one offer wait for the last: every snapshot is a copy of all that the next part touches.
_TOGETHER_S: Final = 3.0
_POLICIES_TOGETHER_S: Final = 0.5
# While connections are open, before the next part of a large offer: times what this one took of a processor.
_RESTS: Final = 2.0
_LONGEST_REST_S: Final = 0.1
_NORMAL: Final = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

_log = log.get("xds")


async def rest(worked_s: float) -> None:
    """After a part that took so much of a processor. The control plane waits for the answer and rests as well."""
    await asyncio.sleep(min(_RESTS * worked_s, _LONGEST_REST_S))


class XdsClient:
    """`in_force` is set once policies and addresses may be acted upon: from disk, or after the first full answer.

    `changed` is called after each batch that took effect.
    """

    def __init__(
        self,
        settings: Settings,
        dataplane: Dataplane,
        metrics: Metrics,
        store: LastGood | None,
        changed: Callable[[], None] = lambda: None,
        own_roots: Callable[[], str] = lambda: "",
        together_s: float = _TOGETHER_S,
        rest: Callable[[float], Awaitable[None]] = rest,
    ) -> None:
        self._settings = settings
        self._dataplane = dataplane
        self._metrics = metrics
        self._store = store
        self._changed = changed
        self._own_roots = own_roots
        self._subscriber = Subscriber(make_node(settings), TYPES)
        self._backoff = Backoff()
        self._unheard = False
        self._together_s = {ADDRESS_TYPE: together_s, AUTHORIZATION_TYPE: min(together_s, _POLICIES_TOGETHER_S)}
        self._rest = rest
        self._applying = asyncio.Lock()
        self._draft_ends: asyncio.TimerHandle | None = None
        """None: nothing waits for its other parts."""
        self._finishing: asyncio.Task[None] | None = None
        self.in_force = asyncio.Event()
        self.connected = False
        self.last_error = ""
        self.last_message = 0.0
        """Unix seconds; 0: nothing was heard yet."""
        self.refused: dict[str, str] = {}
        """Resources that the core did not take, with why, until a good version comes. The old ones are in force."""

    async def restore(self) -> None:
        """Puts the stored configuration into force; what the core no longer takes will be asked for again.

        A policy that it no longer takes would be missing, so then nothing counts as in force yet; one that it never
        took closes what it closed before.
        """
        bundles = self._store.load() if self._store else []
        if not self._store or not bundles:
            return
        try:
            names, refused = await self._dataplane.restore(bundles)
        except Damaged as error:
            self._store.damaged(str(error))
            return
        self._store.adopt(bundles, names)
        held: dict[str, dict[str, str]] = {url: {} for url in TYPES}
        for (url, _), (of, versions) in zip(bundles, names, strict=True):
            held[url].update(zip(of, versions, strict=True))
        missing = False
        for url, name, why in refused:
            _log.warning(log.CONFIG_REFUSED, type_url=url, name=name, why=why)
            missing |= url == AUTHORIZATION_TYPE and held[url][name] != REFUSED
            held[url][name] = REFUSED
        self._subscriber = Subscriber(make_node(self._settings), TYPES, held)
        if not missing:
            self.in_force.set()
            _log.info("last good configuration restored", resources=self.resources())

    def resources(self) -> dict[str, int]:
        """How many of each type are in force, by type URL."""
        return {url: len(self._subscriber.held(url)) for url in TYPES}

    async def run(self) -> None:
        """For ever. Raises OperatorError: the very first connection shows that a person has to act."""
        try:
            while True:
                reason = await self._attempt()
                await self._finish_draft()
                self._metrics.count("istio_xds_connection_terminations_total", reason=reason)
                self.connected = False
                wait_s = self._backoff.failed()
                say = _log.info if reason in ("Reconnect", "Complete") else _log.warning
                say(log.PEER_LOST, address=self._settings.xds.target, why=self.last_error, retry_s=round(wait_s, 3))
                await asyncio.sleep(wait_s)
        finally:
            self._forget_draft()

    async def _attempt(self) -> str:
        """One stream from beginning to end; returns why it ended, in the words of Istio's metric."""
        try:
            await self._stream()
        except grpc.aio.AioRpcError as error:
            self._give_up_if_unknown(error)
            self._unheard = error.details() == _LOST
            self.last_error = f"{error.code().name}: {error.details()}"
            return self._reason(error.code(), error.details() or "")
        except PeerError as error:
            self.last_error = str(error)
            return "Error"
        except OperatorError as error:
            if not self.in_force.is_set():
                raise
            self.last_error = str(error)
            return "ConnectionError"
        self.last_error = "the server ended the stream"
        return "Complete"

    def _give_up_if_unknown(self, error: grpc.aio.AioRpcError) -> None:
        """A node that nobody knows and that has nothing to serve yet is better told so than left waiting."""
        if error.code() in _REFUSED_US and not self.in_force.is_set():
            said = f"{error.code().name}: {error.details()}"
            raise OperatorError(
                f"the control plane at {self._settings.xds.target} refuses it: {said}", where="AUTH_TOKEN"
            ) from None

    def _reason(self, code: grpc.StatusCode, details: str) -> str:
        if not self.connected:
            return "ConnectionError"
        going_away = "transport is closing" in details or "goaway" in details.lower()
        normal = code in _NORMAL or (code is grpc.StatusCode.UNAVAILABLE and going_away)
        return "Reconnect" if normal else "Error"

    async def _stream(self) -> None:
        endpoint = self._settings.xds
        metadata = call_metadata(endpoint, self._settings.auth_token, self._settings.cluster_id)
        async with open_channel(endpoint, self._own_roots()) as channel:
            method: Any = channel.stream_stream(
                _METHOD,
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=None,
            )
            call = method(metadata=metadata)
            if self._unheard:
                await _ended(call)
            # With 100,000 resources held the first words are megabytes: not for nobody.
            reached = not call.done() and await _reached(channel)
            for request in self._subscriber.start() if reached else []:
                await send(call, request)
            async for serialized in call:
                await send(call, await self.take(self._heard(serialized)))

    def _heard(self, serialized: bytes) -> Received:
        response = read_response(serialized)
        if not self.connected:
            _log.info(log.PEER_CONNECTED, address=self._settings.xds.target)
        self.connected, self.last_error, self.last_message = True, "", time.time()
        self._backoff.worked()
        self._metrics.count("istio_xds_message_total", url=response.type_url)
        self._metrics.count("istio_xds_message_bytes_total", len(serialized), url=response.type_url)
        return response

    async def take(self, response: Received) -> DeltaDiscoveryRequest:
        """Applies one response; returns the answer to send. A type that we never asked for is acknowledged only."""
        began = time.thread_time()
        batch = self._subscriber.receive(response)
        if not batch.wanted:
            _log.error("a type that was not asked for", type_url=batch.type_url)
            return self._subscriber.settle(batch)
        upserts = [(name, data) for name, _, data in batch.upserts]
        worked_s = time.thread_time() - began
        refused, applied_s = await self._apply(batch, upserts)
        rests = self._dataplane.core.in_use()
        if self._store:
            await self._store.record(batch, refused, rests)
        began = time.thread_time()
        answer = self._subscriber.settle(batch, refused)
        self._changed()
        self._remember_refused(batch, refused)
        self._report(batch.type_url, len(upserts) - len(refused), len(batch.removed), [*batch.malformed, *refused])
        if self._subscriber.synced and not self.in_force.is_set():
            self.in_force.set()
            _log.info(log.READY, resources=self.resources())
        if self._store and self.in_force.is_set():
            self._store.changed()
        worked_s += applied_s + time.thread_time() - began
        if batch.partial and batch.type_url == ADDRESS_TYPE and rests:
            await self._rest(worked_s)
        return answer

    async def _apply(self, batch: Batch, upserts: list[tuple[str, bytes]]) -> Applied:
        """What is part of an offer comes into force with the last one, or when the others keep it waiting."""
        async with self._applying:
            applied = await self._dataplane.apply(batch.type_url, upserts, batch.removed, more=batch.partial)
            if not batch.partial:
                self._forget_draft()
            else:
                self._expect_rest_of(batch.type_url)
        return applied

    def _expect_rest_of(self, type_url: str) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._together_s[type_url]
        if self._draft_ends is None or due < self._draft_ends.when():
            self._forget_draft()
            self._draft_ends = loop.call_at(due, self._draft_is_due)

    def _draft_is_due(self) -> None:
        self._finishing = asyncio.create_task(self._finish_draft())

    async def _finish_draft(self) -> None:
        """What has come of an offer is in force without the rest."""
        async with self._applying:
            if self._draft_ends is not None:
                self._forget_draft()
                await self._dataplane.apply(ADDRESS_TYPE, [], [])

    def _forget_draft(self) -> None:
        if self._draft_ends is not None:
            self._draft_ends.cancel()
        self._draft_ends = None

    def _remember_refused(self, batch: Batch, refused: list[tuple[str, str]]) -> None:
        for name in [*batch.removed, *(name for name, *_ in batch.upserts)] if self.refused else ():
            self.refused.pop(name, None)
        self.refused.update([*batch.malformed, *refused][:MOST_REFUSED])

    def _report(self, type_url: str, taken: int, removed: int, refused: list[tuple[str, str]]) -> None:
        if taken or removed:
            _log.info(log.CONFIG_APPLIED, type_url=type_url, upserts=taken, removed=removed)
        for name, why in refused:
            _log.error(log.CONFIG_REFUSED, type_url=type_url, name=name, why=why)
        if refused:
            self._metrics.count("nodemesh_xds_refused_total", len(refused), url=type_url)


async def _ended(call: Any) -> None:
    """Or half a second."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            await call.code()


async def _reached(channel: grpc.aio.Channel) -> bool:
    """Whether somebody is there; if not, the call says why."""
    while (state := channel.get_state(try_to_connect=True)) in (_IDLE, _CONNECTING):
        await channel.wait_for_state_change(state)
    return state is grpc.ChannelConnectivity.READY


async def send(call: Any, request: DeltaDiscoveryRequest) -> None:
    """Nothing when the server has ended the call meanwhile: the next read says why it did."""
    with suppress(asyncio.InvalidStateError):
        await call.write(request)


def make_node(settings: Settings) -> Node:
    """How Istio's ztunnel introduces itself; istiod reads its node type from the first word of the id."""
    ip = settings.instance_ip or "1.1.1.1"
    name, namespace = settings.pod_name, settings.pod_namespace
    node = Node(id=f"ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local")
    own: Mapping[str, str] = {
        "NAME": name,
        "NAMESPACE": namespace,
        "INSTANCE_IPS": ip,
        "NODE_NAME": settings.node_name,
        "CLUSTER_ID": settings.cluster_id,
    }
    node.metadata.update({key: value for key, value in own.items() if value} | dict(settings.metadata))
    return node
