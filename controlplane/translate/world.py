"""Objects in force to the world: the one place where everything meets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from controlplane.objects import Mesh, Object
from controlplane.translate.inventory import Inventory
from controlplane.translate.policies import Policies
from controlplane.translate.services import Services
from controlplane.translate.workloads import NETWORK, Workloads
from mesh.model import World


def build(objects: Iterable[Object], mesh: Mesh, version: int = 0) -> World:
    """O(pods x services of their namespace)."""
    inventory = Inventory(objects)
    root = inventory.namespaces.get(mesh.root_namespace)
    network = root.meta.labels.get(NETWORK, "") if root else ""
    services, policies = Services(inventory, network), Policies(inventory, mesh)
    workloads = Workloads(inventory, mesh, services, policies, network)
    return World(
        version=version,
        workloads=MappingProxyType({each.uid: each for each in workloads.all()}),
        services=MappingProxyType({each.service.key: each.service for each in services.offered}),
        policies=MappingProxyType(policies.all),
    )
