"""When and in which order a new world reaches the tunnels.

Owns the waiting (a burst of changes is one push), the newest resources, and one stream's conversation. `Conversation`
and `Burst` do no I/O; the stream itself is `server.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from controlplane.translate.tunnel import Resources, translate
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Acked, Nacked, Publisher, Response, Subscribed, Versioned
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest
from mesh.model import World

# Sources have waited for whole files already; a waypoint hears of it after half of that.
QUIET_S: Final = 0.02
LONGEST_S: Final = 0.5
PART: Final = 300
"""Resources in a response to a tunnel: neither side works for longer than a millisecond or two without a pause, and who
has connections on the same core waits no longer."""


@dataclass(slots=True)
class Burst:
    """A push is due when nothing has changed for `QUIET_S`, but at most `LONGEST_S` after the first change."""

    first: float
    last: float

    @classmethod
    def begin(cls, now: float) -> Burst:
        return cls(now, now)

    def touch(self, now: float) -> None:
        self.last = now

    def wait_s(self, now: float) -> float:
        """0 or less: now."""
        return min(self.last + QUIET_S, self.first + LONGEST_S) - now


class Board:
    """The newest resources; whoever waits for newer ones is woken once per publication, however many were missed."""

    def __init__(self, world: World) -> None:
        self.current = translate(world)
        # Known, but perhaps not pushed yet.
        self.latest = world
        self._changed = asyncio.Event()
        self._proposed = asyncio.Event()
        self._touched = asyncio.Event()

    def propose(self, world: World) -> None:
        """Is pushed when the burst that it belongs to is over."""
        self.latest = world
        self._touched.set()
        proposed, self._proposed = self._proposed, asyncio.Event()
        proposed.set()

    async def later_than(self, world: World, deadline_s: float) -> World:
        """The next world that becomes known, or after the deadline the same one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.latest is world:
                    await self._proposed.wait()
        return self.latest

    async def newer_than(self, seen: Resources) -> Resources:
        while self.current is seen:
            await self._changed.wait()
        return self.current

    async def run(self, published: Callable[[Resources], None] = lambda _: None) -> None:
        """Until cancelled."""
        while True:
            await self._touched.wait()
            await self._settle()
            await self._publish()
            published(self.current)

    async def _settle(self) -> None:
        clock = asyncio.get_running_loop().time
        burst = Burst.begin(clock())
        while (rest := burst.wait_s(clock())) > 0:
            self._touched.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._touched.wait(), rest)
                burst.touch(clock())
        self._touched.clear()

    async def _publish(self) -> None:
        self.current = await asyncio.to_thread(translate, self.latest, self.current)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@dataclass(frozen=True, slots=True)
class Nack:
    type_url: str
    message: str


@dataclass(slots=True, eq=False)
class _Phase:
    """`changed` None: not known, compare in full."""

    type_url: str
    resources: Mapping[str, Versioned]
    changed: set[str] | None = None
    offered: bool = False


@dataclass(eq=False)
class Conversation:
    """One tunnel's stream. Feed it requests and newer resources, send what it returns, in that order.

    A tunnel denies what refers to a policy that it does not have. So a push goes in three steps, each acknowledged
    before the next: new and changed policies; addresses; the removal of policies that nothing refers to any more.
    """

    target: Resources
    # The newest world that the tunnel has acknowledged in full.
    synced_version: int | None = None
    last_nack: Nack | None = None
    _publisher: Publisher = field(default_factory=lambda: Publisher(PART))
    _in_flight: dict[str, str] = field(default_factory=dict)
    _phases: deque[_Phase] = field(default_factory=deque)
    # Whose addresses were offered last on this subscription.
    _offered: Resources | None = None
    # What the tunnel may still hold.
    _policies: dict[str, Versioned] = field(default_factory=dict)

    def receive(self, request: DeltaDiscoveryRequest) -> list[Response]:
        """Raises PeerError: the request breaks the protocol."""
        if request.type_url == AUTHORIZATION_TYPE:
            for name, version in request.initial_resource_versions.items():
                # Of an older world: known by name only, and enough to keep it until the addresses are there.
                self._policies.setdefault(name, Versioned(version, AUTHORIZATION_TYPE, b""))
        responses: list[Response] = []
        for outcome in self._publisher.handle(request):
            match outcome:
                case Subscribed(type_url) if type_url in self.target.by_type:
                    if type_url == ADDRESS_TYPE:
                        self._offered = None
                    self._plan()
                case Subscribed(type_url):
                    self._send(self._publisher.offer(type_url, {}), responses)
                case Acked(type_url):
                    self._in_flight.pop(type_url, None)
                case Nacked(type_url, _, message):
                    self._in_flight.pop(type_url, None)
                    self.last_nack = Nack(type_url, message)
        return self._advance(responses)

    def update(self, resources: Resources) -> list[Response]:
        self.target = resources
        self._plan()
        return self._advance([])

    def _plan(self) -> None:
        policies = self.target.by_type[AUTHORIZATION_TYPE]
        self._policies.update(policies)
        self._phases = deque(
            (
                _Phase(AUTHORIZATION_TYPE, dict(self._policies)),
                self._addresses(),
                _Phase(AUTHORIZATION_TYPE, policies),
            )
        )

    def _addresses(self) -> _Phase:
        changed = self.target.since(self._offered, ADDRESS_TYPE) if self._offered else None
        return _Phase(ADDRESS_TYPE, self.target.by_type[ADDRESS_TYPE], changed)

    def _advance(self, responses: list[Response]) -> list[Response]:
        while self._phases:
            phase = self._phases[0]
            if not phase.offered:
                self._send(self._publisher.offer(phase.type_url, phase.resources, phase.changed), responses)
                phase.offered = True
                if phase.type_url == ADDRESS_TYPE:
                    self._offered = self.target
            elif phase.type_url not in self._in_flight:
                self._send(self._publisher.next(phase.type_url), responses)
            if phase.type_url in self._in_flight:
                return responses
            self._phases.popleft()
            if not self._phases:
                self._policies = dict(self.target.by_type[AUTHORIZATION_TYPE])
                self.synced_version = self.target.world.version
        return responses

    def _send(self, response: Response | None, responses: list[Response]) -> None:
        if response is not None:
            self._in_flight[response.type_url] = response.nonce
            responses.append(response)
