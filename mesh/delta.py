"""The delta-xDS conversation, both roles, as values: no stream, no clock, no tasks.

Owns who holds which version of what, nonces, ACK and NACK, and resumption. Does not own the resources' meaning, the
stream, or back-off. Source: the xDS protocol's incremental variant as Istio's ztunnel and istiod speak it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, NamedTuple

from mesh.errors import PeerError
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status
from mesh.wire import prefix

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"
WILDCARD: Final = "*"
MAX_RESOURCES: Final = 1000
"""In a response, unless its publisher is told otherwise, so that neither side works on one for long."""
MAX_BYTES: Final = 2 * 1024 * 1024
"""Of the resources in one response, which ends with the one that passes it: below gRPC's usual limit of 4 MiB."""
PARTIAL: Final = "partial"
"""Our `system_version_info` when more of the same offer follows. Without it a client that has the first 500 policies
of 600 would believe that it has them all; other clients ignore the field, other servers never say this word."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """One resource as it crosses: `data` is the serialized message of type `type_url`.

    `head`: `head_of` for the name that it goes by, of what is sent to many; empty: made when it is sent.
    """

    version: str
    type_url: str
    data: bytes
    head: bytes = field(default=b"", repr=False, compare=False)


def head_of(name: str, version: str, type_url: str, size: int) -> bytes:
    """What a serialized response has before `size` bytes of data for them to be one of its resources.

    To put a response together out of these costs a tenth of naming each field of each resource to the library.
    """
    content = _text(1, type_url) + prefix(2, size)
    entry = _text(1, version) + _text(3, name) + prefix(2, len(content) + size) + content
    return prefix(2, len(entry) + size) + entry


def _text(number: int, text: str) -> bytes:
    encoded = text.encode()
    return prefix(number, len(encoded)) + encoded


World = Mapping[str, Versioned]
"""Every resource of one type, by name."""

Refusal = tuple[str, str]
"""A resource's name and, in one sentence, why it was not taken."""


class Received(NamedTuple):
    """One response, see `ztunnel.dataplane.read_response`. `upserts`: (name, version, data). `odd`: (name, type URL) of
    each resource that is not of the response's type. `whole`: the serialized response."""

    type_url: str
    nonce: str
    version_info: str
    upserts: list[tuple[str, str, bytes]]
    odd: list[tuple[str, str]]
    removed: list[str]
    whole: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What one response asks for: `upserts` are (name, version, data); a name is in at most one of the two lists.

    `malformed` never reached the upserts. `wanted` is false for a type nobody asked for: acknowledge, do not apply.
    `partial`: more of the same follows. `whole`: the serialized response, when each of its resources is in `upserts`.
    """

    type_url: str
    nonce: str
    upserts: list[tuple[str, str, bytes]]
    removed: list[str]
    malformed: list[Refusal] = field(default_factory=list)
    wanted: bool = True
    partial: bool = False
    whole: bytes = field(default=b"", repr=False, compare=False)


REFUSED: Final = ""
"""The version under which a client names what it refused and holds no older version of: a server that still has it
sends it again, one that no longer has it says that it is removed. Unnamed, its refusal would outlive it."""


class Subscriber:
    """The client's role. One object outlives its streams: `start()` opens the next and says what is held already.

    `held`: type URL to name to version, what an earlier life of this process left behind (version `REFUSED`: refused).
    """

    def __init__(
        self, node: Node, type_urls: Sequence[str], held: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._node = node
        left = {url: (held or {}).get(url, {}) for url in type_urls}
        self._held = {url: {name: of for name, of in each.items() if of != REFUSED} for url, each in left.items()}
        self._refused = {url: {name for name, of in each.items() if of == REFUSED} for url, each in left.items()}
        self._unconfirmed = set(type_urls)

    @property
    def synced(self) -> bool:
        """Every type has had a first complete answer that was acknowledged. A refusal does not count; stays true."""
        return not self._unconfirmed

    def held(self, type_url: str) -> Mapping[str, str]:
        """Name to version of what is in force."""
        return self._held[type_url]

    def start(self) -> list[DeltaDiscoveryRequest]:
        """The first requests of a stream, one wildcard subscription per type."""
        return [
            DeltaDiscoveryRequest(
                node=self._node,
                type_url=url,
                initial_resource_versions={**dict.fromkeys(self._refused[url], REFUSED), **held},
            )
            for url, held in self._held.items()
        ]

    def receive(self, response: Received) -> Batch:
        """What to apply now. Each batch must be settled, in the order of arrival, before the next is received."""
        newest = {item[0]: item for item in response.upserts}
        each_once = len(newest) == len(response.upserts)
        return Batch(
            response.type_url,
            response.nonce,
            response.upserts if each_once else list(newest.values()),
            [name for name in response.removed if name not in newest],
            [(name, f"is of type {url or 'nothing'}") for name, url in response.odd],
            wanted=response.type_url in self._held,
            partial=response.version_info == PARTIAL,
            whole=response.whole if each_once and not response.odd else b"",
        )

    def settle(self, batch: Batch, refused: Iterable[Refusal] = ()) -> DeltaDiscoveryRequest:
        """Records what was taken; returns the ACK, or the NACK when anything was refused.

        A refused resource keeps its older version in force, so the older version stays recorded: were it forgotten,
        the server could not remove it after a reconnect.
        """
        answer = DeltaDiscoveryRequest(type_url=batch.type_url, response_nonce=batch.nonce)
        refusals = [*batch.malformed, *refused]
        if batch.wanted:
            self._record(batch, {name for name, _ in refusals})
            if not refusals and not batch.partial:
                self._unconfirmed.discard(batch.type_url)
        if refusals:
            answer.error_detail.CopyFrom(Status(message="; ".join(f"{name}: {why}" for name, why in refusals)))
        return answer

    def _record(self, batch: Batch, refused: set[str]) -> None:
        held = self._held[batch.type_url]
        for name in batch.removed:
            held.pop(name, None)
        held.update({name: version for name, version, _ in batch.upserts if name not in refused})
        kept_out = self._refused[batch.type_url] | refused
        kept_out.difference_update(batch.removed)
        self._refused[batch.type_url] = {name for name in kept_out if name not in held}


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The client's interest in this type began or changed: `offer` it the current world."""

    type_url: str


@dataclass(frozen=True, slots=True)
class Acked:
    """The response in flight was taken: `next` may have more."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Nacked:
    """As `Acked`, but something in it was refused; it is not sent again until it changes."""

    type_url: str
    nonce: str
    message: str


Outcome = Subscribed | Acked | Nacked


@dataclass(frozen=True, slots=True)
class Response:
    """One DeltaDiscoveryResponse as it crosses: `data` is the serialized message, with `type_url` and `nonce` in it.

    `replaced`: the names in it that the client had, or was sent, in another version.
    """

    type_url: str
    nonce: str
    data: bytes = field(repr=False)
    replaced: list[str] = field(repr=False)


@dataclass(slots=True)
class _Watch:
    """One client's view of one type. `sent`: name to version that it holds or has in flight."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)  # asked for by name and not answered yet, even if only with "removed"
    upcoming: list[tuple[str, Versioned]] = field(default_factory=list)  # at most one: the next to send
    unread: Iterator[tuple[str, Versioned]] = field(default_factory=lambda: iter(()))  # not compared with `sent` yet
    removals: list[str] = field(default_factory=list)
    in_flight: str = ""
    greeted: bool = False

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def plan(self, world: World, changed: Set[str] | None) -> None:
        if changed is not None:
            self._amend(world, changed)
            return
        wanted = world if self.wildcard else {name: world[name] for name in self.names if name in world}
        self.upcoming, self.unread = [], iter(wanted.items())
        self.removals = [name for name in self.sent.keys() | self.owed if name not in wanted]

    def _amend(self, world: World, changed: Set[str]) -> None:
        """What was still to send stays so; only `changed` is looked at again."""
        unsent = (name for name, _ in chain(self.upcoming, self.unread))
        waiting = {*changed, *unsent, *self.removals, *self.owed}
        wanted = {name for name in waiting if name in world and self.wants(name)}
        # In an order, so that whoever has seen the last of a kind has seen them all.
        self.upcoming, self.unread = [], iter([(name, world[name]) for name in sorted(wanted)])
        self.removals = [name for name in waiting - wanted if name in self.sent or name in self.owed]

    def look(self) -> bool:
        """Whether an upsert is still to send. So a large world is compared while it is sent, not before."""
        if not self.upcoming:
            differing = (each for each in self.unread if self.sent.get(each[0]) != each[1].version)
            self.upcoming.extend(islice(differing, 1))
        return bool(self.upcoming)

    def take_upserts(self, at_most: int) -> tuple[list[bytes], list[str]]:
        """The next ones' heads and data, in turn, which count as sent now; the names in them that are not new to it."""
        size, entries, replaced = 0, list[bytes](), list[str]()
        sent, owed = self.sent, self.owed  # each dot costs, a thousand times
        for name, item in chain(self.upcoming, self.unread):
            version, data, before = item.version, item.data, sent.get(name)
            if before == version:
                continue
            if before:
                replaced.append(name)
            entries += item.head or head_of(name, version, item.type_url, len(data)), data
            sent[name] = version
            owed.discard(name)
            size += len(data)
            if size > MAX_BYTES or len(entries) >= 2 * at_most:
                break
        self.upcoming.clear()
        return entries, replaced

    def take_removals(self) -> list[str]:
        """None while an upsert is to come: a DENY that goes before its successor has come would widen access."""
        if self.look():
            return []
        taken, self.removals = self.removals, []
        for name in taken:
            self.sent.pop(name, None)
            self.owed.discard(name)
        return taken


class Publisher:
    """The server's role towards one client, for the life of one stream.

    A type that the server does not know is a world without resources: offer it `{}`.
    """

    def __init__(self, max_resources: int = MAX_RESOURCES) -> None:
        self._max_resources = max_resources
        self._watches: dict[str, _Watch] = {}
        self._nonces = 0

    def handle(self, request: DeltaDiscoveryRequest) -> list[Outcome]:
        """Raises PeerError: the request names no type. An answer to another response than the last is no answer."""
        url = request.type_url
        if not url:
            raise PeerError("a discovery request without a type_url")
        outcomes: list[Outcome] = []
        if self._subscribe(request):
            outcomes.append(Subscribed(url))
        watch = self._watches[url]
        if watch.in_flight and request.response_nonce == watch.in_flight:
            outcomes.append(_answer(request))
            watch.in_flight = ""
        return outcomes

    def offer(self, type_url: str, world: World, changed: Set[str] | None = None) -> Response | None:
        """`world` is what the client shall end with; returns the first response towards it, as `next` does.

        The mapping must not change afterwards. `changed`: every name in which it differs from the last offer on this
        subscription, so that the cost is theirs, not the world's. Does nothing for a type that nobody asked for.
        """
        watch = self._watches.get(type_url)
        if watch is None:
            return None
        watch.plan(world, changed)
        return self.next(type_url)

    def forget(self, type_url: str, names: Iterable[str]) -> None:
        """These are sent again with the next offer, if the client wants them: it has dropped what it had."""
        if watch := self._watches.get(type_url):
            for name in names:
                watch.sent.pop(name, None)

    def next(self, type_url: str) -> Response | None:
        """The next part of the last offer; None while a response is unanswered, or when the client has it all."""
        watch = self._watches.get(type_url)
        if watch is None or watch.in_flight or not (watch.look() or watch.removals or not watch.greeted):
            return None
        self._nonces += 1
        watch.in_flight, watch.greeted = str(self._nonces), True
        return self._made(type_url, watch)

    def _made(self, type_url: str, watch: _Watch) -> Response:
        """By hand, because most of it is serialized already; in the order of the fields' numbers, as others do it."""
        resources, replaced = watch.take_upserts(self._max_resources)
        removed = watch.take_removals()
        partial = _text(DeltaDiscoveryResponse.SYSTEM_VERSION_INFO_FIELD_NUMBER, PARTIAL) if watch.look() else b""
        data = b"".join(
            (
                partial,
                *resources,
                _text(DeltaDiscoveryResponse.TYPE_URL_FIELD_NUMBER, type_url),
                _text(DeltaDiscoveryResponse.NONCE_FIELD_NUMBER, watch.in_flight),
                *(_text(DeltaDiscoveryResponse.REMOVED_RESOURCES_FIELD_NUMBER, name) for name in removed),
            )
        )
        return Response(type_url, watch.in_flight, data, replaced)

    def _subscribe(self, request: DeltaDiscoveryRequest) -> bool:
        """Whether the client's interest changed. The first request of a type that names nothing asks for everything."""
        watch = self._watches.get(request.type_url)
        subscribe = set(request.resource_names_subscribe)
        unsubscribe = set(request.resource_names_unsubscribe)
        if watch is None:
            watch = self._watches[request.type_url] = _Watch(wildcard=not subscribe)
            _apply_names(watch, subscribe, unsubscribe)
            held = request.initial_resource_versions
            watch.sent = {name: version for name, version in held.items() if watch.wants(name)}
            watch.owed -= watch.sent.keys()
            return True
        _apply_names(watch, subscribe, unsubscribe)
        return bool(subscribe or unsubscribe)


def _apply_names(watch: _Watch, subscribe: set[str], unsubscribe: set[str]) -> None:
    """A name asked for again is sent again; one given up under a wildcard too, since the client may have dropped it."""
    named = subscribe - {WILDCARD}
    given_up = unsubscribe - {WILDCARD}
    watch.wildcard = (watch.wildcard or WILDCARD in subscribe) and WILDCARD not in unsubscribe
    watch.names = (watch.names | named) - given_up
    watch.owed = (watch.owed | named) - given_up
    if watch.wildcard:
        watch.owed |= given_up
    for name in named | given_up:
        watch.sent.pop(name, None)
    if WILDCARD in unsubscribe:
        watch.sent = {name: version for name, version in watch.sent.items() if name in watch.names}


def _answer(request: DeltaDiscoveryRequest) -> Acked | Nacked:
    if request.HasField("error_detail"):
        return Nacked(request.type_url, request.response_nonce, request.error_detail.message)
    return Acked(request.type_url, request.response_nonce)
