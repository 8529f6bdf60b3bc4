"""Names and small pieces that all of Envoy's resources share. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from controlplane.l7.routes import Compare, HeaderChanges, NamedText, Target, Text
from mesh.envoy import TYPE

Json = dict[str, Any]

ADS: Final[Json] = {"ads": {}, "resource_api_version": "V3"}
HBONE_PORT: Final = 15008
# Listeners.
TERMINATE: Final = "hbone"
ORIGINATE: Final = "originate"
# Route tables and clusters.
CONNECT: Final = "connect"
TUNNELS: Final = "tunnels"
# Filter state: who is at the other end of the tunnel, who are we, what its tunnel said of it.
SOURCE: Final = "nodemesh.source"
OWN: Final = "nodemesh.own"
BAGGAGE: Final = "nodemesh.baggage"
HASHABLE: Final = "envoy.hashable_string"  # `envoy.string` would let one client use another's tunnel
# Endpoint metadata.
ORIGINAL_DST: Final = "envoy.filters.listener.original_dst"
IDENTITY: Final = "nodemesh.identity"
LABELS: Final = "nodemesh"
# Clusters of the bootstrap (`waypoint/bootstrap.py`).
CONTROL_CLUSTER: Final = "controlplane"
IDENTITY_CLUSTER: Final = "identity"


def typed(name: str, **fields: Any) -> Json:
    """An Any of `envoy.NAME`."""
    return {"@type": f"{TYPE}envoy.{name}", **fields}


def extension(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": typed(kind, **fields)}


def outbound(target: Target) -> str:
    """The cluster's name."""
    return f"out|{target.port}|{target.subset}|{target.service}"


def served(service: str, port: int) -> str:
    """The internal listener's and its route table's name."""
    return f"{service}|{port}"


def to_internal(listener: str) -> str:
    """The cluster that leads to an internal listener."""
    return f"to|{listener}"


def seconds(value: float) -> str:
    """A Duration."""
    text = f"{value:.9f}".rstrip("0").rstrip(".")
    return f"{text}s"


def percent(value: float) -> Json:
    return {"numerator": round(value * 10_000), "denominator": "MILLION"}


def fraction(value: float) -> Json:
    """Of a RuntimeFractionalPercent."""
    return {"default_value": percent(value)}


def matcher(text: Text, before: str = "", after: str = "") -> Json:
    """A StringMatcher for `before` + text + `after`; what stands around is literal."""
    value = text.value
    match text.how:
        case Compare.EXACT:
            found: Json = {"exact": before + value + after}
        case Compare.PREFIX | Compare.SEGMENTS:
            found = {"prefix": before + value} if before + value else {"safe_regex": {"regex": ".*"}}
        case Compare.SUFFIX:
            found = {"suffix": value + after} if value + after else {"safe_regex": {"regex": ".*"}}
        case Compare.PRESENT:
            return {"safe_regex": {"regex": ".+"}}
        case _:
            regex = f"(?i){value}" if text.ignore_case else value
            return {"safe_regex": {"regex": re.escape(before) + regex + re.escape(after) if before or after else regex}}
    return {**found, "ignore_case": True} if text.ignore_case else found


def header_match(each: NamedText) -> Json:
    found: Json = {"name": each.name}
    if each.text.how is Compare.PRESENT:
        found["present_match"] = True
    else:
        found["string_match"] = matcher(each.text)
    if each.absent:
        found["invert_match"] = True
        if each.text.how is not Compare.PRESENT:
            found["treat_missing_header_as_empty"] = True
    return found


def header_fields(changes: HeaderChanges, kind: str) -> Json:
    """`kind`: request or response. Values are literal: Envoy's operator sign is doubled."""
    added = [_header(name, value, "OVERWRITE_IF_EXISTS_OR_ADD") for name, value in changes.set.items()]
    added += [_header(name, value, "APPEND_IF_EXISTS_OR_ADD") for name, value in changes.add.items()]
    found: Json = {}
    if added:
        found[f"{kind}_headers_to_add"] = added
    if changes.remove:
        found[f"{kind}_headers_to_remove"] = list(changes.remove)
    return found


def _header(name: str, value: str, action: str) -> Json:
    return {"header": {"key": name, "value": value.replace("%", "%%")}, "append_action": action}


def without_empty(fields: Mapping[str, Any]) -> Json:
    return {key: value for key, value in fields.items() if value not in (None, [], {}, "")}


def of_namespace(namespace: str) -> str:
    """An expression for the identities of a namespace, of whatever trust domain."""
    return f"spiffe://[^/]+/ns/{re.escape(namespace)}/sa/.+"


def filter_state(key: str, value: str, factory: str = "", shared: str = "ONCE") -> Json:
    """One entry of a set_filter_state filter."""
    entry: Json = {
        "object_key": key,
        "format_string": {"text_format_source": {"inline_string": value}},
        "shared_with_upstream": shared,
    }
    if factory:
        entry["factory_key"] = factory
    return entry


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def authority(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
