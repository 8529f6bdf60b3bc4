"""Objects in force to the layer-7 model. Pure.

A waypoint is a Gateway of class `istio-waypoint`; it serves the services that name it (`istio.io/use-waypoint`).
"""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType

from controlplane.l7.model import L7, Proxy, Role, Served
from controlplane.objects import KubernetesGateway, Mesh
from controlplane.translate.gateways import GATEWAY_ACCOUNT, WAYPOINT
from controlplane.translate.inventory import Inventory
from mesh.model import HOSTNAME_SUFFIX, Gateway, World


def build(inventory: Inventory, world: World, mesh: Mesh) -> L7:
    """`mesh`: whose defaults go where no object says anything."""
    served: dict[Gateway, list[str]] = defaultdict(list)
    for service in world.services.values():
        for gateway in (service.waypoint, *(each for each, _ in service.weighted_waypoints)):
            if gateway and service.key not in served[gateway]:
                served[gateway].append(service.key)
    proxies = {}
    for each in inventory.gateways:
        if each.gateway_class == WAYPOINT:
            proxy = _waypoint(each, served)
            proxies[proxy.key] = proxy
    return L7(proxies=MappingProxyType(proxies))


def _waypoint(gateway: KubernetesGateway, served: dict[Gateway, list[str]]) -> Proxy:
    about = gateway.meta
    keys = {key for place, keys in served.items() if _is(gateway, place) for key in keys}
    return Proxy(
        about.name,
        about.namespace,
        Role.WAYPOINT,
        about.annotations.get(GATEWAY_ACCOUNT, about.name),
        port=gateway.port,
        services=tuple(Served(key) for key in sorted(keys)),
    )


def _is(gateway: KubernetesGateway, place: Gateway) -> bool:
    if place.address:
        return place.address in gateway.addresses
    own = f"{gateway.meta.name}.{gateway.meta.namespace}.{HOSTNAME_SUFFIX}"
    return place.hostname in (own, *gateway.hostnames)
