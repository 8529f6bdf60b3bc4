"""Gateway objects: who goes through which waypoint, and how other networks are reached. Pure.

Labels and annotations are Istio's. A waypoint that is named and does not exist is not left out, as istiod does, but
handed on: the tunnels then refuse, where istiod's would go round it and its policies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from controlplane.objects import KubernetesGateway, KubernetesService, Labels, Meta, Namespace, ServicePort
from mesh.model import HOSTNAME_SUFFIX, ApplicationTunnel, AppProtocol, Gateway, IPFamilies

NETWORK: Final = "topology.istio.io/network"
GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
GATEWAY_ACCOUNT: Final = "gateway.istio.io/service-account"
GATEWAY_TRUST_DOMAIN: Final = "gateway.istio.io/trust-domain"
_USE: Final = "istio.io/use-waypoint"
_CANARY: Final = "istio.io/use-waypoint-canary"
_CANARY_WEIGHT: Final = "istio.io/use-waypoint-canary-weight"
_FOR: Final = "istio.io/waypoint-for"
_BINDING: Final = "ambient.istio.io/waypoint-inbound-binding"
_NAME_LABELS: Final = ("gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name")
_REMOTE: Final = "istio-remote"
WAYPOINT: Final = "istio-waypoint"
_PROXY: Final = re.compile(r"PROXY(?:/(\d{1,5}))?")

Weighted = tuple[tuple[Gateway, int], ...]


class Gateways:
    """`network`: our own."""

    def __init__(self, gateways: list[KubernetesGateway], network: str) -> None:
        self._all = tuple(gateways)
        self._network = network
        self._by_name = {(each.meta.namespace, each.meta.name): each for each in gateways}
        self.remote = [each for each in gateways if each.gateway_class == _REMOTE and each.meta.labels.get(NETWORK)]
        self._by_network = {each.meta.labels[NETWORK]: each for each in reversed(self.remote) if each.addresses}

    def services(self, written: Iterable[KubernetesService]) -> list[KubernetesService]:
        """What a waypoint is reached by, unless somebody wrote it: its pods, at the port of its Gateway. No address of
        its own is needed, since tunnels look it up by name."""
        if not any(each.gateway_class == WAYPOINT for each in self._all):
            return []
        names = {(each.meta.namespace, each.meta.name) for each in written}
        found = []
        for (namespace, name), gateway in self._by_name.items():
            if gateway.gateway_class == WAYPOINT and (namespace, name) not in names:
                found.append(_service(namespace, name, gateway.port))
        return found

    def same_as(self, other: Gateways) -> bool:
        return self._all == other._all

    def of_network(self, network: str, own: str) -> Gateway | None:
        """None also for the own one."""
        found = self._by_network.get(network) if network != own else None
        return Gateway(network=network, address=found.addresses[0], port=found.port) if found else None

    def of_service(self, about: Meta, namespace: Namespace | None) -> tuple[Gateway | None, Weighted]:
        """Its waypoint, and the shares of that and a canary, if there is one."""
        if self._is_gateways_own(about):
            return None, ()
        primary = self._named(_USE, about, about.labels, namespace)
        if not primary or self._serves(primary) not in ("service", "all"):
            return None, ()
        waypoint = self._place(primary)
        canary = self._named(_CANARY, about, about.labels, namespace)
        share = about.annotations.get(_CANARY_WEIGHT, "")
        if not canary or not share.isdecimal() or int(share) > 100:
            return waypoint, ()
        return waypoint, ((waypoint, 100 - int(share)), (self._place(canary), int(share)))

    def of_workload(self, about: Meta, labels: Labels, namespace: Namespace | None) -> Gateway | None:
        if self._is_gateways_own(about):
            return None
        found = self._named(_USE, about, labels, namespace)
        if not found:
            return None
        # A missing one serves nothing, so only who asks for it himself is kept from going without.
        wanted = self._serves(found) in ("workload", "all") or (found not in self._by_name and bool(labels.get(_USE)))
        return self._place(found) if wanted else None

    def application_tunnel(self, about: Meta) -> ApplicationTunnel | None:
        """A gateway's own pod may want connections with a PROXY header (Istio's "sandwich")."""
        name = next((about.labels[label] for label in _NAME_LABELS if label in about.labels), "")
        gateway = self._by_name.get((about.namespace, name))
        found = _PROXY.fullmatch(gateway.meta.annotations.get(_BINDING, "")) if gateway else None
        return ApplicationTunnel(proxy=True, port=int(found[1] or 0)) if found else None

    def _is_gateways_own(self, about: Meta) -> bool:
        """It would go through itself."""
        return any(label in about.labels for label in _NAME_LABELS)

    def _named(self, label: str, about: Meta, labels: Labels, namespace: Namespace | None) -> tuple[str, str] | None:
        """Namespace and name, as the object says, else its namespace."""
        for said in (labels, namespace.meta.labels if namespace else {}):
            if name := said.get(label, ""):
                return None if name == "none" else (said.get(f"{label}-namespace", about.namespace), name)
        return None

    def _serves(self, name: tuple[str, str]) -> str:
        found = self._by_name.get(name)
        return found.meta.labels.get(_FOR, "service") if found else "service"

    def _place(self, name: tuple[str, str]) -> Gateway:
        found = self._by_name.get(name)
        port = found.port if found else 15008
        if found and found.addresses and not found.hostnames:
            return Gateway(network=self._network, address=found.addresses[0], port=port)
        hostname = found.hostnames[0] if found and found.hostnames else f"{name[1]}.{name[0]}.{HOSTNAME_SUFFIX}"
        return _by_name(name[0], hostname, port)


@lru_cache(maxsize=1 << 12)
def _by_name(namespace: str, hostname: str, port: int) -> Gateway:
    """The same object for all who use it: they are told apart by a glance."""
    return Gateway(namespace=namespace, hostname=hostname, port=port)


@lru_cache(maxsize=1 << 12)
def _service(namespace: str, name: str, port: int) -> KubernetesService:
    """The same object for the same waypoint: what was made of it stays, too."""
    label = _NAME_LABELS[0]
    return KubernetesService(
        meta=Meta(name, namespace, labels={label: name}),
        selector={label: name},
        cluster_ips=(),
        ports=(ServicePort("mesh", port, port, AppProtocol.UNKNOWN),),
        load_balancing=None,
        ip_families=IPFamilies.AUTOMATIC,
        external_name=False,
    )
