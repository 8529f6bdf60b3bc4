"""The guard of `guard.py` in force: whose sockets are the tunnel's, and the rules in each pod's namespace that say so.

Owns the list of the tunnels' control groups, on disk too, so that an agent that restarts does not take the mark from a
tunnel that works. Without a group that tells the tunnel apart there is no guard, and `trouble` says why.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mesh import log
from mesh.errors import MeshError
from nodeagent.redirect import groups, guard, kernel, look, netns
from nodeagent.redirect.backend import OpenNamespace
from nodeagent.redirect.groups import NoGroup
from nodeagent.redirect.guard import Group, Guard
from nodeagent.redirect.plan import Options

_log: Final = log.get("guard")
_MOST: Final = 4
"""An upgrade needs two."""

NO_TUNNEL: Final = "no tunnel has been seen yet"


class Guarding:
    """For one event loop. Coroutines raise MeshError with a sentence."""

    def __init__(self, memory: Path, listeners: str = "") -> None:
        """`memory`: where the tunnels' groups are kept. `listeners`: the group whose sockets tunnels accept from, where
        there is one. Tries in a namespace of its own what this kernel can."""
        self._memory, self._listeners = memory, listeners
        self._tunnels = self._load()
        self._nft, self._frames, self._unusable = _try()
        self._pods: dict[str, tuple[OpenNamespace, Options]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._why_not = "" if self._tunnels else NO_TUNNEL

    @property
    def tunnels(self) -> list[Group]:
        """The control groups of the tunnels that are known."""
        return [group for group in self._tunnels if groups.exists(group)]

    @property
    def trouble(self) -> str:
        """Why there is none, or what it lacks; "" when all is in force."""
        lacking = "" if self._frames else "frames of packet sockets pass: no egress hook before Linux 5.16"
        return self._unusable or self._why_not or lacking

    async def meet(self, pid: int) -> None:
        """A tunnel came. Before it is told of a pod, every pod's guard knows it; never fails."""
        try:
            group = await asyncio.to_thread(groups.of_process, pid)
        except NoGroup as why:
            self._tunnels, self._why_not = [], str(why)
            _log.warning("sockets of the tunnel are known by their mark only", why=self._why_not)
        else:
            if group in self._tunnels:
                return
            self._tunnels = [*(known for known in self._tunnels if groups.exists(known)), group][-_MOST:]
            self._why_not = ""
        self._save()
        await asyncio.gather(*(self._again(identity) for identity in list(self._pods)))

    async def put(self, namespace: OpenNamespace, *, options: Options) -> None:
        is_known = namespace.identity in self._pods
        self._pods[namespace.identity] = (namespace, options)
        await self._locked(namespace.identity, lambda: namespace.run(lambda: self._put(options, is_known)))

    async def compare(self, namespace: OpenNamespace, *, options: Options) -> list[str]:
        """What differs, one phrase each. A pod of an agent before this one becomes known by it."""
        self._pods[namespace.identity] = (namespace, options)
        return await namespace.run(lambda: self._compare(options))

    async def take_out(self, namespace: OpenNamespace) -> None:
        self._pods.pop(namespace.identity, None)
        await self._locked(namespace.identity, lambda: namespace.run(self._take_out))
        self._locks.pop(namespace.identity, None)

    async def _again(self, identity: str) -> None:
        async def renew() -> None:
            if identity in self._pods:  # else taken out meanwhile
                namespace, options = self._pods[identity]
                await namespace.run(lambda: self._put(options, is_known=True))

        try:
            await self._locked(identity, renew)
        except (MeshError, OSError, ValueError) as error:
            _log.warning("guard not renewed", netns=identity, why=str(error))

    async def _locked(self, identity: str, work: Callable[[], Awaitable[None]]) -> None:
        async with self._locks.setdefault(identity, asyncio.Lock()):
            await work()

    # On a thread inside the namespace --------------------------------------------------------------------------------

    def _put(self, options: Options, is_known: bool) -> None:
        if options.keep_connections:
            self._take_out()
        if (wanted := self._wanted(options)) is None:
            return  # what is there names a tunnel that has gone: nobody's TCP leaves until the next one came
        if is_known:
            kernel.load(self._nft, guard.render(wanted))
        else:
            kernel.load_first(self._nft, guard.render_first(wanted), guard.render(wanted))

    def _compare(self, options: Options) -> list[str]:
        wanted = self._wanted(options)
        listing: list[dict[str, Any]] = []
        if self._unusable:
            return []
        for family in ("inet", "netdev"):
            text = kernel.listing(self._nft, family, guard.TABLE)
            listing += json.loads(text)["nftables"] if text else []
        if wanted is None:
            return [f"table {guard.TABLE} is not for this pod"] if listing and options.keep_connections else []
        return guard.differences(wanted, listing)

    def _take_out(self) -> None:
        if not self._unusable:
            kernel.load(self._nft, guard.REMOVAL if self._frames else guard.REMOVAL_WITHOUT_FRAMES)

    def _wanted(self, options: Options) -> Guard | None:
        tunnels = tuple(group for group in self._tunnels if groups.exists(group))
        if self._unusable or not tunnels or options.keep_connections:
            return None
        devices = tuple(look.devices()) if self._frames else ()
        with suppress(NoGroup):
            tunnels = (*tunnels, *([groups.of_path(self._listeners)] if self._listeners else []))
        return Guard(groups.root(), tunnels, devices, options.ingress_mode, options)

    # On disk ---------------------------------------------------------------------------------------------------------

    def _load(self) -> list[Group]:
        try:
            known = [Group(**entry) for entry in json.loads(self._memory.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []
        return [group for group in known if groups.exists(group)]

    def _save(self) -> None:
        aside = self._memory.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps([asdict(group) for group in self._tunnels]), encoding="utf-8")
            aside.replace(self._memory)
        except OSError as error:
            _log.warning("the tunnels' control groups are not kept", path=str(self._memory), why=error.strerror)


def _try() -> tuple[str, bool, str]:
    """Where nft is, whether frames can be watched, and why nothing can."""
    try:
        nft, root = kernel.find_nft(), groups.root()
    except MeshError as why:
        return "", False, str(why)

    def load(devices: tuple[str, ...]) -> str:
        try:
            netns.in_scratch(lambda: kernel.load(nft, guard.render(Guard(root, (), devices))))
        except (MeshError, OSError) as why:
            return str(why)
        return ""

    if not load(("lo",)):
        return nft, True, ""
    return nft, False, load(())
