"""The last good configuration on disk, so that a tunnel restarted without a control plane still serves.

One file for all types, replaced as a whole: addresses without the policies of the same moment would widen access.
Holds no certificates and no keys.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.message import DecodeError

from mesh import log
from mesh.delta import AUTHORIZATION_TYPE, REFUSED, Batch, Refusal, Versioned
from mesh.errors import OperatorError
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse

_log = log.get("lastgood")
_NOTHING = Versioned(REFUSED, "", b"")


class LastGood:
    """What is in force, mirrored in `directory`. `debounce_s`: how long changes are collected before a write."""

    def __init__(self, directory: Path, debounce_s: float = 2.0) -> None:
        self._path = directory / "ztunnel-resources.binpb"
        self._debounce_s = debounce_s
        self._held: dict[tuple[str, str], Versioned] = {}
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
            self._held[item.type_url, entry.name] = item
        return found

    def record(self, batch: Batch, refused: list[Refusal]) -> None:
        """A batch took effect, except for what was refused. Written only after `changed`.

        A refused policy without an older version is kept as well, as `REFUSED`: what it closed stays closed.
        """
        kept_out = {name for name, _ in refused}
        for name in batch.removed:
            self._held.pop((batch.type_url, name), None)
        for name, version, data in batch.upserts:
            key = (batch.type_url, name)
            if name not in kept_out:
                self._held[key] = Versioned(version, batch.type_url, data)
            elif batch.type_url == AUTHORIZATION_TYPE and self._held.get(key, _NOTHING).version == REFUSED:
                self._held[key] = Versioned(REFUSED, batch.type_url, data)

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
            await asyncio.to_thread(self._write, dict(self._held))

    def _write(self, held: Mapping[tuple[str, str], Versioned]) -> None:
        """A disk that fails costs the next start its head start, nothing else."""
        stored = DeltaDiscoveryResponse()
        for (_, name), item in held.items():
            entry = stored.resources.add(name=name, version=item.version)
            entry.resource.type_url, entry.resource.value = item.type_url, item.data
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, stored.SerializeToString())
        except OSError as error:
            _log.warning("configuration not stored", path=str(self._path), why=error.strerror)


def replace_file(path: Path, content: bytes) -> None:
    """Atomic also across a power cut: the file is on disk before it has its name."""
    aside = path.with_suffix(".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
