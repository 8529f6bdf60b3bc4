"""Names of things: parsed once at the door, trusted afterwards. Owns no registry of what exists.

Every parser here raises ValueError with a sentence; the caller knows whose fault it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NewType

MAX_SPIFFE_ID_BYTES: Final = 2048
MAX_TRUST_DOMAIN_BYTES: Final = 255
_MAX_SUBDOMAIN_BYTES: Final = 253

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")

Uid = NewType("Uid", str)
"""A workload's primary key, `cluster/group/kind/namespace/name[/section]`; opaque to everyone but `make_uid`."""


def make_uid(cluster: str, group: str, kind: str, namespace: str, name: str, section: str = "") -> Uid:
    """Istio's spelling, so that both control planes name one workload alike. `group` is "" for core kinds."""
    parts = [cluster, group, kind, namespace, name, *([section] if section else [])]
    return Uid("/".join(parts))


def pod_uid(cluster: str, namespace: str, name: str) -> Uid:
    """`pod_uid("Kubernetes", "shop", "web-1")` is `Kubernetes//Pod/shop/web-1`."""
    return make_uid(cluster, "", "Pod", namespace, name)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`: SPIFFE-ID specification, section 2, and Istio's profile.

    An instance is always valid: the constructor raises ValueError otherwise. Upper case is refused, never folded.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain) or len(self.trust_domain) > MAX_TRUST_DOMAIN_BYTES:
            raise ValueError(f"{self.trust_domain!r} is not a trust domain: 1 to 255 of a-z, 0-9, '.', '-' and '_'")
        if not _LABEL.fullmatch(self.namespace):
            raise ValueError(f"{self.namespace!r} is not a namespace: a DNS label is expected")
        if not _SUBDOMAIN.fullmatch(self.service_account) or len(self.service_account) > _MAX_SUBDOMAIN_BYTES:
            raise ValueError(f"{self.service_account!r} is not a service account: a DNS name is expected")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Raises ValueError unless `text` is a workload's identity, spelled exactly."""
        if len(text) > MAX_SPIFFE_ID_BYTES:
            raise ValueError(f"a SPIFFE ID has at most {MAX_SPIFFE_ID_BYTES} bytes")
        match text.split("/"):
            case ["spiffe:", "", trust_domain, "ns", namespace, "sa", service_account]:
                return cls(trust_domain, namespace, service_account)
        raise ValueError(f"{text!r} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")

    @classmethod
    def for_workload(cls, trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
        """Empty trust domain and service account mean `cluster.local` and `default`, as in `istio.workload`."""
        return cls(trust_domain or "cluster.local", namespace, service_account or "default")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An IP address within a network: networks may overlap, so an address alone names nobody."""

    network: str
    ip: IPv4Address | IPv6Address

    @classmethod
    def parse(cls, text: str) -> NetworkAddress:
        """`NETWORK/IP` or `IP` (network ""). Raises ValueError."""
        network, _, ip = text.rpartition("/")
        return cls(network, ip_address(ip))

    @classmethod
    def from_packed(cls, network: str, packed: bytes) -> NetworkAddress:
        """4 or 16 bytes, network byte order; an IPv4-mapped IPv6 address becomes IPv4. Raises ValueError."""
        ip = ip_address(packed)
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        return cls(network, mapped or ip)

    @property
    def packed(self) -> bytes:
        """4 or 16 bytes, network byte order."""
        return self.ip.packed

    def __str__(self) -> str:
        return f"{self.network}/{self.ip}"
