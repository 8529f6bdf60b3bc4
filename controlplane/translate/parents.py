"""Which routes of the Gateway API are attached to which listener or service, and why others are not. Pure.

A route of a Service's own namespace is for all its clients; others' (consumer routes) are not looked at by waypoints,
as in Istio.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from controlplane.objects import KubernetesGateway, Namespace, Resource
from controlplane.translate.backends import GROUP
from controlplane.translate.classes import Classes
from controlplane.translate.gateways import WAYPOINT
from controlplane.translate.hosts import Hosts, by_age, intersection
from controlplane.translate.inventory import Inventory, selects
from controlplane.translate.notices import ACCEPTED, Notice
from mesh.model import HOSTNAME_SUFFIX

Tree = Mapping[str, Any]
KINDS: Final = ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
KINDS_OF: Final = {
    "HTTP": ("HTTPRoute", "GRPCRoute"),
    "HTTPS": ("HTTPRoute", "GRPCRoute"),
    "TLS": ("TLSRoute", "TCPRoute"),
    "TCP": ("TCPRoute",),
}
Listener = tuple[str, str, str]
# Why a listener does not take a route, the weakest reason first.
_REASONS: Final = ("NoMatchingParent", "NotAllowedByListeners", "NoMatchingListenerHostname")


class Parents:
    """`of_service`: by service key, each with the port it is for (0: all). `of_listener`: by namespace, gateway and
    listener, each with the host names that are left; ("*",) when neither names any. Gateways of other controllers
    (`classes`) say themselves what they take."""

    def __init__(self, inventory: Inventory, hosts: Hosts, classes: Classes) -> None:
        self._hosts = hosts
        self._namespaces = inventory.namespaces
        self._gateways = {(each.meta.namespace, each.meta.name): each for each in inventory.gateways}
        self.foreign = {key for key, each in self._gateways.items() if not classes.ours(each.gateway_class)}
        self.of_service: dict[str, list[tuple[Resource, int]]] = defaultdict(list)
        self.of_listener: dict[Listener, list[tuple[Resource, tuple[str, ...]]]] = defaultdict(list)
        self.notices: list[Notice] = []
        for kind in KINDS:
            for each in by_age(inventory.resources(kind)):
                for ref in each.spec.get("parentRefs", ()):
                    self._attach(each, ref)

    def judges(self, ref: Tree, namespace: str) -> bool:
        """Whether it is for us to say what becomes of a route of this namespace at a parent: not of one that does not
        exist, which may be anybody's."""
        if is_gateway(ref):
            key = ref.get("namespace", namespace), ref.get("name", "")
            return key in self._gateways and key not in self.foreign
        return ref.get("kind") in ("Service", "ServiceEntry")

    def _attach(self, each: Resource, ref: Tree) -> None:
        where = ref.get("namespace", each.meta.namespace)
        if is_gateway(ref) and (where, ref["name"]) not in self.foreign:
            reason, why = self._to_gateway(each, ref, where)
        elif ref.get("kind") in ("Service", "ServiceEntry"):
            reason, why = self._to_service(each, ref, where)
        else:
            return  # another controller's
        about, good = each.meta, not reason
        parent = parent_of(ref, each.meta.namespace)
        self.notices.append(
            Notice(each.kind, about.namespace, about.name, parent, ACCEPTED, good, reason or ACCEPTED, why)
        )

    def _to_service(self, each: Resource, ref: Tree, where: str) -> tuple[str, str]:
        keys = [f"{where}/{ref['name']}.{where}.{HOSTNAME_SUFFIX}"]
        if ref["kind"] == "ServiceEntry":
            keys = self._hosts.of_entry(where, ref["name"])
        services = [service for key in keys if (service := self._hosts.service(key))]
        if not services:
            return "NoMatchingParent", f"{ref['kind']} {where}/{ref['name']} does not exist"
        if where != each.meta.namespace:
            return "NotAllowedByListeners", "a waypoint takes only routes from the service's own namespace"
        port = ref.get("port", 0)
        if port and all(port not in [p.service_port for p in service.ports] for service in services):
            return "NoMatchingParent", f"{ref['kind']} {where}/{ref['name']} has no port {port}"
        for service in services:
            self.of_service[service.key].append((each, port))
        return "", ""

    def _to_gateway(self, each: Resource, ref: Tree, where: str) -> tuple[str, str]:
        gateway = self._gateways.get((where, ref["name"]))
        if not gateway:
            return "NoMatchingParent", f"Gateway {where}/{ref['name']} does not exist"
        if gateway.gateway_class == WAYPOINT:
            return "NoMatchingParent", "routes for a waypoint are attached to the services behind it"
        reasons = []
        for listener in gateway.spec.get("listeners", ()):
            named = ref.get("sectionName", listener["name"]) == listener["name"]
            if not named or ref.get("port", listener["port"]) != listener["port"]:
                continue
            reason, names = self._judged(each, gateway, listener)
            if reason:
                reasons.append(reason)
            else:
                self.of_listener[where, gateway.meta.name, listener["name"]].append((each, names))
                reasons.append("")
        if "" in reasons:
            return "", ""
        reason = max(reasons, key=_REASONS.index, default="NoMatchingParent")
        return reason, _WHY[reason].format(gateway=f"{where}/{ref['name']}")

    def _judged(self, each: Resource, gateway: KubernetesGateway, listener: Tree) -> tuple[str, tuple[str, ...]]:
        allowed: Tree = listener.get("allowedRoutes", {})
        kinds = [kind["kind"] for kind in allowed.get("kinds", ())] or KINDS_OF.get(listener["protocol"], ())
        if each.kind not in kinds or each.kind not in KINDS_OF.get(listener["protocol"], ()):
            return "NotAllowedByListeners", ()
        if not self._admits(allowed.get("namespaces", {}), gateway.meta.namespace, each.meta.namespace):
            return "NotAllowedByListeners", ()
        names = tuple(hostnames(each.spec.get("hostnames", ()), listener.get("hostname", "")))
        return ("", names) if names else ("NoMatchingListenerHostname", ())

    def _admits(self, namespaces: Tree, own: str, other: str) -> bool:
        wanted = namespaces.get("from", "Same")
        if wanted == "All":
            return True
        if wanted == "Selector":
            return _selected(namespaces.get("selector", {}), self._namespaces.get(other))
        return own == other


def is_gateway(ref: Tree) -> bool:
    return (ref.get("group", GROUP), ref.get("kind", "Gateway")) == (GROUP, "Gateway")


def parent_of(ref: Tree, namespace: str) -> str:
    """A parent as notices call it."""
    section = f"/{ref['sectionName']}" if "sectionName" in ref else ""
    port = f":{ref['port']}" if "port" in ref else ""
    return f"{ref.get('kind', 'Gateway')} {ref.get('namespace', namespace)}/{ref.get('name', '')}{section}{port}"


_WHY: Final = {
    "NoMatchingParent": "Gateway {gateway} has no such listener",
    "NotAllowedByListeners": "no listener of Gateway {gateway} admits routes of this kind and namespace",
    "NoMatchingListenerHostname": "no listener of Gateway {gateway} has a host name in common with the route",
}


def _selected(selector: Tree, namespace: Namespace | None) -> bool:
    labels = {**namespace.meta.labels, "kubernetes.io/metadata.name": namespace.meta.name} if namespace else {}
    if not selects(selector.get("matchLabels", {}), labels):
        return False
    return all(_expression(each, labels) for each in selector.get("matchExpressions", ()))


def _expression(each: Tree, labels: Mapping[str, str]) -> bool:
    key, values = each["key"], each.get("values", ())
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }.get(each["operator"], False)


def hostnames(route: tuple[str, ...] | list[str], listener: str) -> Iterator[str]:
    """What both name; a listener or route without names takes all."""
    if not route:
        yield listener or "*"
        return
    found = (intersection(listener, each) if listener else each for each in route)
    yield from dict.fromkeys(each for each in found if each)
