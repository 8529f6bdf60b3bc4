"""What the plugin asks over door 1, parsed and checked against proto/enrol.schema.json. Owns no decision."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, Final

MAX_BODY_BYTES: Final = 64 * 1024
MAX_IPS: Final = 16

_CONTAINER_ID: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IFNAME: Final = re.compile(r"[^/: ]{1,15}")


@dataclass(frozen=True, slots=True)
class Attachment:
    """POST /cni/add and /cni/check: one container's namespace. `ips` without prefix length, as prevResult had them."""

    container_id: str
    netns: str
    ifname: str
    pod_name: str
    pod_namespace: str
    ips: tuple[str, ...]
    pod_uid: str = ""


def parse_attachment(body: bytes) -> Attachment:
    """Raises ValueError with a sentence."""
    given = _object(body)
    allowed = {"container_id", "netns", "ifname", "pod_name", "pod_namespace", "pod_uid", "ips"}
    if unknown := sorted(given.keys() - allowed):
        raise ValueError(f"unknown member {unknown[0]!r}")
    if not _IFNAME.fullmatch(ifname := _text(given, "ifname", 15)):
        raise ValueError(f"ifname {ifname!r} is not an interface's name")
    if not (netns := _text(given, "netns", 4096)).startswith("/"):
        raise ValueError("netns is not an absolute path")
    return Attachment(
        container_id=_container_id(given),
        netns=netns,
        ifname=ifname,
        pod_name=_text(given, "pod_name", 253),
        pod_namespace=_text(given, "pod_namespace", 63),
        ips=_ips(given.get("ips")),
        pod_uid=_text(given, "pod_uid", 253) if given.get("pod_uid", "") != "" else "",
    )


def parse_container_id(body: bytes) -> str:
    """POST /cni/del. Raises ValueError."""
    return _container_id(_object(body))


def parse_valid_attachments(body: bytes) -> frozenset[str]:
    """POST /cni/gc: the container ids that stay. Raises ValueError."""
    attachments = _object(body).get("valid_attachments")
    if not isinstance(attachments, list) or not all(isinstance(a, dict) for a in attachments):
        raise ValueError("valid_attachments is not a list of objects")
    return frozenset(_text(a, "container_id", 4096) for a in attachments if _text(a, "ifname", 4096))


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError("the body is not a JSON object")
    return given


def _text(given: dict[str, Any], name: str, longest: int) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise ValueError(f"{name} is not a string of 1 to {longest} characters")
    return value


def _container_id(given: dict[str, Any]) -> str:
    if not _CONTAINER_ID.fullmatch(value := _text(given, "container_id", 253)):
        raise ValueError("container_id is not a CNI container id")
    return value


def _ips(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or len(given) > MAX_IPS or not all(isinstance(ip, str) for ip in given):
        raise ValueError(f"ips is not a list of at most {MAX_IPS} strings")
    return tuple(str(ip_interface(ip).ip) for ip in given)
