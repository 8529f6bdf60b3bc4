"""Addresses for hosts of ServiceEntries that name none, from the ranges that Istio uses for them: what an application
asks the mesh's DNS for, the tunnel can then tell from every other destination. Pure.

An address follows from namespace and host, so it is the same in every control plane and after every restart. Only where
two hosts want the same one does the younger object give way; which is younger `metadata.creationTimestamp` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from controlplane.objects import Resolution, ServiceEntry

V4: Final = IPv4Network("240.240.0.0/16")
V6: Final = IPv6Network("2001:2::/48")
ENABLED: Final = "networking.istio.io/enable-autoallocate-ip"
_USABLE: Final = V4.num_addresses - 2
"""Without the first and the last, which some stacks refuse."""

Addresses = tuple[IPv4Network | IPv6Network, ...]


def wants(entry: ServiceEntry) -> bool:
    """Whether its hosts get addresses: Istio's conditions. A host with a wildcard never does."""
    return (
        not entry.addresses
        and entry.resolution is not Resolution.NONE
        and entry.meta.labels.get(ENABLED, "true").lower() != "false"
    )


def allocate(entries: Iterable[ServiceEntry]) -> Mapping[tuple[str, str], Addresses]:
    """By namespace and host; both families. When all are taken, the youngest go without."""
    taken: set[int] = set()
    given: dict[tuple[str, str], Addresses] = {}
    for entry in sorted(filter(wants, entries), key=lambda each: each.meta.age_order):
        for host in entry.hosts:
            key = entry.meta.namespace, host
            if "*" in host or key in given or len(taken) == _USABLE:
                continue
            number = _first(*key)
            while number in taken:
                number = (number + 1) % _USABLE
            taken.add(number)
            given[key] = _addresses(number)
    return given


@lru_cache(maxsize=_USABLE)
def _first(namespace: str, host: str) -> int:
    return int.from_bytes(blake2b(f"{namespace}/{host}".encode(), digest_size=8).digest()) % _USABLE


@lru_cache(maxsize=_USABLE)
def _addresses(number: int) -> Addresses:
    return ip_network((int(V4.network_address) + number + 1, 32)), ip_network(
        (int(V6.network_address) + number + 1, 128)
    )
