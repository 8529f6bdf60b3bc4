"""What was made of what, so that a change costs what changed: single resources, and blocks of them. Pure.

A block is what one service, or one destination, adds to a proxy's configuration. As long as its parts are the same, a
round takes it over as it is, which is a glance instead of a look at each of its resources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.l7.routes import Target
from controlplane.l7.traffic import Destination
from controlplane.translate.envoy.common import Json
from mesh.delta import Versioned
from mesh.envoy import pack

Key = tuple[str, ...]
Parts = tuple[Any, ...]
Entries = dict[Key, tuple[Parts, Versioned]]


@dataclass(slots=True, eq=False)
class Block:
    """`found`: type, name, resource. `called`: the destinations that were asked for on the way. `hosts`: listener, port
    and names of each virtual host in the table of CONNECTs. `entries`: of the cache, for its resources."""

    parts: Parts = ()
    found: list[tuple[str, str, Versioned]] = field(default_factory=list)
    called: dict[Target, Destination] = field(default_factory=dict)
    targets: dict[Target, None] = field(default_factory=dict)
    jwt: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    hosts: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    entries: Entries = field(default_factory=dict)


class Cache:
    """`key`: whose resource or block; kept while `parts` are equal. What a round does not ask for is forgotten at its
    end. Shared by all proxies."""

    def __init__(self) -> None:
        self._held: Entries = {}
        self._next: Entries = {}
        self._blocks: dict[Key, Block] = {}
        self._next_blocks: dict[Key, Block] = {}

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

    def block(self, key: Key, parts: Parts) -> Block | None:
        """Of the same parts."""
        held = self._next_blocks.get(key) or self._blocks.get(key)
        return held if held and same(held.parts, parts) else None

    def keep(self, key: Key, block: Block) -> None:
        self._next_blocks[key] = block
        self._next.update(block.entries)

    def turn(self) -> None:
        """Ends a round."""
        self._held, self._next = self._next, {}
        self._blocks, self._next_blocks = self._next_blocks, {}


def same(old: Parts, new: Parts) -> bool:
    if len(old) != len(new):
        return False
    for a, b in zip(old, new, strict=True):  # noqa: SIM110 (a generator would cost more than the comparisons)
        if a is not b and a != b:
            return False
    return True
