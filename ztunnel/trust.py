"""Whom this node believes, as one document for the core: bundles, aliases, revocation lists.

A file of the operator counts before what the identity source delivered, and either before the roots that come with a
certificate. What was delivered is kept in the state directory for the next start. Files are looked at every 2 s.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mesh import log
from mesh.errors import OperatorError
from mesh.spiffe_bundle import Bundle, read_bundle
from ztunnel.lastgood import replace_file
from ztunnel.settings import Settings

LOOK_S: Final = 2.0
_ENDINGS: Final = (".json", ".pem")

_log = log.get("trust")


def _utcnow() -> datetime:
    return datetime.now(UTC)


class Trust:
    """`apply` takes the document (door 4, `set_trust`) and raises ValueError: then the last one stays in force."""

    def __init__(
        self, settings: Settings, apply: Callable[[bytes], None], now: Callable[[], datetime] = _utcnow
    ) -> None:
        self._settings = settings
        self._apply = apply
        self._now = now
        self._kept = settings.state_dir / "trust-bundles.json" if settings.state_dir else None
        self._delivered: dict[str, str] = {}
        self._delivered_crls: list[bytes] = []
        self._files: dict[str, Bundle] = {}
        self._in_force = b""
        self._complaints: dict[str, str] = {}

    def restore(self) -> None:
        """Into force, before any connection: what was delivered in an earlier life, and the files of now.

        Raises OperatorError: a file that the operator named cannot be used.
        """
        if self._kept and self._kept.exists():
            try:
                self._delivered = dict(json.loads(self._kept.read_bytes()))
            except (OSError, ValueError, TypeError):
                _log.warning("stored trust bundles are damaged and not used", path=str(self._kept))
        self.look()
        if self._complaints:
            where, why = next(iter(self._complaints.items()))
            raise OperatorError(why, where=where)

    def deliver(self, bundles: Mapping[str, str], crls: list[bytes]) -> None:
        """The whole state of the identity source: trust domain to PEM; revocation lists in DER."""
        if (self._delivered, self._delivered_crls) == (dict(bundles), crls):
            return
        before = self._delivered, self._delivered_crls
        self._delivered, self._delivered_crls = dict(bundles), crls
        self.look()
        if "delivered" in self._complaints:
            self._delivered, self._delivered_crls = before
            return
        _log.info("trust bundles delivered", domains=sorted(bundles))
        self._keep()

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self._read_files)
            self._put_into_force()

    def look(self) -> None:
        """Reads the files and puts what is new into force."""
        self._read_files()
        self._put_into_force()

    def own_roots(self) -> str:
        """PEM, for the control plane's own certificate, which the mesh's CA signs; "" when none were delivered."""
        return self._bundles().get(self._settings.trust_domain, "")

    def troubles(self) -> dict[str, str]:
        """By file: why it is not in force."""
        return dict(self._complaints)

    def _put_into_force(self) -> None:
        document = json.dumps(self._document(), sort_keys=True).encode()
        if document == self._in_force:
            return
        try:
            self._apply(document)
        except ValueError as error:
            self._complain("delivered", str(error))
        else:
            self._in_force = document
            self._complaints.pop("delivered", None)

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "bundles": self._bundles(),
            "aliases": list(self._settings.trust_domain_aliases),
            "longest_life_s": self._settings.svid_max_lifetime_s,
        }
        crls, why = self._revocations()
        if why:
            return document | {"crls_unusable": why}
        return document | {"crls": crls} if crls is not None else document

    def _bundles(self) -> dict[str, str]:
        return self._delivered | {domain: bundle.pem for domain, bundle in self._files.items()}

    def _revocations(self) -> tuple[str | None, str]:
        """(PEM or None for none configured, why there are none although there should be)."""
        path = self._settings.crl_path
        if path is None and not self._delivered_crls:
            self._complaints.pop("CRL_PATH", None)
            return None, ""
        from ztunnel import revocations  # cryptography is memory that only this wants

        try:
            text = revocations.read(self._delivered_crls, path, self._now())
        except OSError as error:
            return None, self._complain("CRL_PATH", f"{path}: {error.strerror}")
        except revocations.OutOfDate as error:
            return None, self._complain("CRL_PATH", str(error))
        except ValueError as error:
            return None, self._complain("CRL_PATH", f"{path}: {error}")
        self._complaints.pop("CRL_PATH", None)
        return text, ""

    def _read_files(self) -> None:
        """A file that cannot be used leaves what it said before; one that is gone takes its trust domain along."""
        directory = self._settings.trust_bundles
        if directory is None:
            return
        try:
            paths = sorted(each for each in directory.iterdir() if each.suffix in _ENDINGS)
        except OSError as error:
            self._complain(str(directory), error.strerror or str(error))
            return
        self._complaints = {w: c for w, c in self._complaints.items() if not w.startswith(str(directory))}
        found: dict[str, Bundle] = {}
        for path in paths:
            domain = path.name.removesuffix(path.suffix)
            bundle = self._read_file(path, domain)
            if domain in found:
                self._complain(str(path), f"is a second bundle of {domain}")
            elif bundle is not None:
                found[domain] = bundle
        self._files = found

    def _read_file(self, path: Path, domain: str) -> Bundle | None:
        before = self._files.get(domain)
        try:
            bundle = read_bundle(path.read_bytes(), path.name)
        except (OSError, ValueError) as error:
            self._complain(str(path), error.strerror or str(error) if isinstance(error, OSError) else str(error))
            return before
        if before and (before.sequence or 0) > (bundle.sequence or 0):
            self._complain(str(path), f"its spiffe_sequence went back from {before.sequence} to {bundle.sequence}")
            return before
        return bundle

    def _complain(self, where: str, why: str) -> str:
        if self._complaints.get(where) != why:
            self._complaints[where] = why
            _log.error("trust is not as configured", where=where, why=why)
        return why

    def _keep(self) -> None:
        if self._kept is None:
            return
        try:
            self._kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._kept, json.dumps(self._delivered).encode())
        except OSError as error:
            _log.warning("trust bundles not stored", path=str(self._kept), why=error.strerror)
