"""Service and ServiceEntry objects to services, and which port an endpoint serves each of their ports on. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network

from controlplane.objects import KubernetesService, Labels, Meta, Namespace, ServiceEntry, ServicePort
from controlplane.translate.allocation import allocate, wants
from controlplane.translate.gateways import Gateways
from controlplane.translate.inventory import Inventory, selects
from mesh.model import HOSTNAME_SUFFIX, IPNetwork, Port, Service, Vip, Workload


@dataclass(frozen=True, slots=True, eq=False)
class Offered:
    """A service with what is needed to find its endpoints. `selector` empty: they are not found by label."""

    service: Service
    selector: Labels
    ports: tuple[ServicePort, ...]
    from_entry: bool
    # For every endpoint, when no port's target has a name.
    _served: tuple[Port, ...] | None = None

    def serve(self, named: Mapping[str, int], is_pod: bool = False) -> tuple[Port, ...]:
        """How an endpoint with these named ports serves it. A named target that it does not have is left out."""
        if self._served is not None:
            return self._served
        served = ((port, self._target(port, named, is_pod)) for port in self.ports)
        return tuple(Port(port.number, target, port.protocol) for port, target in served if target)

    def _target(self, port: ServicePort, named: Mapping[str, int], is_pod: bool) -> int:
        """A ServiceEntry has no named targets; an entry's endpoint, unlike a pod, answers to the port's own name."""
        if isinstance(port.target, str):
            return named.get(port.target, 0)
        return named.get(port.name, port.target) if self.from_entry and not is_pod else port.target


# The object, its namespace, what was made of them.
_Made = tuple[KubernetesService | ServiceEntry, Namespace | None, list[Offered]]


class Services:
    """Every service, found by the labels of its endpoints. `before` spares what is the same as there."""

    def __init__(self, inventory: Inventory, network: str, gateways: Gateways, before: Services | None = None) -> None:
        self._network = network
        self._gateways = gateways
        self._namespaces = inventory.namespaces
        self._allocated = allocate(inventory.service_entries)
        self._made: dict[int, _Made] = {}
        same = before and before._network == network and before._gateways.same_as(gateways)
        known = before._made if before and same else {}
        self.offered: list[Offered] = []
        for each in (*inventory.services, *gateways.services(inventory.services)):
            if not each.external_name:
                self.offered += self._offered(each, known)
        self.of_entry: dict[tuple[str, str], list[Offered]] = {}
        for entry in inventory.service_entries:
            own = self._offered(entry, known)
            self.of_entry[entry.meta.namespace, entry.meta.name] = own
            self.offered += own
        # By one of the selector's labels, whichever: an endpoint that it selects has that one, too.
        self._selecting: dict[tuple[str, str, str], list[Offered]] = defaultdict(list)
        self.in_namespace: dict[str, list[Offered]] = defaultdict(list)
        for offered in self.offered:
            if offered.selector:
                self._selecting[offered.service.namespace, *next(iter(offered.selector.items()))].append(offered)
                self.in_namespace[offered.service.namespace].append(offered)

    def _offered(
        self,
        each: KubernetesService | ServiceEntry,
        known: Mapping[int, _Made],
    ) -> list[Offered]:
        """An object that is held cannot share its id with another."""
        namespace = self._namespaces.get(each.meta.namespace)
        same = known.get(id(each))
        if same and same[0] is each and same[1] is namespace and self._has_its_addresses(same[2]):
            made = same[2]
        elif isinstance(each, ServiceEntry):
            made = [self._through(each.meta, namespace, self._entry(each, host)) for host in each.hosts]
        else:
            made = [self._through(each.meta, namespace, _kubernetes(each, self._network))]
        self._made[id(each)] = each, namespace, made
        return made

    def _has_its_addresses(self, made: list[Offered]) -> bool:
        """Also when an older object has come that wants the same."""
        return not self._allocated or all(
            tuple(vip.prefix for vip in each.service.vips) == given
            for each in made
            if each.from_entry and (given := self._allocated.get((each.service.namespace, each.service.hostname)))
        )

    def _entry(self, entry: ServiceEntry, host: str) -> Offered:
        given = self._allocated.get((entry.meta.namespace, host), ()) if wants(entry) else ()
        return _entry(entry, host, entry.addresses or given, self._network)

    def _through(self, about: Meta, namespace: Namespace | None, offered: Offered) -> Offered:
        waypoint, weighted = self._gateways.of_service(about, namespace)
        if not waypoint:
            return offered
        return replace(offered, service=replace(offered.service, waypoint=waypoint, weighted_waypoints=weighted))

    def trusting(self, far: Iterable[Workload], trust_domain: str) -> dict[str, Service]:
        """By key. Endpoints behind another network's gateway cannot be told apart: the service says who they are."""
        all_services = {each.service.key: each.service for each in self.offered}
        named: dict[str, set[str]] = defaultdict(set)
        for each in far:
            for key in each.services:
                domain = each.trust_domain or trust_domain
                named[key].add(f"spiffe://{domain}/ns/{each.namespace}/sa/{each.service_account}")
        for key, identities in named.items():
            if service := all_services.get(key):
                more = sorted(identities.difference(service.subject_alt_names))
                all_services[key] = replace(service, subject_alt_names=(*service.subject_alt_names, *more))
        return all_services

    def of(
        self, namespace: str, labels: Labels, named: Mapping[str, int], is_pod: bool = False
    ) -> dict[str, tuple[Port, ...]]:
        """What an endpoint with these labels and named ports serves; by "namespace/hostname"."""
        candidates = (each for label in labels.items() for each in self._selecting.get((namespace, *label), ()))
        chosen = {each.service.key: each for each in candidates if selects(each.selector, labels)}
        return {key: chosen[key].serve(named, is_pod) for key in sorted(chosen)}


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
    by_number = all(isinstance(port.target, int) and port.target for port in service.ports)
    return Offered(model, service.selector, service.ports, False, model.ports if by_number else None)


def _entry(entry: ServiceEntry, host: str, addresses: Iterable[IPNetwork], network: str) -> Offered:
    model = Service(
        name=entry.meta.name,
        namespace=entry.meta.namespace,
        hostname=host,
        vips=tuple(Vip(network, prefix) for prefix in addresses),
        ports=_ports(entry.ports),
        subject_alt_names=entry.subject_alt_names,
        load_balancing=entry.load_balancing,
        namespace_only=entry.namespace_only,
    )
    return Offered(model, entry.selector or {}, entry.ports, from_entry=True)


def _ports(ports: tuple[ServicePort, ...]) -> tuple[Port, ...]:
    return tuple(Port(each.number, each.target if isinstance(each.target, int) else 0, each.protocol) for each in ports)
