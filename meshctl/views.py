"""A tunnel's config dump as rows: the columns of `istioctl ztunnel-config`, so that habits carry over.

Pure. Reads the keys of Istio's /config_dump; what is absent shows as an empty or NA cell, never as an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

Row = list[str]
Dump = dict[str, Any]
Item = dict[str, Any]

WORKLOADS: Final = ("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL")
SERVICES: Final = ("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS")
POLICIES: Final = ("NAMESPACE", "POLICY NAME", "ACTION", "SCOPE")
CERTIFICATES: Final = (
    "CERTIFICATE NAME",
    "TYPE",
    "STATUS",
    "VALID CERT",
    "SERIAL NUMBER",
    "NOT AFTER",
    "NOT BEFORE",
)
CONNECTIONS: Final = ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL")


def items(dump: Dump, key: str, namespace: str = "") -> list[Item]:
    """One kind's entries by namespace and name; Istio writes lists, older versions a map by key."""
    found = dump.get(key) or []
    entries = list(found.values()) if isinstance(found, dict) else list(found)
    chosen = [entry for entry in entries if not namespace or entry.get("namespace") == namespace]
    return sorted(chosen, key=lambda entry: (entry.get("namespace", ""), entry.get("name", "")))


def workload_rows(workloads: Iterable[Item], dump: Dump) -> list[Row]:
    return [
        [
            w.get("namespace", ""),
            w.get("name", ""),
            ",".join(w.get("workloadIps") or []),
            w.get("node", ""),
            _waypoint(w, dump),
            w.get("protocol", "TCP"),
        ]
        for w in workloads
    ]


def service_rows(services: Iterable[Item], dump: Dump) -> list[Row]:
    healthy = {w.get("uid") for w in items(dump, "workloads") if w.get("status", "Healthy") == "Healthy"}
    return [
        [
            s.get("namespace", ""),
            s.get("name", ""),
            ",".join(vip.rpartition("/")[2] for vip in s.get("vips") or []),
            _waypoint(s, dump),
            _endpoints(s, healthy),
        ]
        for s in services
    ]


def policy_rows(policies: Iterable[Item]) -> list[Row]:
    return [[p.get("namespace", ""), p.get("name", ""), p.get("action", ""), p.get("scope", "")] for p in policies]


def certificate_rows(certificates: Iterable[Item], now: datetime) -> list[Row]:
    """`now` has a time zone. A root is shown once per identity, as Istio does."""
    rows: list[Row] = []
    for entry in certificates:
        name, state = entry.get("identity", ""), str(entry.get("state", "")).split(":")[0]
        kinds = zip(["Leaf"] + ["Intermediate"] * 8, entry.get("certChain") or [], strict=False)
        chain = [*kinds, *(("Root", root) for root in entry.get("rootCerts") or [])]
        rows += [[name, kind, state, *_certificate(cert, now)] for kind, cert in chain]
        if not chain:
            rows.append([name, "NA", state, "false", "NA", "NA", "NA"])
    return rows


def connection_rows(dump: Dump, *, direction: str = "", namespace: str = "", raw: bool = False) -> list[Row]:
    """`direction` inbound | outbound | "" for both. `raw`: addresses instead of names."""
    rows: list[Row] = []
    names = {} if raw else _names(dump)
    for uid, state in sorted((dump.get("workloadState") or {}).items()):
        info = state.get("info") or {}
        here, name = info.get("namespace", ""), info.get("name", "")
        if namespace and here != namespace:
            continue
        label = f"{name}.{here}" if name else uid
        connections = state.get("connections") or {}
        if direction != "outbound":
            rows += [
                _connection(label, "Inbound", c, "actualDst", "src", names) for c in connections.get("inbound") or []
            ]
        if direction != "inbound":
            rows += [
                _connection(label, "Outbound", c, "src", "actualDst", names) for c in connections.get("outbound") or []
            ]
    return rows


def _connection(label: str, direction: str, entry: Item, local: str, remote: str, names: dict[str, str]) -> Row:
    far, target = (_named(entry.get(key) or "", names) for key in (remote, "originalDst"))
    return [label, direction, entry.get(local, ""), far, target, entry.get("protocol", "")]


def _named(address: str, names: dict[str, str]) -> str:
    host, colon, port = address.rpartition(":")
    return f"{names[host]}{colon}{port}" if host in names else address


def _names(dump: Dump) -> dict[str, str]:
    """IP -> service hostname, or pod name with namespace."""
    pods = {
        ip: f"{w.get('name')}.{w.get('namespace')}"
        for w in items(dump, "workloads")
        for ip in w.get("workloadIps") or []
    }
    vips = {v.rpartition("/")[2]: str(s.get("hostname")) for s in items(dump, "services") for v in s.get("vips") or []}
    return pods | vips


def _waypoint(entry: Item, dump: Dump) -> str:
    """The waypoint's Service name when the tunnel knows it, else its address or hostname."""
    destination = (entry.get("waypoint") or {}).get("destination")
    if not destination:
        return "None"
    tail = str(destination).rpartition("/")[2]
    for service in items(dump, "services"):
        if destination in (service.get("vips") or []) or tail == service.get("hostname"):
            return str(service.get("name"))
    return tail


def _endpoints(service: Item, healthy: set[Any]) -> str:
    found = service.get("endpoints") or {}
    entries = list(found.values()) if isinstance(found, dict) else list(found)
    return f"{sum(e.get('workloadUid') in healthy for e in entries)}/{len(entries)}"


def _certificate(cert: Item, now: datetime) -> Row:
    not_after, not_before = cert.get("expirationTime"), cert.get("validFrom")
    valid = bool(not_after and not_before and _time(not_before) <= now < _time(not_after))
    serial = cert.get("serialNumber") or ""
    # Istio's dump has the serial number in decimal, its table in hexadecimal.
    shown = f"{int(serial):x}" if serial.isdecimal() else serial or "NA"
    return ["true" if valid else "false", shown, not_after or "NA", not_before or "NA"]


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
