"""What a pod's annotations say about its capture, in Istio's words. Pure.

The names of the exclusions are those of Istio's sidecars: ambient has none, and pods that come from there keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

_SIDECAR: Final = "traffic.sidecar.istio.io/"
INBOUND_PORTS: Final = f"{_SIDECAR}excludeInboundPorts"
OUTBOUND_PORTS: Final = f"{_SIDECAR}excludeOutboundPorts"
OUTBOUND_RANGES: Final = f"{_SIDECAR}excludeOutboundIPRanges"
VIRTUAL_INTERFACES: Final = "istio.io/reroute-virtual-interfaces"

_INTERFACE: Final = re.compile(r"[^/:\s\"]{1,15}")


@dataclass(frozen=True, slots=True)
class Exceptions:
    """TCP that passes by the tunnel, and interfaces whose traffic is the pod's outbound."""

    excluded_inbound_ports: tuple[int, ...] = ()
    excluded_outbound_ports: tuple[int, ...] = ()
    excluded_outbound_ranges: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()


def read(annotations: Mapping[str, str]) -> Exceptions:
    """Raises ValueError: a sentence that names the annotation. A pod whose wish is not understood does not start."""
    return Exceptions(
        tuple(_port(INBOUND_PORTS, each) for each in _list(annotations, INBOUND_PORTS)),
        tuple(_port(OUTBOUND_PORTS, each) for each in _list(annotations, OUTBOUND_PORTS)),
        tuple(_range(each) for each in _list(annotations, OUTBOUND_RANGES)),
        tuple(_interface(each) for each in _list(annotations, VIRTUAL_INTERFACES)),
    )


def _list(annotations: Mapping[str, str], name: str) -> list[str]:
    return [each for part in annotations.get(name, "").split(",") if (each := part.strip())]


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise ValueError(f"annotation {name}: {text!r} is not a port")
    return int(text)


def _range(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"annotation {OUTBOUND_RANGES}: {text!r} is not a range of addresses") from None


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"annotation {VIRTUAL_INTERFACES}: {text!r} is not an interface's name")
    return text
