"""What was made of what, so that a change costs what changed: single resources, and blocks of them. Pure.

A block is what one service, or one destination, adds to a proxy's configuration. As long as its parts are the same, a
round takes it over as it is, which is a glance instead of a look at each of its resources. Where nothing that it leans
on has changed since it was looked at last, not even its parts are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from controlplane.l7.model import L7
from controlplane.l7.routes import Target
from controlplane.l7.traffic import Destination
from controlplane.translate.envoy.common import Json
from controlplane.translate.envoy.moments import Moment, after
from controlplane.translate.envoy.world import View
from mesh.delta import Versioned
from mesh.envoy import pack

Key = tuple[str, ...]
Parts = tuple[Any, ...]
Entries = dict[Key, tuple[Parts, Versioned]]
# To look through all blocks for what is still in use is dearer than to keep a few resources too long.
_LEFT_LYING: Final = 1.25


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """When a block was right last, and what for: `mark` of the moment; `frame`, which all of a proxy's blocks have in
    common; `source`, what it was made for; `leans`, the services and workloads, by key, that decide about it."""

    mark: object
    frame: Parts
    source: object
    leans: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a CONNECT may ask for (`claim`: an address or name, and a port; 0: any), and the cluster that leads there.
    `found`: the cluster, when it is this one's own."""

    claim: tuple[str, int]
    cluster: str
    found: tuple[tuple[str, str, Versioned], ...] = ()


@dataclass(slots=True, eq=False)
class Block:
    """`found`: type, name, resource. `called`: the destinations that were asked for on the way. `targets`: by the name
    of their cluster. `entries`: of the cache, for its resources. `seen` None: its parts have to be compared."""

    parts: Parts = ()
    found: list[tuple[str, str, Versioned]] = field(default_factory=list)
    called: dict[Target, Destination] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    jwt: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    entries: Entries = field(default_factory=dict)
    seen: Seen | None = None

    def still(self, moment: Moment, frame: Parts, source: object) -> bool:
        """Without a look at its parts, so often False although they are the same."""
        seen = self.seen
        if seen is None or seen.frame is not frame or seen.source is not source:
            return False
        if seen.mark is moment.mark:
            return True
        if seen.mark is not moment.earlier or not seen.leans.isdisjoint(moment.changed):
            return False
        # Replaced as a whole: two rounds may look at once.
        self.seen = Seen(moment.mark, frame, source, seen.leans)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """One kind of a proxy's blocks, by what each is for: those of the last round and of this one."""

    before: dict[str, Block]
    now: dict[str, Block]

    def find(self, name: str) -> Block | None:
        return self.now.get(name) or self.before.get(name)


class Cache:
    """`key`: whose resource or blocks; kept while `parts` are equal. A block for which a round does not ask is
    forgotten at its end, a resource some rounds later. Shared by all proxies."""

    def __init__(self) -> None:
        self._held: Entries = {}
        self._next: Entries = {}
        self._swept = 0
        self._shelves: dict[Key, dict[str, Block]] = {}
        self._next_shelves: dict[Key, dict[str, Block]] = {}
        self._frames: dict[str, Parts] = {}
        self._next_frames: dict[str, Parts] = {}
        self._last: tuple[Moment, View, L7] | None = None

    def moment(self, view: View, l7: L7) -> Moment:
        """Of this view and model; how it differs from the one before."""
        moment = after(self._last, view, l7)
        self._last = moment, view, l7
        return moment

    def frame(self, proxy: str, parts: Parts) -> Parts:
        """The same object as long as it is equal."""
        held = self._next_frames.get(proxy) or self._frames.get(proxy)
        found = held if held and same(held, parts) else parts
        self._next_frames[proxy] = found
        return found

    def packed(
        self, type_url: str, key: Key, parts: Parts, make: Callable[[], Json], into: Entries | None = None
    ) -> Versioned:
        full = (type_url, *key)
        held = self._next.get(full) or self._held.get(full)
        if held is None or not same(held[0], parts):
            held = parts, pack(type_url, make())
        self._next[full] = held
        if into is not None:
            into[full] = held
        return held[1]

    def shelf(self, key: Key) -> Shelf:
        return Shelf(self._shelves.get(key, {}), self._next_shelves.setdefault(key, {}))

    def turn(self) -> None:
        """Ends a round."""
        self._shelves, self._next_shelves = self._next_shelves, {}
        self._frames, self._next_frames = self._next_frames, {}
        self._held.update(self._next)
        if len(self._held) > self._swept * _LEFT_LYING:
            self._held = {key: held for each in self._blocks() for key, held in each.entries.items()} | self._next
            self._swept = len(self._held)
        self._next = {}

    def _blocks(self) -> Iterator[Block]:
        for shelf in self._shelves.values():
            yield from shelf.values()


def same(old: Parts, new: Parts) -> bool:
    if len(old) != len(new):
        return False
    for a, b in zip(old, new, strict=True):  # noqa: SIM110 (a generator would cost more than the comparisons)
        if a is not b and a != b:
            return False
    return True
