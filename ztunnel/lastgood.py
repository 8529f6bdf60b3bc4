"""The last good configuration on disk, so that a tunnel restarted without a control plane still serves.

One file for all types, replaced as a whole: addresses without the policies of the same moment would widen access.
Holds no certificates and no keys. What is in force is mirrored in memory packed, batch by batch as it came: some 30
bytes for each resource beside its name, where the resource itself would be 400. The file holds the same bundles, which
the core unpacks: between a start and the first connection nothing is parsed here.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from mesh import log
from mesh.delta import AUTHORIZATION_TYPE, REFUSED, Batch, Refusal
from mesh.errors import OperatorError
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
from ztunnel.dataplane import Bundle, Names, read_response

PACKED: Final = "zlib"
"""The version of an entry that is a bundle, without a name: of a file, whose entries were once the resources."""
_FASTEST: Final = 1
_TOGETHER: Final = 4096
_SMALL: Final = 256
"""Resources: fewer than a full part of a large offer has (`controlplane.push.PART`)."""
_SLACK: Final = 10_000
_TURN: Final = 1 << 15
"""Bytes, packed in some 0.15 ms."""
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

    def put_whole(self, packed: bytes, names: list[str]) -> None:
        """All the resources of a response as it came, whose names these are: nothing is put together again."""
        for name in filter(self.where.__contains__, names):
            self.drop(name)
        self.adopt(packed, names)
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
        number, self._next = self._next, self._next + 1
        for name, *_ in items:
            self.drop(name)
            self.where[name] = number
        self._bundles[number] = len(items), pack(self._response(items))
        self._live[number] = len(items)
        self._packed += len(items)

    def _response(self, items: Iterable[Item]) -> bytes:
        message = DeltaDiscoveryResponse()
        for name, version, data in items:
            entry = message.resources.add(name=name, version=version)
            entry.resource.type_url, entry.resource.value = self._type_url, data
        return message.SerializeToString()

    def _repack(self) -> None:
        fresh = Pile(self._type_url)
        for part in self._parts(dict(self.where), list(self._bundles)):
            fresh.put(part)
        self.__dict__.update(fresh.__dict__)

    def adopt(self, bundle: bytes, names: list[str]) -> None:
        """As `bundles` gave it; none of the names is here yet."""
        number, self._next = self._next, self._next + 1
        self.where.update(dict.fromkeys(names, number))
        self._bundles[number] = len(names), bundle
        self._live[number] = len(names)
        self._packed += len(names)

    def bundles(self) -> Iterator[bytes]:
        """What is in it now, nothing outdated and few; also on another thread, while more is put."""
        all_of = self._bundles.items()
        whole = {number: bundle for number, (count, bundle) in all_of if self._live[number] == count >= _SMALL}
        rest = self._parts(dict(self.where), [number for number in self._bundles if number not in whole])
        return chain(whole.values(), (pack(self._response(items)) for items in _joined(rest)))

    def _parts(self, where: dict[str, int], numbers: Iterable[int]) -> Iterator[list[Item]]:
        """Read as they were when they came: what was taken then is taken now."""
        chosen = [(number, self._bundles[number][1]) for number in numbers]
        typed = DeltaDiscoveryResponse(type_url=self._type_url).SerializeToString()  # of two the last one counts

        def unpacked() -> Iterator[list[Item]]:
            for number, bundle in chosen:
                kept = read_response(zlib.decompress(bundle) + typed).upserts
                yield [item for item in kept if where.get(item[0]) == number]

        return unpacked()


def _joined(parts: Iterable[list[Item]]) -> Iterator[list[Item]]:
    together = list[Item]()
    for part in parts:
        together += part
        if len(together) >= _TOGETHER:
            yield together
            together = []
    if together:
        yield together


async def _packed(response: bytes, rests: bool) -> bytes:
    return pack(response) if len(response) <= _TURN else await asyncio.to_thread(pack, response, rests)


def pack(response: bytes, rests: bool = False) -> bytes:
    """`rests`: in turns of a fraction of a millisecond; others may have the processor for twice as long after each."""
    if not rests:
        return zlib.compress(response, _FASTEST)
    packer, packed = zlib.compressobj(_FASTEST), list[bytes]()
    for at in range(0, len(response), _TURN):
        began = time.thread_time()
        packed.append(packer.compress(response[at : at + _TURN]))
        time.sleep(2 * (time.thread_time() - began))
    return b"".join([*packed, packer.flush()])


class LastGood:
    """What is in force, mirrored in `directory`. `debounce_s`: how long changes are collected before a write."""

    def __init__(self, directory: Path, debounce_s: float = 2.0) -> None:
        self._path = directory / "ztunnel-resources.binpb"
        self._debounce_s = debounce_s
        self._piles: dict[str, Pile] = {}
        self._refused: set[str] = set()
        """Policies that are kept only because they were refused."""
        self._changed = asyncio.Event()

    def load(self) -> list[Bundle]:
        """Empty when nothing usable is there. Raises OperatorError: it cannot be read."""
        stored = DeltaDiscoveryResponse()
        try:
            stored.ParseFromString(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OperatorError(f"{self._path}: {error.strerror}", where="NODEMESH_STATE_DIR") from None
        except DecodeError:
            self.damaged("not a message of this type")
            return []
        if any(entry.name for entry in stored.resources):
            return _of_old(stored)
        return [(entry.resource.type_url, entry.resource.value) for entry in stored.resources]

    def damaged(self, why: str) -> None:
        _log.warning("stored configuration is damaged and not used", path=str(self._path), why=why)

    def adopt(self, bundles: Sequence[Bundle], names: Sequence[Names]) -> None:
        """What `load` gave is in force."""
        for (url, packed), (its_names, versions) in zip(bundles, names, strict=True):
            self._pile(url).adopt(packed, its_names)
            if url == AUTHORIZATION_TYPE:
                of = zip(its_names, versions, strict=True)
                self._refused.update(name for name, version in of if version == REFUSED)

    def _pile(self, type_url: str) -> Pile:
        return self._piles.setdefault(type_url, Pile(type_url))

    async def record(self, batch: Batch, refused: list[Refusal], rests: bool = False) -> None:
        """A batch took effect, except for what was refused. Written only after `changed`. `rests`: see `pack`.

        A refused policy without an older version is kept as well, as `REFUSED`: what it closed stays closed.
        """
        kept_out = {name for name, _ in refused}
        taken = [item for item in batch.upserts if item[0] not in kept_out]
        as_it_came = batch.whole and not kept_out and 0 < len(taken) <= _TOGETHER
        packed = await _packed(batch.whole, rests) if as_it_came else b""
        pile = self._pile(batch.type_url)
        for name in batch.removed:
            pile.drop(name)
            self._refused.discard(name)
        if as_it_came:
            pile.put_whole(packed, [name for name, *_ in taken])
        else:
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
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._debounce_s)
            await self.flush()

    async def flush(self) -> None:
        if self._changed.is_set():
            self._changed.clear()
            await asyncio.to_thread(self._write, [(url, pile.bundles()) for url, pile in self._piles.items()])

    def _write(self, piles: list[tuple[str, Iterator[bytes]]]) -> None:
        """A disk that fails costs the next start its head start, nothing else."""
        parts = (_entry(url, bundle) for url, bundles in piles for bundle in bundles)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, parts)
        except OSError as error:
            _log.warning("configuration not stored", path=str(self._path), why=error.strerror)


def _entry(type_url: str, bundle: bytes) -> bytes:
    message = DeltaDiscoveryResponse()
    entry = message.resources.add(version=PACKED)
    entry.resource.type_url, entry.resource.value = type_url, bundle
    return message.SerializeToString()


def _of_old(stored: DeltaDiscoveryResponse) -> list[Bundle]:
    piles: dict[str, Pile] = {}
    for url in {entry.resource.type_url for entry in stored.resources}:
        pile = piles.setdefault(url, Pile(url))
        its = (each for each in stored.resources if each.resource.type_url == url)
        pile.put((each.name, each.version, each.resource.value) for each in its)
    return [(url, bundle) for url, pile in piles.items() for bundle in pile.bundles()]


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
