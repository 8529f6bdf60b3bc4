"""The cluster as a source of configuration: every followed kind by an informer, one origin per object.

Says nothing before everything has been listed once, so that nobody ever acts on half a world: no policy is missing
because it comes in another list than its pods. While the API server is away, what was last heard stays, also over a
restart, by the copy on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from controlplane.documents import Parsed
from controlplane.sources.base import Contents, News
from controlplane.sources.objects import called, origin, parsed
from controlplane.sources.saved import Objects, Saved
from kube.client import Client
from kube.informer import Informer
from kube.objects import Key, Object, Pod
from kube.objects import Resource as Kind
from kube.reflect import Change
from mesh import log

PATIENCE_S: Final = 10.0
"""How long the API server is waited for at the start when there is a copy on disk."""
SETTLE_S: Final = 0.02
SAVE_S: Final = 10.0
_log: Final = log.get("kubernetes")
_Touched = dict[str, tuple[Kind[Any], Object | None]]


class KubernetesSource:
    """`run` it beside everything else; `first`, then `changes`."""

    def __init__(
        self,
        client: Client,
        kinds: Iterable[tuple[Kind[Any], ...]],
        saved: Saved,
        seen: Callable[[Parsed], object] = lambda _: None,
    ) -> None:
        """`kinds`: each with its versions. `seen`: as `one_by_one` has it."""
        self._saved, self._seen = saved, seen
        self._informers = [self._follow(client, versions) for versions in kinds]
        self._contents: dict[str, Parsed] = {}
        self._versions: dict[str, str] = {}
        self._touched: _Touched = {}
        self._unsaved: set[Kind[Any]] = set()
        self._changed = asyncio.Event()
        self._whole = False
        """What is told is the API's, not the disk's."""

    def _follow(self, client: Client, versions: tuple[Kind[Any], ...]) -> Informer[Any]:
        selectors = {"fieldSelector": "type=kubernetes.io/tls"} if versions[0].kind == "Secret" else {}
        informer: Informer[Any] = Informer(client, versions[0], selectors=selectors, alternatives=versions[1:])
        informer.told = lambda changes: self._heard(informer.resource, changes)
        return informer

    def _heard(self, kind: Kind[Any], changes: list[Change[Any]]) -> None:
        for each in changes:
            item = each.after or each.before
            assert item is not None
            self._touched[origin(kind, item)] = kind, each.after
        self._unsaved.add(kind)
        self._changed.set()

    @property
    def synced(self) -> bool:
        return all(each.synced.is_set() for each in self._informers)

    def describe(self) -> dict[str, Any]:
        """For /status: what cannot be followed, by kind and sentence."""
        troubles = {called(each.resource): each.trouble for each in self._informers if each.trouble}
        return {"synced": self.synced, "from_disk": not self._whole, "trouble": troubles}

    def pod(self, namespace: str, name: str) -> Pod | None:
        found: Pod | None = self._find("Pod", namespace, name)
        return found

    def find(self, origin: str) -> tuple[Kind[Any], Object] | None:
        """The object that a document's `file` names."""
        kind, _, path = origin.partition(" ")
        for each in self._informers:
            if called(each.resource) == kind:
                namespace, _, name = path.rpartition("/")
                found = each.objects.get(Key(namespace, name))
                if found is not None:
                    return each.resource, found
        return None

    def _find(self, kind: str, namespace: str, name: str) -> Any:
        found = next((each for each in self._informers if called(each.resource) == kind), None)
        return found.objects.get(Key(namespace, name)) if found else None

    async def run(self) -> None:
        """Until cancelled; what is not saved yet is, then."""
        try:
            await asyncio.gather(*(each.run() for each in self._informers), self._save_now_and_then())
        finally:
            self._save()

    async def first(self, patience_s: float = PATIENCE_S) -> Contents:
        """The whole cluster; or, when the API server does not answer, the copy on disk, if there is one."""
        copy = await asyncio.to_thread(self._saved.load)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s if copy is not None else None):
                await self._wait_until_whole()
                return await asyncio.to_thread(self._take_all)
        assert copy is not None
        _log.warning("the API server does not answer: its last known state is in force", path=str(self._saved.path))
        return await asyncio.to_thread(self._take_copy, copy)

    async def changes(self) -> AsyncIterator[News]:
        if not self._whole:
            await self._wait_until_whole()
            yield News(await asyncio.to_thread(self._take_all))
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            touched, self._touched = self._touched, {}
            if touched:
                yield News(await asyncio.to_thread(self._take, touched), frozenset(touched))

    async def _wait_until_whole(self) -> None:
        waiting = asyncio.ensure_future(self._complain())
        try:
            await asyncio.gather(*(each.synced.wait() for each in self._informers))
        finally:
            waiting.cancel()

    async def _complain(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE_S)
            missing = ", ".join(each.resource.kind for each in self._informers if not each.synced.is_set())
            _log.warning("not everything is listed yet", kind=missing)

    def _take_all(self) -> Contents:
        self._touched = {}
        now: _Touched = {
            origin(each.resource, item): (each.resource, item)
            for each in self._informers
            for item in list(each.objects.values())
        }
        self._unsaved.update(each.resource for each in self._informers)
        self._whole = True
        gone: _Touched = {name: (kind, None) for name, kind in self._gone(now)}
        return self._take(now | gone)

    def _gone(self, now: _Touched) -> Iterable[tuple[str, Kind[Any]]]:
        kinds = {called(each.resource): each.resource for each in self._informers}
        return [(name, kinds[name.partition(" ")[0]]) for name in self._contents if name not in now]

    def _take_copy(self, copy: Objects) -> Contents:
        return self._take({origin(kind, item): (kind, item) for kind, items in copy for item in items})

    def _take(self, touched: _Touched) -> Contents:
        for name, (kind, item) in touched.items():
            if item is None:
                self._contents.pop(name, None)
                self._versions.pop(name, None)
            elif self._versions.get(name) != item.version or name not in self._contents:
                self._versions[name] = item.version
                self._contents[name] = parsed(kind, item)
                self._seen(self._contents[name])
        return self._contents

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        if not self._whole or not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, set()
        every = [(each.resource, list(each.objects.values())) for each in self._informers]
        self._saved.save([each for each in every if each[0] in unsaved], [kind for kind, _ in every])
