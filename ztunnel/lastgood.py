"""The last good configuration on disk, so that a tunnel restarted without a control plane still serves.

One file for all types, replaced as a whole: addresses without the policies of the same moment would widen access.
Holds no certificates and no keys. What is in force is mirrored in memory packed, batch by batch as it came: some 30
bytes for each resource beside its name, where the resource itself would be 400.
"""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from mesh import log
from mesh.delta import AUTHORIZATION_TYPE, REFUSED, Batch, Refusal, Versioned
from mesh.errors import OperatorError
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse

_FASTEST: Final = 1
_TOGETHER: Final = 4096
_SLACK: Final = 10_000
_log: Final = log.get("lastgood")
Item = tuple[str, str, bytes]
"""Name, version, data."""


class Pile:
    """Resources of one type. `where`: name to the bundle that has its newest state."""

    def __init__(self, type_url: str) -> None:
        self._type_url = type_url
        self.where: dict[str, int] = {}
        self._bundles: dict[int, tuple[int, bytes]] = {}
        self._live: dict[int, int] = {}
        self._next = 0
        self._packed = 0
        """Resources in all bundles, the outdated ones included."""

    @property
    def size(self) -> int:
        """Bytes of everything packed."""
        return sum(len(bundle) for _, bundle in self._bundles.values())

    def put(self, items: Iterable[Item]) -> None:
        """What was there under the same names goes."""
        rest = iter(items)
        while some := list(islice(rest, _TOGETHER)):
            self._pack(some)
        if self._packed > 2 * len(self.where) + _SLACK:
            self._repack()

    def drop(self, name: str) -> None:
        number = self.where.pop(name, None)
        if number is not None:
            self._live[number] -= 1
            if not self._live[number]:
                self._packed -= self._bundles.pop(number)[0]
                del self._live[number]

    def _pack(self, items: list[Item]) -> None:
        message = DeltaDiscoveryResponse()
        for name, version, data in items:
            entry = message.resources.add(name=name, version=version)
            entry.resource.type_url, entry.resource.value = self._type_url, data
        number, self._next = self._next, self._next + 1
        for name, *_ in items:
            self.drop(name)
            self.where[name] = number
        self._bundles[number] = len(items), zlib.compress(message.SerializeToString(), _FASTEST)
        self._live[number] = len(items)
        self._packed += len(items)

    def _repack(self) -> None:
        fresh = Pile(self._type_url)
        for part in self.parts():
            fresh.put((each.name, each.version, each.resource.value) for each in part.resources)
        self.__dict__.update(fresh.__dict__)

    def parts(self) -> Iterator[DeltaDiscoveryResponse]:
        """What is in it now, a bundle at a time; also on another thread, while more is put."""
        where, bundles = dict(self.where), list(self._bundles.items())

        def unpacked() -> Iterator[DeltaDiscoveryResponse]:
            for number, (_, bundle) in bundles:
                message = DeltaDiscoveryResponse.FromString(zlib.decompress(bundle))
                newest = [each for each in message.resources if where.get(each.name) == number]
                yield DeltaDiscoveryResponse(resources=newest)

        return unpacked()


class LastGood:
    """What is in force, mirrored in `directory`. `debounce_s`: how long changes are collected before a write."""

    def __init__(self, directory: Path, debounce_s: float = 2.0) -> None:
        self._path = directory / "ztunnel-resources.binpb"
        self._debounce_s = debounce_s
        self._piles: dict[str, Pile] = {}
        self._refused: set[str] = set()
        """Policies that are kept only because they were refused."""
        self._loaded: Mapping[str, dict[str, Versioned]] = {}
        self._packing = threading.Lock()
        self._changed = asyncio.Event()

    def load(self) -> Mapping[str, dict[str, Versioned]]:
        """By type URL and name; empty when nothing usable is there. Raises OperatorError: it cannot be read."""
        stored = DeltaDiscoveryResponse()
        try:
            stored.ParseFromString(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OperatorError(f"{self._path}: {error.strerror}", where="NODEMESH_STATE_DIR") from None
        except DecodeError:
            _log.warning("stored configuration is damaged and not used", path=str(self._path))
            return {}
        found: dict[str, dict[str, Versioned]] = {}
        for entry in stored.resources:
            item = Versioned(entry.version, entry.resource.type_url, entry.resource.value)
            found.setdefault(item.type_url, {})[entry.name] = item
        policies = found.get(AUTHORIZATION_TYPE, {})
        self._refused = {name for name, item in policies.items() if item.version == REFUSED}
        self._loaded = found
        return found

    def _pack_loaded(self) -> None:
        """Not before somebody needs it: a start has better things to do first. From any thread."""
        with self._packing:
            loaded, self._loaded = self._loaded, {}
            for url, items in loaded.items():
                self._pile(url).put((name, item.version, item.data) for name, item in items.items())

    def _pile(self, type_url: str) -> Pile:
        return self._piles.setdefault(type_url, Pile(type_url))

    def record(self, batch: Batch, refused: list[Refusal]) -> None:
        """A batch took effect, except for what was refused. Written only after `changed`.

        A refused policy without an older version is kept as well, as `REFUSED`: what it closed stays closed.
        """
        self._pack_loaded()
        pile, kept_out = self._pile(batch.type_url), {name for name, _ in refused}
        for name in batch.removed:
            pile.drop(name)
            self._refused.discard(name)
        taken = [item for item in batch.upserts if item[0] not in kept_out]
        pile.put(taken)
        if batch.type_url == AUTHORIZATION_TYPE:
            self._refused.difference_update(name for name, *_ in taken)
            closing = [(name, REFUSED, data) for name, _, data in batch.upserts if self._closes(name, kept_out, pile)]
            pile.put(closing)
            self._refused.update(name for name, *_ in closing)

    def _closes(self, name: str, kept_out: set[str], pile: Pile) -> bool:
        return name in kept_out and (name not in pile.where or name in self._refused)

    def changed(self) -> None:
        """What is recorded is complete enough to be served from, and differs from what is on disk."""
        self._changed.set()

    async def run(self) -> None:
        """Writes for ever; what waits when it is cancelled is written by `flush`."""
        await asyncio.to_thread(self._pack_loaded)
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._debounce_s)
            await self.flush()

    async def flush(self) -> None:
        if self._changed.is_set():
            self._changed.clear()
            self._pack_loaded()
            await asyncio.to_thread(self._write, [pile.parts() for pile in self._piles.values()])

    def _write(self, piles: list[Iterator[DeltaDiscoveryResponse]]) -> None:
        """A disk that fails costs the next start its head start, nothing else."""
        parts = (part.SerializeToString() for pile in piles for part in pile)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, parts)
        except OSError as error:
            _log.warning("configuration not stored", path=str(self._path), why=error.strerror)


def replace_file(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Atomic also across a power cut: the file is on disk before it has its name. Of protobuf messages in a row one
    reads the same as of one that has all that they repeat."""
    aside = path.with_suffix(".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for part in (content,) if isinstance(content, bytes) else content:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
