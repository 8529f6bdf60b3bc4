"""Objects in force to the world: the one place where everything meets. Pure."""

from __future__ import annotations

from types import MappingProxyType

from controlplane.l7.model import L7
from controlplane.objects import Mesh
from controlplane.translate import l7
from controlplane.translate.gateways import NETWORK, Gateways
from controlplane.translate.inventory import Inventory, Shelves
from controlplane.translate.policies import Policies
from controlplane.translate.services import Services
from controlplane.translate.workloads import Workloads
from mesh.model import World


class Builder:
    """Remembers what it made of what, so that a change costs a glance at each namespace and service, and work for those
    concerned.

    The world does not depend on what was built before, only its cost does: what is the same value is the same object.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._services: Services | None = None
        self._workloads: Workloads | None = None
        self.l7 = L7()
        self._layer7: l7.Layer7 | None = None
        self.inventory: Inventory
        self.layer7: l7.Layer7

    def build(self, shelves: Shelves, version: int = 0) -> World:
        """Some microseconds for each service, a tenth of one for each pod; 100 for a pod that is new or whose namespace
        changed.

        `l7` is what goes with it beyond layer 4, `layer7` what that was made of.
        """
        inventory = Inventory(shelves)
        root = inventory.namespaces.get(self._mesh.root_namespace)
        network = root.meta.labels.get(NETWORK, "") if root else ""
        gateways = Gateways(inventory.gateways, network)
        services = self._services = Services(inventory, network, gateways, self._services)
        policies = Policies(inventory, self._mesh)
        workloads = self._workloads = Workloads(
            inventory, self._mesh, services, policies, network, gateways, self._workloads
        )
        all_workloads = workloads.by_uid()
        far = [each for each in all_workloads.values() if each.network_gateway] if gateways.remote else []
        world = World(
            version=version,
            workloads=MappingProxyType(all_workloads),
            services=MappingProxyType(services.trusting(far, self._mesh.trust_domain)),
            policies=MappingProxyType(policies.all),
            joining=frozenset(workloads.joining),
            network=network,
        )
        self.inventory, self.layer7 = inventory, l7.Layer7(inventory, world, self._mesh, self._layer7)
        self._layer7 = self.layer7
        self.l7 = self.layer7.model
        return world
