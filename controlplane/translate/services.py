"""Service and ServiceEntry objects to services, and which port an endpoint serves each of their ports on. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from controlplane.objects import KubernetesService, Labels, Resolution, ServiceEntry, ServicePort
from controlplane.translate.inventory import Inventory, selects
from mesh.model import HOSTNAME_SUFFIX, LoadBalancing, LoadBalancingMode, Port, Service, Vip


@dataclass(frozen=True, slots=True, eq=False)
class Offered:
    """A service with what is needed to find its endpoints. `selector` empty: they are not found by label."""

    service: Service
    selector: Labels
    ports: tuple[ServicePort, ...]
    from_entry: bool

    def serve(self, named: Mapping[str, int], is_pod: bool = False) -> tuple[Port, ...]:
        """How an endpoint with these named ports serves it. A named target that it does not have is left out."""
        served = ((port, self._target(port, named, is_pod)) for port in self.ports)
        return tuple(Port(port.number, target, port.protocol) for port, target in served if target)

    def _target(self, port: ServicePort, named: Mapping[str, int], is_pod: bool) -> int:
        """A ServiceEntry has no named targets; an entry's endpoint, unlike a pod, answers to the port's own name."""
        if isinstance(port.target, str):
            return named.get(port.target, 0)
        return named.get(port.name, port.target) if self.from_entry and not is_pod else port.target


class Services:
    """Every service, found by the labels of its endpoints."""

    def __init__(self, inventory: Inventory, network: str) -> None:
        self.offered = [_kubernetes(each, network) for each in inventory.services if not each.external_name]
        self.of_entry: dict[tuple[str, str], list[Offered]] = {}
        for entry in inventory.service_entries:
            own = [_entry(entry, host, network) for host in entry.hosts]
            self.of_entry[entry.meta.namespace, entry.meta.name] = own
            self.offered += own
        self._selecting: dict[str, list[Offered]] = defaultdict(list)
        for each in self.offered:
            if each.selector:
                self._selecting[each.service.namespace].append(each)

    def of(
        self, namespace: str, labels: Labels, named: Mapping[str, int], is_pod: bool = False
    ) -> dict[str, tuple[Port, ...]]:
        """What an endpoint with these labels and named ports serves; by "namespace/hostname"."""
        chosen = (each for each in self._selecting.get(namespace, ()) if selects(each.selector, labels))
        return {each.service.key: each.serve(named, is_pod) for each in chosen}


def _kubernetes(service: KubernetesService, network: str) -> Offered:
    about = service.meta
    model = Service(
        name=about.name,
        namespace=about.namespace,
        hostname=f"{about.name}.{about.namespace}.{HOSTNAME_SUFFIX}",
        vips=tuple(Vip(network, ip_network(address)) for address in service.cluster_ips),
        ports=_ports(service.ports),
        load_balancing=service.load_balancing,
        ip_families=service.ip_families,
        canonical=True,
    )
    return Offered(model, service.selector, service.ports, from_entry=False)


def _entry(entry: ServiceEntry, host: str, network: str) -> Offered:
    passthrough = LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH)
    model = Service(
        name=entry.meta.name,
        namespace=entry.meta.namespace,
        hostname=host,
        vips=tuple(Vip(network, prefix) for prefix in entry.addresses),
        ports=_ports(entry.ports),
        subject_alt_names=entry.subject_alt_names,
        load_balancing=passthrough if entry.resolution is Resolution.NONE else None,
        namespace_only=entry.namespace_only,
    )
    return Offered(model, entry.selector or {}, entry.ports, from_entry=True)


def _ports(ports: tuple[ServicePort, ...]) -> tuple[Port, ...]:
    return tuple(Port(each.number, each.target if isinstance(each.target, int) else 0, each.protocol) for each in ports)
