"""All objects in force, sorted by kind and indexed the way that the translation asks for them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
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


class Inventory:
    """Order is that of namespace and name, so that equal objects give an equal world."""

    def __init__(self, objects: Iterable[Object]) -> None:
        """`objects`: those of each kind in that order."""
        self._by_kind: dict[type, list[Object]] = defaultdict(list)
        for each in objects:
            self._by_kind[type(each)].append(each)
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
        """Those that an object lies in. O(objects)."""
        return {each.meta.namespace for kind in self._by_kind.values() for each in kind}

    @property
    def resource_kinds(self) -> list[str]:
        return sorted(self._resources)

    def resources(self, kind: str) -> list[Resource]:
        """Documents of layer 7, by the name under which their kind goes in the configuration."""
        return self._resources.get(kind, [])

    def _of(self, kind: type[T]) -> list[T]:
        found: list[Any] = self._by_kind.get(kind, [])
        return found
