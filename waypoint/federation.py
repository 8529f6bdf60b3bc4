"""Whom else the proxy believes: the operator's bundles of other trust domains, one file each, as a tunnel's.

A file counts before what the control plane delivered. One that cannot be used leaves what it said before; one that is
gone takes its trust domain along. Files are looked at every 2 s.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh import log
from mesh.errors import OperatorError
from mesh.spiffe_bundle import read_bundle
from waypoint.identity import Bundles, Held

LOOK_S: Final = 2.0
_ENDINGS: Final = (".json", ".pem")
_log: Final = log.get("federation")


class Files:
    """`troubles`: by file, why it is not in force."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: Bundles = {}
        self.troubles: dict[str, str] = {}

    def read(self) -> Bundles:
        """By trust domain, DER."""
        before, self.troubles = self.troubles, {}
        try:
            paths = sorted(each for each in self._directory.iterdir() if each.suffix in _ENDINGS)
        except OSError as error:
            self.troubles[str(self._directory)] = error.strerror or str(error)
        else:
            found: Bundles = {}
            for path in paths:
                self._read_one(path, found)
            self._known = found
        for where, why in self.troubles.items():
            if before.get(where) != why:
                _log.error("trust is not as configured", where=where, why=why)
        return self._known

    def _read_one(self, path: Path, found: Bundles) -> None:
        domain = path.name.removesuffix(path.suffix)
        if domain in found:
            self.troubles[str(path)] = f"is a second bundle of {domain}"
            return
        try:
            found[domain] = _ders(read_bundle(path.read_bytes(), path.name).pem)
        except (OSError, ValueError) as error:
            self.troubles[str(path)] = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if domain in self._known:
                found[domain] = self._known[domain]


def _ders(pem: str) -> list[bytes]:
    listed = x509.load_pem_x509_certificates(pem.encode()) if pem.strip() else []
    return [each.public_bytes(Encoding.DER) for each in listed]


def begin(directory: Path | None, held: Held) -> Files | None:
    """Before any connection. Raises OperatorError: a file that the operator named cannot be used."""
    if directory is None:
        return None
    files = Files(directory)
    held.federated(files.read())
    for where, why in files.troubles.items():
        raise OperatorError(why, where=where)
    return files


async def keep(files: Files | None, held: Held) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(LOOK_S)
        if files:
            held.federated(await asyncio.to_thread(files.read))
