"""Which control groups of this host are meant for the mesh: WorkloadEntry documents that name one. Reads files only.

A document that cannot be used is logged and left out; a file that is no YAML keeps what it last said, as with pods.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from mesh import log
from mesh.directory import UNKNOWN, Directory, Stamp, Stamps
from mesh.ids import Uid, make_uid
from mesh.membership import HOST_ADDRESSES, HOST_CGROUP, HOST_NODE

_log: Final = log.get("hosts")
_API: Final = "networking.istio.io/"
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class HostWorkload:
    """`cgroup`: from the root of cgroup v2. `addresses`: of this host, and of nobody else on it; IPv4 first."""

    uid: Uid
    namespace: str
    name: str
    service_account: str
    cgroup: str
    addresses: tuple[IPAddress, ...]


class HostDocuments:
    """A file is parsed again only when it changed."""

    def __init__(self, directory: Directory, cluster: str, node: str) -> None:
        self._directory, self._cluster, self._node = directory, cluster, node
        self._files: Stamps = {}
        self._parsed: dict[str, tuple[Stamp, list[HostWorkload]]] = {}
        self._listed: list[HostWorkload] = []

    async def read(self) -> list[HostWorkload]:
        """In the order of their uids; of two with one address or group, the first. One at a time."""
        files = self._directory.files()
        if files is not self._files:
            self._listed = await asyncio.to_thread(self._take, files)
            self._files = files
        return self._listed

    def _take(self, files: Stamps) -> list[HostWorkload]:
        found: dict[str, tuple[Stamp, list[HostWorkload]]] = {}
        for path, stamp in files.items():
            known = self._parsed.get(path, (UNKNOWN, []))
            found[path] = known if known[0] == stamp else (stamp, self._parse(path, known[1]))
        self._parsed = found
        return sorted((each for _, listed in found.values() for each in listed), key=lambda each: each.uid)

    def _parse(self, path: str, last_good: list[HostWorkload]) -> list[HostWorkload]:
        try:
            documents = list(yaml.load_all(Path(path).read_bytes(), Loader=_LOADER))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return last_good  # the control plane, or the pods' reader, says where the mistake is
        return [each for document in documents if (each := self._workload(path, document)) is not None]

    def _workload(self, path: str, document: Any) -> HostWorkload | None:
        if not isinstance(document, dict) or document.get("kind") != "WorkloadEntry":
            return None
        about, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
        notes = _mapping(about.get("annotations"))
        if not str(document.get("apiVersion")).startswith(_API) or HOST_CGROUP not in notes:
            return None
        if notes.get(HOST_NODE, self._node) != self._node:
            return None
        try:
            return self._made(about, spec, notes)
        except ValueError as error:
            _log.error("document not used", path=path, name=str(about.get("name")), why=str(error))
            return None

    def _made(self, about: dict[str, Any], spec: dict[str, Any], notes: dict[str, Any]) -> HostWorkload:
        namespace, name = str(about.get("namespace", "default")), str(about.get("name", ""))
        listed = [str(spec.get("address", "")), *str(notes.get(HOST_ADDRESSES, "")).split(",")]
        addresses = sorted({ip_address(text.strip()) for text in listed if text.strip()}, key=lambda ip: ip.version)
        if not addresses or len({each.version for each in addresses}) < len(addresses):
            raise ValueError("one address of each family at most, and one in all at least")
        return HostWorkload(
            uid=make_uid(self._cluster, "networking.istio.io", "WorkloadEntry", namespace, name),
            namespace=namespace,
            name=name,
            service_account=str(spec.get("serviceAccount") or "default"),
            cgroup=_group(str(notes[HOST_CGROUP])),
            addresses=tuple(addresses),
        )


def _group(text: str) -> str:
    """A path, or a slice's name: `web-api.slice` is below `web.slice`. Raises ValueError."""
    path = PurePosixPath(text.strip("/"))
    if ".." in path.parts or not path.parts:
        raise ValueError(f"annotation {HOST_CGROUP}: {text!r} is no control group")
    if len(path.parts) > 1 or path.suffix != ".slice":
        return str(path)
    words = path.stem.split("-")
    return "/".join("-".join(words[: n + 1]) + ".slice" for n in range(len(words)))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
