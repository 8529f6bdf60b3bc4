"""The sandboxes that the runtime has made on this node, as libcni remembers them. Reads only.

libcni writes one file per attachment into its cache (libcni/api.go, `cniCacheV1`): container, namespace, CNI_ARGS and
the result with the addresses. So a pod that started without us, or outside the mesh, is found without a walk of /proc.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from nodeagent.enrol.requests import Attachment, parse_attachment

KIND: Final = "cniCacheV1"


class CniCache:
    """A file is read again only when it changed."""

    def __init__(self, directory: Path) -> None:
        """`directory`: libcni's cache directory, `results` below it."""
        self._results = directory / "results"
        self._read: dict[str, tuple[tuple[int, int], Attachment | None]] = {}

    def attachments(self) -> list[Attachment]:
        """Of pods; what cannot be understood is nobody's. Cost: one stat per file."""
        found: dict[str, tuple[tuple[int, int], Attachment | None]] = {}
        for path, version in self._files():
            known = self._read.get(path)
            found[path] = known if known is not None and known[0] == version else (version, _read(path))
        self._read = found
        return [attachment for _, attachment in found.values() if attachment is not None]

    def _files(self) -> list[tuple[str, tuple[int, int]]]:
        found = []
        try:
            for entry in os.scandir(self._results):
                status = entry.stat()
                found.append((entry.path, (status.st_mtime_ns, status.st_ino)))
        except OSError:
            return found  # there is none, or a pod went away meanwhile: asked again in a moment
        return found


def _read(path: str) -> Attachment | None:
    try:
        content = json.loads(Path(path).read_bytes())
        if content["kind"] != KIND:
            return None
        arguments = {str(key): str(value) for key, value in content.get("cniArgs") or []}
        return parse_attachment(json.dumps(_request(content, arguments)).encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _request(content: dict[str, Any], arguments: dict[str, str]) -> dict[str, Any]:
    return {
        "container_id": content["containerId"],
        "netns": content["netns"],
        "ifname": content["ifName"],
        "pod_name": arguments["K8S_POD_NAME"],
        "pod_namespace": arguments["K8S_POD_NAMESPACE"],
        "pod_uid": arguments.get("K8S_POD_UID", ""),
        "ips": [each["address"] for each in content["result"].get("ips") or []],
    }
