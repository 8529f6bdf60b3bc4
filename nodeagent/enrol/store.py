"""Which pods are enrolled, on disk, so that an agent that was killed finds them again. Owns one file.

The file speaks of this boot only: namespaces do not outlive the kernel. It is written before a pod is touched, and
without fsync, because a power failure ends the pods as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from mesh import log
from mesh.errors import MeshError, OperatorError
from mesh.ids import Uid

_log: Final = log.get("store")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Member:
    """One enrolled pod. `identity` tells whether `netns` still names the namespace that was enrolled."""

    uid: Uid
    namespace: str
    name: str
    service_account: str
    container_id: str
    netns: str
    identity: str
    ips: tuple[str, ...]
    ingress_mode: bool
    dns_capture: bool = False
    search: tuple[str, ...] = ()
    """Search domains of its resolver besides the cluster's and the node's."""
    pod_uid: str = ""
    """Of the Pod object."""
    backend: str = "nft"
    """What captures it, for as long as it lives."""
    backend_why: str = ""
    was_running: bool = False
    """It ran outside the mesh before: connections from then are left alone."""
    excluded_inbound_ports: tuple[int, ...] = ()
    excluded_outbound_ports: tuple[int, ...] = ()
    excluded_outbound_ranges: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()


class StoreError(MeshError):
    """The file could not be written; what it held is still there."""


class Store:
    def __init__(self, directory: Path) -> None:
        """Makes `directory` (0700). Raises OperatorError."""
        self._path = directory / "enrolled.json"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise OperatorError(f"cannot be made: {error.strerror}", where=str(directory)) from None

    def load(self) -> list[Member]:
        """Nothing after a reboot or when the file cannot be understood: then the runtime starts every pod anew."""
        try:
            content = json.loads(self._path.read_bytes())
            if content["boot_id"] != _boot_id():
                return []
            return [_member(entry) for entry in content["members"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("the list of enrolled pods is unreadable", path=str(self._path), why=str(error))
            return []

    def save(self, members: Iterable[Member]) -> None:
        """Replaces the file as a whole. Raises StoreError."""
        content = {"boot_id": _boot_id(), "members": [asdict(member) for member in members]}
        temporary = self._path.with_suffix(".tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(content, file)
            temporary.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written: {error.strerror}") from None


def _member(entry: dict[str, Any]) -> Member:
    """An older agent's entry lacks what that agent did not do, which has a default."""
    known = {f.name: entry[f.name] for f in fields(Member) if f.default is MISSING or f.name in entry}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return Member(**values)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
