"""All objects in force, sorted by kind and indexed the way that the translation asks for them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from controlplane.objects import (
    AuthorizationPolicy,
    EndpointSlice,
    KubernetesGateway,
    KubernetesService,
    Labels,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Pod,
    Resource,
    Secret,
    ServiceEntry,
    WorkloadEntry,
)

T = TypeVar("T")


def selects(selector: Labels, labels: Labels) -> bool:
    return all(labels.get(name) == value for name, value in selector.items())


class Shelves:
    """Objects in force by kind and namespace. What is on a shelf is in the order of names, and the shelf is replaced as
    a whole when something on it is: the same tuple says that nothing changed there."""

    def __init__(self, objects: Iterable[tuple[tuple[str, str, str], Object]] = ()) -> None:
        self._named: dict[tuple[str, str], dict[str, Object]] = {}
        self.all: dict[tuple[str, str], tuple[Object, ...]] = {}
        """In the order of kind and namespace."""
        self.put(dict(objects))

    def put(self, changes: Mapping[tuple[str, str, str], Object | None]) -> None:
        """By kind, namespace and name; None: it goes. Costs the shelves concerned."""
        touched: dict[tuple[str, str], bool] = {}
        for (kind, namespace, name), each in changes.items():
            place = kind, namespace
            shelf = self._named.setdefault(place, {})
            arrived = each is not None and name not in shelf
            touched[place] = touched.get(place, False) or arrived
            if each is None:
                shelf.pop(name, None)
            else:
                shelf[name] = each
        for place, arrived in touched.items():
            self._replace(place, arrived)
        if touched:
            self.all = {place: self.all[place] for place in sorted(self.all)}

    def _replace(self, place: tuple[str, str], arrived: bool) -> None:
        shelf = self._named[place]
        if not shelf:
            del self._named[place]
            self.all.pop(place, None)
            return
        if arrived:
            shelf = self._named[place] = {name: shelf[name] for name in sorted(shelf)}
        self.all[place] = tuple(shelf.values())


class Inventory:
    """Order is that of namespace and name, so that equal objects give an equal world."""

    def __init__(self, shelves: Shelves) -> None:
        self._by_kind: dict[type, list[Object]] = defaultdict(list)
        self._places = tuple(shelves.all)
        for shelf in shelves.all.values():
            self._by_kind[type(shelf[0])].extend(shelf)
        self.pods_of = {place[1]: _only(Pod, shelf) for place, shelf in shelves.all.items() if place[0] == "Pod"}
        """By namespace; the same tuple as long as none of it changes."""
        self.nodes_shelf = shelves.all.get(("Node", ""), ())
        self.namespaces = {each.meta.name: each for each in self._of(Namespace)}
        self.nodes = {each.meta.name: each for each in self._of(Node)}
        self.pods = self._of(Pod)
        self.services = self._of(KubernetesService)
        self.workload_entries = self._of(WorkloadEntry)
        self.gateways = self._of(KubernetesGateway)
        self.service_entries = self._of(ServiceEntry)
        self.authorization_policies = self._of(AuthorizationPolicy)
        self.peer_authentications = self._of(PeerAuthentication)
        self.secrets = self._of(Secret)
        self._resources: dict[str, list[Resource]] = defaultdict(list)
        for resource in self._of(Resource):
            self._resources[resource.kind].append(resource)
        self.slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
        for each in self._of(EndpointSlice):
            self.slices[each.meta.namespace, each.service].append(each)

    @property
    def used_namespaces(self) -> set[str]:
        """Those that an object lies in."""
        return {namespace for _, namespace in self._places}

    @property
    def resource_kinds(self) -> list[str]:
        return sorted(self._resources)

    def resources(self, kind: str) -> list[Resource]:
        """Documents of layer 7, by the name under which their kind goes in the configuration."""
        return self._resources.get(kind, [])

    def _of(self, kind: type[T]) -> list[T]:
        found: list[Any] = self._by_kind.get(kind, [])
        return found


def _only(kind: type[T], shelf: tuple[Object, ...]) -> tuple[T, ...]:
    """A shelf holds one type."""
    found: tuple[Any, ...] = shelf
    return found
