"""When and in which order a new model reaches the waypoints and gateways.

Owns the newest configuration, made for each connected proxy once per publication, and one Envoy's conversation. What is
in it is `translate/envoy`; the stream is `server.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from controlplane.l7.model import L7
from controlplane.push import Nack
from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.locality import Place
from controlplane.translate.envoy.resources import TYPES, ByType, Translation
from controlplane.translate.envoy.world import View
from controlplane.translate.identical import differing
from mesh.delta import Acked, Nacked, Publisher, Response, Subscribed, Versioned
from mesh.envoy import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SECRET
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest
from mesh.model import World

# A person waits for the effect of a saved file; a burst of files still becomes few pushes.
QUIET_S: Final = 0.01
LONGEST_S: Final = 0.2

_PARTS: Final = ("REGION", "ZONE", "SUBZONE")

Who = tuple[str, Place]
"""A proxy's key and where one of its processes is."""


@dataclass(eq=False)
class Configuration:
    """One publication. `made`: for whom it was asked so far; a proxy that the model does not know has nothing."""

    world: World
    l7: L7
    cache: Cache
    made: dict[Who, ByType] = field(default_factory=dict)

    def of(self, who: Who) -> ByType:
        found = self.made.get(who)
        if found is None:
            proxy = self.l7.proxies.get(who[0])
            found = self._translation.of(proxy, who[1]) if proxy else {type_url: {} for type_url in TYPES}
            self.made[who] = found
        return found

    @cached_property
    def _translation(self) -> Translation:
        """Not before an Envoy asks: it goes through all workloads, and the tunnels would wait for that."""
        return Translation(View(self.world), self.l7, self.cache)


class Envoys:
    """The newest configuration; whoever waits for a newer one is woken once per publication."""

    def __init__(self, world: World, l7: L7) -> None:
        self._cache = Cache()
        self._connected: Counter[Who] = Counter()
        self.latest = world, l7
        self.current = self._made(world, l7)
        self._changed, self._touched = asyncio.Event(), asyncio.Event()

    def _made(self, world: World, l7: L7) -> Configuration:
        made = Configuration(world, l7, self._cache)
        for who in list(self._connected):
            made.of(who)
        return made

    @contextmanager
    def connected(self, who: Who) -> Iterator[None]:
        """As long as it lasts, configuration for this one is made ahead."""
        self._connected[who] += 1
        try:
            yield
        finally:
            self._connected[who] -= 1
            self._connected += Counter()  # drops those at zero

    def propose(self, world: World, l7: L7) -> None:
        self.latest = world, l7
        self._touched.set()

    async def newer_than(self, seen: Configuration) -> Configuration:
        while self.current is seen:
            await self._changed.wait()
        return self.current

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._touched.wait()
            await self._settle()
            self.current = await asyncio.to_thread(self._made, *self.latest)
            self._cache.turn()
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _settle(self) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + LONGEST_S
        while self._touched.is_set() and clock() < until:
            self._touched.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._touched.wait(), QUIET_S)
        self._touched.clear()


# Sent together: Envoy acknowledges clusters only when they are warm, and for that it needs their endpoints.
_STEPS: Final = ((SECRET,), (CLUSTER, ENDPOINTS), (EXTENSION,), (LISTENER,), (ROUTES,))


@dataclass(slots=True)
class _Phase:
    """`last`: of these types, for this target."""

    resources: Mapping[str, Mapping[str, Versioned]]
    last: bool = False
    offered: bool = False


@dataclass(eq=False)
class EnvoyConversation:
    """One Envoy's stream. Feed it requests and newer configurations, send what it returns, in that order.

    What is new comes before what refers to it (clusters before routes), what goes is last; each step is acknowledged
    before the next. A cluster that changed is a new one to Envoy, which then needs its endpoints again: right after it,
    because those that come before it are the old one's.
    """

    target: Configuration
    who: Who
    synced_version: int | None = None
    last_nack: Nack | None = None
    _publisher: Publisher = field(default_factory=Publisher)
    _in_flight: dict[str, str] = field(default_factory=dict)
    _phases: deque[_Phase] = field(default_factory=deque)
    # What Envoy may still hold although it is wanted no longer.
    _left: dict[str, dict[str, Versioned]] = field(default_factory=lambda: {each: {} for each in TYPES})
    # The names that may differ from what was offered last; a type is missing when that is not known.
    _changed: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._plan()

    def receive(self, request: DeltaDiscoveryRequest) -> list[Response]:
        """Raises PeerError: the request breaks the protocol."""
        responses: list[Response] = []
        if request.type_url == ENDPOINTS:
            # Which cluster it had them for, the one that it has now or the one before, it does not say: all come again.
            request.ClearField("initial_resource_versions")
        for outcome in self._publisher.handle(request):
            match outcome:
                case Subscribed(type_url) if type_url in TYPES:
                    # Named resources are what listeners and clusters wait for: at once, out of turn.
                    self._send(self._publisher.offer(type_url, self._all(type_url)), responses)
                case Subscribed(type_url):
                    self._send(self._publisher.offer(type_url, {}), responses)
                case Acked(type_url):
                    self._answered(type_url, responses)
                case Nacked(type_url, _, message):
                    self.last_nack = Nack(type_url, message)
                    self._answered(type_url, responses)
        return self._advance(responses)

    def _answered(self, type_url: str, responses: list[Response]) -> None:
        self._in_flight.pop(type_url, None)
        self._send(self._publisher.next(type_url), responses)

    def update(self, configuration: Configuration) -> list[Response]:
        before, self.target = self.target.of(self.who), configuration
        after = configuration.of(self.who)
        for type_url in TYPES:
            self._note(type_url, before[type_url], after[type_url])
        self._plan()
        return self._advance([])

    def _note(self, type_url: str, before: Mapping[str, Versioned], after: Mapping[str, Versioned]) -> None:
        """What differs between two targets."""
        names, left = differing(before, after), self._left[type_url]
        for name in names:
            if name in after:
                left.pop(name, None)
            else:
                left[name] = before[name]
        if type_url in self._changed:
            self._changed[type_url] |= names

    def _all(self, type_url: str) -> Mapping[str, Versioned]:
        """What is wanted, and what must not go yet."""
        left, wanted = self._left[type_url], self.target.of(self.who)[type_url]
        return {**left, **wanted} if left else wanted

    def _plan(self) -> None:
        wanted = self.target.of(self.who)
        arriving = [_Phase({type_url: self._all(type_url) for type_url in step}) for step in _STEPS]
        leaving = [_Phase({type_url: wanted[type_url] for type_url in step}, last=True) for step in reversed(_STEPS)]
        self._phases = deque((*arriving, *leaving))

    def _advance(self, responses: list[Response]) -> list[Response]:
        while self._phases:
            phase = self._phases[0]
            for type_url, resources in phase.resources.items():
                if not phase.offered:
                    changed = self._changed.get(type_url)
                    self._send(self._publisher.offer(type_url, resources, changed), responses)
                    if phase.last:
                        self._changed[type_url] = set()
                else:
                    self._send(self._publisher.next(type_url), responses)
            phase.offered = True
            if phase.resources.keys() & self._in_flight.keys():
                return responses
            self._phases.popleft()
            if not self._phases:
                for left in self._left.values():
                    left.clear()
                self.synced_version = self.target.world.version
        return responses

    def _send(self, response: Response | None, responses: list[Response]) -> None:
        if response is None:
            return
        self._in_flight[response.type_url] = response.nonce
        responses.append(response)
        if response.type_url == CLUSTER and response.replaced:
            self._publisher.forget(ENDPOINTS, response.replaced)
            changed = self._changed.get(ENDPOINTS)
            again = None if changed is None else changed.union(response.replaced)
            self._send(self._publisher.offer(ENDPOINTS, self._all(ENDPOINTS), again), responses)


def place_of(request: DeltaDiscoveryRequest) -> Place:
    """Where an Envoy says it is: REGION, ZONE, SUBZONE and LABELS of its node's metadata."""
    fields = request.node.metadata.fields
    labels = fields["LABELS"].struct_value.fields if "LABELS" in fields else {}
    region, zone, subzone = (fields[name].string_value if name in fields else "" for name in _PARTS)
    return Place(region, zone, subzone, tuple((name, labels[name].string_value) for name in sorted(labels)))
