"""The only module that crosses into Rust (door 4): opens the core, keeps its calls off the loop, hears its bell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mesh.delta import Received
from mesh.errors import LocalError, OperatorError, PeerError

Bundle = tuple[str, bytes]
"""Type URL, and resources of that type as `lastgood` packs them."""
Names = tuple[list[str], list[str]]
"""Of the resources of one bundle, and their versions."""


class Native(Protocol):
    """What this package uses of `ztunnel._core.Core`; see `_core.pyi` for the contracts."""

    def fileno(self) -> int: ...
    def take(self) -> list[tuple[str, str, str]]: ...
    def apply(
        self, type_url: str, upserts: list[tuple[str, bytes]], removed: list[str], more: bool = ...
    ) -> list[tuple[str, str]]: ...
    def restore(self, bundles: list[Bundle]) -> tuple[list[Names], list[tuple[str, str, str]]]: ...
    def enrol(
        self,
        uid: str,
        name: str,
        namespace: str,
        service_account: str,
        netns_fd: int,
        search: list[str] = ...,
        addresses: list[str] = ...,
        inherited: list[int] | None = ...,
    ) -> None: ...
    def listeners(self, uid: str) -> list[int]: ...
    def use_direct(self, maps: list[int]) -> None: ...
    def withdraw(self, uid: str) -> None: ...
    def pods(self) -> list[str]: ...
    def missing_policies(self) -> list[tuple[str, str, str]]: ...
    def new_key(self, identity: str) -> bytes: ...
    def install_chain(self, identity: str, chain: list[str]) -> tuple[float, float]: ...
    def install_svid(self, identity: str, key: bytes, chain: list[str]) -> tuple[float, float]: ...
    def set_trust(self, document: bytes) -> None: ...
    def keys(self) -> tuple[list[str], int]: ...
    def in_use(self) -> bool: ...
    def forget_absent(self) -> None: ...
    def certificate_failed(self, identity: str, why: str) -> None: ...
    def forget_identity(self, identity: str) -> None: ...
    def drain(self, deadline_s: float) -> None: ...
    def metrics(self) -> bytes: ...
    def dump(self) -> bytes: ...
    def explain(self, source: str, destination: str) -> bytes: ...
    def set_log_level(self, level: str, target: str = "") -> None: ...
    def take_spans(self) -> list[str]: ...
    def close(self) -> None: ...


class Applied(NamedTuple):
    """`refused`: (name, why) of each resource. `worked_s`: seconds of a processor."""

    refused: list[tuple[str, str]]
    worked_s: float


class PodGone(Exception):
    """The pod's network namespace no longer exists: forget the pod."""


class Damaged(Exception):
    """What was kept cannot be read."""


class Dataplane:
    """The core as asyncio sees it: what builds, binds or signs runs in a thread, the rest is quick and called directly.

    `namespace_gone` is the core's own exception class, so that no other module needs the extension.
    """

    def __init__(self, core: Native, namespace_gone: type[Exception]) -> None:
        self.core = core
        self._namespace_gone = namespace_gone

    async def apply(
        self, type_url: str, upserts: list[tuple[str, bytes]], removed: list[str], more: bool = False
    ) -> Applied:
        """`more` is to come before it is in force."""

        def measured() -> Applied:
            began = time.thread_time()
            refused = self.core.apply(type_url, upserts, removed, more)
            return Applied(refused, time.thread_time() - began)

        try:
            return await asyncio.to_thread(measured)
        except ValueError as error:
            raise LocalError(f"the core does not know the type {type_url}") from error

    async def restore(self, bundles: list[Bundle]) -> tuple[list[Names], list[tuple[str, str, str]]]:
        """The names in each bundle; (type URL, name, why) of each refused resource. Raises Damaged: nothing changed."""
        try:
            return await asyncio.to_thread(self.core.restore, bundles)
        except ValueError as error:
            raise Damaged(str(error)) from None

    async def enrol(
        self,
        uid: str,
        name: str,
        namespace: str,
        service_account: str,
        netns_fd: int,
        search: Sequence[str] = (),
        addresses: Sequence[str] = (),
        inherited: list[int] | None = None,
    ) -> None:
        """Raises PodGone, or whatever the core says of a pod that can be tried again."""
        about = (uid, name, namespace, service_account, netns_fd, list(search), list(addresses), inherited)
        try:
            await asyncio.to_thread(self.core.enrol, *about)
        except self._namespace_gone as error:
            raise PodGone(str(error) or "its network namespace is gone") from error

    async def withdraw(self, uid: str) -> None:
        await asyncio.to_thread(self.core.withdraw, uid)

    async def new_key(self, identity: str) -> str:
        """A certificate request, PEM. Raises ValueError."""
        return (await asyncio.to_thread(self.core.new_key, identity)).decode()

    async def install_chain(self, identity: str, chain: list[str]) -> tuple[float, float]:
        """(not_before, not_after), Unix seconds. Raises ValueError."""
        return await asyncio.to_thread(self.core.install_chain, identity, chain)

    async def install_svid(self, identity: str, key: bytes, chain: list[str]) -> tuple[float, float]:
        """The same for a key from outside, PKCS#8 DER."""
        return await asyncio.to_thread(self.core.install_svid, identity, key, chain)

    async def metrics(self) -> bytes:
        return await asyncio.to_thread(self.core.metrics)

    async def dump(self) -> bytes:
        return await asyncio.to_thread(self.core.dump)

    async def explain(self, source: str, destination: str) -> bytes:
        """Raises ValueError: a sentence about the question."""
        return await asyncio.to_thread(self.core.explain, source, destination)

    async def close(self) -> None:
        await asyncio.to_thread(self.core.close)

    def listen(self, handle: Callable[[str, str, str], None]) -> None:
        """`handle(kind, subject, detail)` for every event, on the running loop, until `stop_listening`."""

        def rung() -> None:
            for event in self.core.take():
                handle(*event)

        asyncio.get_running_loop().add_reader(self.core.fileno(), rung)

    def stop_listening(self) -> None:
        asyncio.get_running_loop().remove_reader(self.core.fileno())


def read_response(response: bytes) -> Received:
    """What a control plane has sent. Raises PeerError: it is damaged."""
    from ztunnel import _core

    try:
        return Received(*_core.read_response(response), response)
    except ValueError as error:
        raise PeerError(f"a response that cannot be read: it {error}") from None


def native_stacks(seconds: float, hertz: int) -> list[tuple[str, list[tuple[str, str, int]], int]]:
    """Where processor time goes. Blocks. Raises ValueError: not now."""
    from ztunnel import _core

    return _core.profile(seconds, hertz)


def open_core(config: bytes) -> Dataplane:
    """Starts the core's threads. Raises OperatorError: the extension is not built, or it refuses the configuration."""
    try:
        from ztunnel import _core
    except ImportError as error:
        raise OperatorError(f"the native core cannot be loaded ({error}); build it with `make setup`") from None
    try:
        return Dataplane(_core.Core(config), _core.NamespaceGone)
    except (ValueError, OSError) as error:
        raise OperatorError(f"the native core does not start: {error}") from None
