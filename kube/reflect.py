"""The list-and-watch conversation with the API server for one kind, without I/O.

Feed it what the server said; `next` is what to ask now, the returned changes are what became different. Nothing is
dropped because the server is silent or away: an object goes only when the server says so, by a DELETED event or by a
complete list without it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic

from kube.objects import Key, T

DELETED: Final = "DELETED"
PUT: Final = ("ADDED", "MODIFIED")


@dataclass(frozen=True, slots=True)
class ListPage:
    """`version` None: as of now, which the server asks its database; "0": whatever its cache holds."""

    version: str | None = None
    token: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    version: str


Request = ListPage | Watch


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """`after` None: it is gone. `before` None: it is new."""

    key: Key
    before: T | None
    after: T | None


class Reflection(Generic[T]):
    """`objects` as the server last had them. While a list is under way they stay what they were before it."""

    def __init__(self, *, cached: bool = False) -> None:
        """`cached`: the first list may come from the server's cache, which may be older than its database but has an
        index by node. Every later one is as of now, so that time never runs backwards."""
        self.objects: dict[Key, T] = {}
        self.synced = False
        """A list was complete once."""
        self._watching = ""
        self._cached = cached
        self._listed: dict[Key, T] = {}
        self._token = ""

    def next(self) -> Request:
        if self._watching:
            return Watch(self._watching)
        return ListPage("0" if self._cached and not self._token else None, self._token)

    def page(self, items: Iterable[T], version: str, token: str) -> list[Change[T]]:
        """An answer to ListPage. The last one, without `token`, is what counts; until then nothing changes."""
        for each in items:
            known = self.objects.get(each.key)
            # What is the same stays the same object, with what was made of it. The version alone does not tell: a
            # database that was restored from a copy gives it a second time.
            same = known is not None and known.version == each.version and known == each
            self._listed[each.key] = known if known is not None and same else each
        self._token = token
        if token:
            return []
        before, self.objects = self.objects, self._listed
        self._listed = {}
        self._watching, self.synced, self._cached = version, True, False
        return list(_differences(before, self.objects))

    def event(self, kind: str, item: T) -> list[Change[T]]:
        """Of a watch. Kinds that are not known change nothing."""
        if item.version:
            self._watching = item.version
        known = self.objects.get(item.key)
        if kind == DELETED:
            return [Change(item.key, self.objects.pop(item.key), None)] if known is not None else []
        if kind not in PUT or (known is not None and known.version == item.version):
            return []
        self.objects[item.key] = item
        return [Change(item.key, known, item)]

    def bookmark(self, version: str) -> None:
        """Nothing that concerns us happened up to there."""
        if version:
            self._watching = version

    def expired(self) -> None:
        """The server no longer knows what came after our version, or our place in a list: everything anew."""
        self._watching = ""
        self.broken()

    def broken(self) -> None:
        """The exchange under way came to nothing: half a list counts for nothing; a watch goes on where it was."""
        self._listed, self._token = {}, ""

    def absent(self) -> bool:
        """The server does not have the kind. Whether that is believed: not while we hold objects of it, which an
        operator's mistake, or a server that is still starting, must not take away."""
        self.expired()
        self.synced = self.synced or not self.objects
        return not self.objects


def _differences(before: dict[Key, T], after: dict[Key, T]) -> Iterable[Change[T]]:
    for key, each in after.items():
        if before.get(key) is not each:
            yield Change(key, before.get(key), each)
    for key, each in before.items():
        if key not in after:
            yield Change(key, each, None)
