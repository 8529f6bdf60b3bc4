"""What a host in a document means: short names, wildcards, which service of several, and who may see what. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from controlplane.objects import KubernetesService, Resource, ServiceEntry
from controlplane.translate.identical import differing
from controlplane.translate.inventory import Inventory
from mesh.model import HOSTNAME_SUFFIX, Service, World


def fqdn(host: str, namespace: str) -> str:
    """A name without a dot is a service of the document's own namespace."""
    return host.lower() if "." in host or host == "*" else f"{host}.{namespace}.{HOSTNAME_SUFFIX}".lower()


def matches(pattern: str, host: str) -> bool:
    """Whether `host` is among the names of `pattern`: itself, `*`, or `*.suffix`."""
    return pattern in (host, "*") or (pattern.startswith("*") and host.endswith(pattern[1:]))


def specificity(pattern: str) -> tuple[bool, int]:
    """The greater the closer: a name before any wildcard, a long wildcard before a short one."""
    return not pattern.startswith("*"), len(pattern)


def intersection(one: str, other: str) -> str | None:
    """The narrower of two patterns that have names in common."""
    if matches(one, other):
        return other
    return one if matches(other, one) else None


def exported(export_to: Sequence[str], own: str, to: str) -> bool:
    """`export_to`: as a document says, or its default; nothing is everybody."""
    if not export_to or "*" in export_to:
        return True
    return to in export_to or ("." in export_to and to == own)


def by_age(resources: Iterable[Resource]) -> list[Resource]:
    """The oldest first: it wins."""
    return sorted(resources, key=lambda each: each.meta.age_order)


class Hosts:
    """Services by host name."""

    def __init__(self, inventory: Inventory, world: World) -> None:
        self._services = world.services
        self._by_host: dict[str, list[Service]] = defaultdict(list)
        for service in world.services.values():
            self._by_host[service.hostname.lower()].append(service)
        self._wildcards = sorted(
            (each for each in self._by_host if each.startswith("*")), key=specificity, reverse=True
        )
        self.entries = bool(inventory.service_entries)
        self._offers: dict[str, KubernetesService | ServiceEntry] = {}
        for key, about in _offers(inventory):
            self._offers.setdefault(key, about)

    @property
    def wild(self) -> bool:
        """Whether a host may mean a service of another name."""
        return bool(self._wildcards)

    def differing(self, other: Hosts) -> set[str]:
        """Names of services that are not the same objects there, or not of the same documents."""
        keys = differing(self._services, other._services) | differing(self._offers, other._offers)
        return {key.partition("/")[2].lower() for key in keys}

    def find(self, host: str, namespace: str) -> Service | None:
        """As seen from a namespace: its own service of that name first, then Kubernetes', then the first."""
        return self.named(fqdn(host, namespace), namespace)

    def named(self, name: str, namespace: str) -> Service | None:
        """As `find`, of a full name."""
        listed = self._by_host.get(name, ())
        if len(listed) == 1 and not listed[0].namespace_only:
            return listed[0]
        found = self._pick(listed, namespace)
        for pattern in self._wildcards if not found else ():
            if matches(pattern, name):
                return self._pick(self._by_host[pattern], namespace)
        return found

    def _pick(self, services: Iterable[Service], namespace: str) -> Service | None:
        visible = [each for each in services if not each.namespace_only or each.namespace == namespace]
        return min(visible, key=lambda each: (each.namespace != namespace, not each.canonical, each.key), default=None)

    def service(self, key: str) -> Service | None:
        return self._services.get(key)

    def of_entry(self, namespace: str, name: str) -> list[str]:
        """The keys of a ServiceEntry's services."""
        return [key for key, about in self._offers.items() if _is(about, namespace, name)]

    def entry(self, key: str) -> ServiceEntry | None:
        found = self._offers.get(key)
        return found if isinstance(found, ServiceEntry) else None

    def named_port(self, service: Service, name: str) -> int:
        """0: it has none of that name."""
        about = self._offers.get(service.key)
        return next((port.number for port in about.ports if port.name == name), 0) if about else 0

    def port(self, service: Service, wanted: int, asked: int = 0) -> int | None:
        """A destination's port: the one it names, else the only one, else the one that the client asked for (`asked`;
        0: whichever that is). None: there is no such port."""
        numbers = [port.service_port for port in service.ports]
        if wanted:
            return wanted if wanted in numbers or not numbers else None
        if len(numbers) == 1:
            return numbers[0]
        return asked if asked in numbers or not asked else None


def _offers(inventory: Inventory) -> Iterator[tuple[str, KubernetesService | ServiceEntry]]:
    for service in inventory.services:
        yield f"{service.meta.namespace}/{service.meta.name}.{service.meta.namespace}.{HOSTNAME_SUFFIX}", service
    for entry in inventory.service_entries:
        for host in entry.hosts:
            yield f"{entry.meta.namespace}/{host}", entry


def _is(about: KubernetesService | ServiceEntry, namespace: str, name: str) -> bool:
    return isinstance(about, ServiceEntry) and (about.meta.namespace, about.meta.name) == (namespace, name)
