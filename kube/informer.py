"""One kind of the API, kept up to date for as long as the daemon lives: the loop around `Reflection`.

Never ends by itself and never raises but for a bug of ours: what is wrong with the API server is in `trouble` and in
the log, what was known of the cluster stays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Final, Generic

from kube.client import BOOKMARK, Client, Event
from kube.errors import ApiError, Expired, NotFound
from kube.objects import Key, Resource, T
from kube.reflect import Change, ListPage, Reflection
from mesh import log
from mesh.backoff import Backoff
from mesh.errors import LocalError, MeshError

FIRST_S: Final = 0.2
CAP_S: Final = 30.0
# A server that says nothing for so long, not even where it is, has gone, or does not know the version any more.
SILENT_S: Final = 150.0
# A watch that lasted this long was a good one, even if nothing happened.
GOOD_WATCH_S: Final = 5.0
ABSENT_S: Final = 30.0
"""How often a kind is asked for that the server does not have: somebody may install it."""
_log: Final = log.get("kube")


class Informer(Generic[T]):
    """`told` is called with each batch of changes, after they are in `objects`; it must neither raise nor wait."""

    def __init__(
        self,
        client: Client,
        resource: Resource[T],
        told: Callable[[list[Change[T]]], None] = lambda _: None,
        *,
        selectors: Mapping[str, str] | None = None,
        cached: bool = False,
        alternatives: Iterable[Resource[T]] = (),
    ) -> None:
        """`selectors`: fieldSelector and labelSelector. `cached`: as `Reflection` has it. `alternatives`: versions of
        the kind to be tried when the server does not have the first."""
        self.resource = resource
        self.told = told
        self._versions = [resource, *alternatives]
        self.synced = asyncio.Event()
        """All that there is was seen once, or the server does not have the kind."""
        self.trouble = "not asked yet"
        """"" while a watch is open."""
        self._client, self._selectors = client, selectors or {}
        self._reflection: Reflection[T] = Reflection(cached=cached)
        self._backoff = Backoff(FIRST_S, CAP_S)
        self._doubted = False
        """Whether the server that we watch is the one that gave us the version."""

    @property
    def objects(self) -> Mapping[Key, T]:
        return self._reflection.objects

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._turn()
            except LocalError:
                raise
            except Expired as error:
                self._reflection.expired()
                await self._wait(error)
            except NotFound as error:
                await self._without_the_kind(error)
            except MeshError as error:
                self._reflection.broken()
                self._doubted = True
                await self._wait(error)

    async def _turn(self) -> None:
        request = self._reflection.next()
        if isinstance(request, ListPage):
            await self._list(request)
        else:
            await self._watch(request.version)

    async def _list(self, request: ListPage) -> None:
        page = await self._client.list_page(self.resource, request, self._selectors)
        changes = self._reflection.page(page.items, page.version, page.token)
        if page.token:
            return
        if changes:
            self.told(changes)
        self.synced.set()

    async def _watch(self, version: str) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        heard = False
        if self._doubted:
            await self._client.require_reached(self.resource, version)
            self._doubted = False
        async with self._client.watch(self.resource, version, self._selectors) as events:
            self._well()
            async for event in _lively(events):
                heard = True
                self._backoff.worked()
                self._heard(event)
        if clock() - began > GOOD_WATCH_S:
            self._backoff.worked()
        else:  # whoever ends every watch at once must not make us ask without a pause
            await asyncio.sleep(FIRST_S if heard else self._pause_s())

    def _heard(self, event: Event[T]) -> None:
        if event.kind == BOOKMARK:
            self._reflection.bookmark(event.item.version)
        elif changes := self._reflection.event(event.kind, event.item):
            self.told(changes)

    def _well(self) -> None:
        if self.trouble and self.synced.is_set():
            _log.debug("in step with the API server", kind=self.resource.kind, objects=len(self.objects))
        self.trouble = ""

    async def _wait(self, error: MeshError) -> None:
        if self.trouble != str(error):
            say = _log.info if isinstance(error, Expired) else _log.warning
            say("the API server cannot be followed", kind=self.resource.kind, why=str(error))
        self.trouble = str(error)
        asked_s = error.retry_after_s if isinstance(error, ApiError) else 0.0
        await asyncio.sleep(max(asked_s, self._pause_s()))

    def _pause_s(self) -> float:
        """Between half and all of it, so that a thousand agents do not come back in step."""
        return self._backoff.failed() * (0.5 + random.random() / 2)

    async def _without_the_kind(self, error: NotFound) -> None:
        later = self._versions[self._versions.index(self.resource) + 1 :]
        if later and not self.objects:
            self._reflection.expired()
            self.resource = later[0]
        elif self._reflection.absent():
            self.resource = self._versions[0]
            if self.trouble:
                _log.debug("the API server does not have this kind", kind=self.resource.kind)
            self.trouble = ""
            self.synced.set()
            await asyncio.sleep(ABSENT_S * (0.5 + random.random() / 2))
        else:
            await self._wait(error)


async def _lively(events: AsyncIterator[Event[T]]) -> AsyncIterator[Event[T]]:
    """Raises TimeoutError: nothing, not even a bookmark, for too long."""
    while True:
        async with asyncio.timeout(SILENT_S):
            event = await anext(events, None)
        if event is None:
            return
        yield event
