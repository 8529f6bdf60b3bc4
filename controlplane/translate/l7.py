"""Objects in force to the layer-7 model: the one place where routes, rules, destinations and proxies meet. Pure.

A waypoint is a Gateway of class `istio-waypoint`; it serves the services that name it (`istio.io/use-waypoint`). Other
Gateways of the Gateway API are gateways of their own, Istio's are for the pods that they select.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from controlplane.documents import ISTIO_GATEWAY
from controlplane.l7.model import L7, Proxy, Role, Rules, Served
from controlplane.l7.traffic import Destination
from controlplane.objects import KubernetesGateway, Labels, Mesh, Resource
from controlplane.translate import backend_tls, capacity, gateway_pods, gateway_routes, istio_gateways
from controlplane.translate.attached import Attached, Spot, attaches
from controlplane.translate.backends import Backends, Grants
from controlplane.translate.classes import Classes
from controlplane.translate.destinations import NOTHING_SAID, Destinations
from controlplane.translate.gateways import GATEWAY_ACCOUNT, WAYPOINT
from controlplane.translate.hosts import Hosts
from controlplane.translate.inventory import Inventory
from controlplane.translate.kubernetes_gateways import KubernetesGateways
from controlplane.translate.listeners import Facts, Listeners
from controlplane.translate.notices import RESOLVED, Notice
from controlplane.translate.notices import WAYPOINT as WAYPOINT_ACCEPTED
from controlplane.translate.parents import Parents
from controlplane.translate.providers import providers
from controlplane.translate.secrets import Secrets
from controlplane.translate.virtual_services import Routes, VirtualServices, joined
from mesh.model import HOSTNAME_SUFFIX, Gateway, Service, World

Tree = Mapping[str, Any]
_REMOTE: Final = ("istio-remote", "istio-east-west")
_FOR: Final = "istio.io/waypoint-for"
_NAME_LABELS: Final = ("gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name")


# A service's routes and rules, and what they make together.
_Made = tuple[Routes, Rules, Served]


def build(inventory: Inventory, world: World, mesh: Mesh) -> L7:
    """`mesh`: whose defaults go where no object says anything."""
    return Layer7(inventory, world, mesh).model


class _Parts:
    """What everything but VirtualServices and pods says: made once, and used as long as none of it changes."""

    def __init__(self, inventory: Inventory, world: World, mesh: Mesh, before: _Parts | None) -> None:
        self.inputs = _inputs(inventory, world)
        self.classes = Classes(inventory.resources("GatewayClass"), mesh.shared)
        configs = inventory.resources("MeshConfig")
        self.config: Tree = configs[0].spec if configs else {}
        self.hosts = hosts = Hosts(inventory, world)
        self.secrets = Secrets(inventory)
        self.grants = Grants(inventory.resources("ReferenceGrant"))
        self.backends = Backends(hosts, self.grants)
        self.parents = Parents(inventory, hosts, self.classes)
        policies = inventory.resources("BackendTLSPolicy")
        tls, self.tls_verdicts = backend_tls.by_service(policies, hosts, self.secrets.names)
        rules = inventory.resources("DestinationRule")
        earlier = before.destinations if before else None
        self.destinations: Destinations = Destinations(rules, hosts, self.config, mesh.root_namespace, tls, earlier)
        self.providers = providers(self.config, hosts, mesh.root_namespace)
        known = before.attached if before else None
        self.attached: Attached = Attached(inventory, hosts, self.providers, mesh.root_namespace, known)


def _inputs(inventory: Inventory, world: World) -> list[list[Any]]:
    kinds = [inventory.resources(kind) for kind in inventory.resource_kinds if kind != "VirtualService"]
    return [
        list(world.services.values()),
        list(inventory.namespaces.values()),
        inventory.services,
        inventory.service_entries,
        inventory.gateways,
        inventory.authorization_policies,
        inventory.secrets,
        *kinds,
    ]


def _same(one: list[list[Any]], other: list[list[Any]]) -> bool:
    """The same values, which nearly always are the same objects; O(objects), some 20 ns each."""
    if [len(each) for each in one] != [len(each) for each in other]:
        return False
    return all(all(map(operator.is_, a, b)) or a == b for a, b in zip(one, other, strict=True))


class Layer7:
    """`model`, and in `notices` what became of each document in it. `before` spares what is the same as there."""

    def __init__(self, inventory: Inventory, world: World, mesh: Mesh, before: Layer7 | None = None) -> None:
        self._inventory, self.world, self.root = inventory, world, mesh.root_namespace
        same = before is not None and _same(before._parts.inputs, _inputs(inventory, world))
        self._before = before if same else None
        self._parts: _Parts = (
            before._parts if before and same else _Parts(inventory, world, mesh, before._parts if before else None)
        )
        parts = self._parts
        self._config, self.hosts, self.destinations = parts.config, parts.hosts, parts.destinations
        self.providers, self._attached, self._secrets = parts.providers, parts.attached, parts.secrets
        self._parents, self._backends = parts.parents, parts.backends
        self._own = parts.classes.own(inventory.gateways)
        self._listeners = Listeners(parts.parents, parts.grants, self._secrets.names)
        self._gateways = KubernetesGateways(parts.parents, parts.backends, self._listeners, parts.config)
        self._documents = inventory.resources("VirtualService")
        earlier = before._virtual if before else None
        self._virtual: VirtualServices = VirtualServices(
            self._documents, self.hosts, self.destinations, self._config, earlier
        )
        self._serving = gateway_pods.proxies(inventory, inventory.resources(ISTIO_GATEWAY))
        self._accounts = gateway_pods.accounts(inventory) if inventory.gateways else {}
        # By proxy and service.
        self._routes: dict[tuple[str, str], Routes] = {}
        self._known: Mapping[tuple[str, str], Routes] = before._routes if before else {}
        self._served_so: dict[tuple[str, str], _Made] = {}
        self._known_served: Mapping[tuple[str, str], _Made] = before._served_so if before else {}
        self._glance = self._virtual.changed(earlier) if earlier else None
        self.model, self.notices = self._reused() or self._made()

    def _reused(self) -> tuple[L7, tuple[Notice, ...]] | None:
        """All of it, when neither documents nor gateways' pods changed."""
        before = self._before
        self._before = None  # or every one that ever was would stay
        if not before:
            return None
        pods = before._serving == self._serving and before._accounts == self._accounts
        if pods and _same([before._documents], [self._documents]):
            self._routes, self._served_so = before._routes, before._served_so
            self._listeners = before._listeners
            return before.model, before.notices
        return None

    def _made(self) -> tuple[L7, tuple[Notice, ...]]:
        self.model = self._model()
        return self.model, (
            *self._parents.notices,
            *self._listeners.notices,
            *self._told_of_tls(),
            *self._resolved(),
            *self._bound(),
            *self._refused,
        )

    def listeners(self, namespace: str, name: str) -> tuple[Facts, ...]:
        """Of a Gateway of the Gateway API."""
        return self._listeners.facts.get((namespace, name), ())

    def judges(self, kind: str, namespace: str, name: str) -> bool:
        """Whether it is for us to say what became of an object."""
        if kind == "GatewayClass":
            return self.judges_class(name)
        return kind != "Gateway" or (namespace, name) not in self._parents.foreign

    def judges_class(self, name: str) -> bool:
        return self._parts.classes.ours(name)

    def judges_parent(self, ref: Tree, namespace: str) -> bool:
        """Whether it is for us to say what becomes of a route of this namespace at a parent."""
        return self._parents.judges(ref, namespace)

    def endpoints(self, service: Service) -> Iterator[Labels]:
        """The labels of each of a service's endpoints. One in another network is known by the service's name alone."""
        for workload in self.world.workloads.values():
            if service.key in workload.services and workload.network == self.world.network:
                yield workload.labels

    def has_secret(self, name: str, gateway: Resource) -> bool:
        """Beside any of the proxies that serve a Gateway."""
        serving = [proxy.namespace for proxy, served in self._serving if gateway in served]
        return any((name if "/" in name else f"{where}/{name}") in self._secrets.names for where in serving)

    def _model(self) -> L7:
        wanted = {each.key: each for each in (*self._istio_gateways(), *self._of_gateway_api())}
        authorizers = self.providers.authorizers
        self._refused = [each for proxy in wanted.values() for each in capacity.refused(proxy, authorizers)]
        proxies = {key: capacity.fitted(each) for key, each in wanted.items()}
        destinations = {key: each for key, each in self._all_destinations() if _says(each)}
        return L7(
            proxies=MappingProxyType(dict(sorted(proxies.items()))),
            destinations=MappingProxyType(destinations),
            authorizers=MappingProxyType(dict(self.providers.authorizers)),
            tracers=MappingProxyType(dict(self.providers.tracers)),
            secrets=MappingProxyType(self._secrets.used(proxies.values(), destinations.values())),
        )

    def _all_destinations(self) -> Iterator[tuple[str, Destination]]:
        for key, service in self.world.services.items():
            yield key, self.destinations.of(service, service.namespace)

    def _of_gateway_api(self) -> Iterator[Proxy]:
        served = self._served()
        for each in self._own:
            if each.gateway_class == WAYPOINT:
                self._listeners.served(each)
                yield self._waypoint(each, served)
            elif each.gateway_class not in _REMOTE:
                yield self._gateway(each)

    def _served(self) -> dict[Gateway, list[Service]]:
        served: dict[Gateway, list[Service]] = defaultdict(list)
        last: tuple[Gateway | None, list[Service]] = None, []
        for service in self.world.services.values():
            if not service.weighted_waypoints and service.waypoint is last[0]:  # as most are; a hash costs more
                last[1].append(service)
                continue
            places = (service.waypoint, *(each for each, _ in service.weighted_waypoints))
            for place in dict.fromkeys(each for each in places if each):
                served[place].append(service)
            last = service.waypoint, served[service.waypoint] if service.waypoint else []
        return served

    def _waypoint(self, gateway: KubernetesGateway, served: dict[Gateway, list[Service]]) -> Proxy:
        about = gateway.meta
        services = {each.key: each for place, listed in served.items() if _is(gateway, place) for each in listed}
        spot = Spot(about.namespace, about.name, gateway.gateway_class, _labels(gateway), selected=False)
        rules = self._attached.rules(spot)
        return Proxy(
            about.name,
            about.namespace,
            Role.WAYPOINT,
            about.annotations.get(GATEWAY_ACCOUNT, about.name),
            port=gateway.port,
            services=tuple(self._serve(services[key], spot, rules) for key in sorted(services)),
            workloads=about.labels.get(_FOR, "service") in ("workload", "all"),
            rules=rules,
            destinations=self._own_destinations(about.namespace),
        )

    def _serve(self, service: Service, spot: Spot, wide: Rules) -> Served:
        """A Gateway API's routes are made again each time; without any, what is made of the same is the same object."""
        name = service.key
        key = f"{spot.namespace}/{spot.gateway}", name
        attached = self._parents.of_service.get(name, ())
        own = self._attached.names(name)
        known = self._known_served.get(key) if not attached and not own and self._glance is not None else None
        if known and known[1] is wide and known[0].leans.isdisjoint(self._glance or ()):
            self._routes[key], self._served_so[key] = known[0], known
            return known[2]
        routes = self._routes[key] = self._virtual.of_service(service, spot.namespace, self._known.get(key))
        rules = self._attached.rules(replace(spot, service=service)) if own else wide
        if attached:
            return self._served_by(service, routes, rules, attached)
        made = self._known_served.get(key)
        if not made or made[0] is not routes or made[1] != rules:
            made = routes, rules, Served(name, routes.http, routes.l4, rules)
        self._served_so[key] = made
        return made[2]

    def _served_by(
        self, service: Service, routes: Routes, rules: Rules, attached: Sequence[tuple[Resource, int]]
    ) -> Served:
        first = gateway_routes.ordered(
            ranked
            for each, port in attached
            if each.kind in ("HTTPRoute", "GRPCRoute")
            for ranked in gateway_routes.http(each, self._backends, self._config, port)
        )
        plain = [(each, port) for each, port in attached if each.kind in ("TCPRoute", "TLSRoute")]
        return Served(
            service=service.key,
            http=joined((*first, *routes.http)) if first else routes.http,
            l4=(
                *(route for each, port in plain for route in gateway_routes.l4(each, self._backends, port)),
                *routes.l4,
            ),
            rules=rules,
        )

    def _gateway(self, gateway: KubernetesGateway) -> Proxy:
        about = gateway.meta
        labels = _labels(gateway)
        account = self._accounts.get((about.namespace, about.name), "")
        spot = Spot(about.namespace, about.name, gateway.gateway_class, labels, selected=True)
        return Proxy(
            about.name,
            about.namespace,
            Role.GATEWAY,
            about.annotations.get(GATEWAY_ACCOUNT) or account or f"{about.name}-{gateway.gateway_class}",
            servers=self._gateways.servers(gateway),
            rules=self._attached.rules(spot),
            destinations=self._own_destinations(about.namespace),
        )

    def _istio_gateways(self) -> Iterator[Proxy]:
        for proxy, gateways in self._serving:
            spot = Spot(proxy.namespace, proxy.name, "", proxy.labels, selected=True)
            yield Proxy(
                proxy.name,
                proxy.namespace,
                Role.GATEWAY,
                proxy.service_account,
                servers=tuple(
                    server
                    for gateway in gateways
                    for server in istio_gateways.servers(gateway, proxy.namespace, self._virtual)
                ),
                rules=self._attached.rules(spot),
                destinations=self._own_destinations(proxy.namespace),
            )

    def _own_destinations(self, namespace: str) -> Mapping[str, Destination]:
        """Those that rules of the proxy's own namespace change for it alone."""
        found: dict[str, Destination] = {}
        for service in self.destinations.foreign(namespace, self.world.services.values()):
            own = self.destinations.of(service, namespace)
            if own != self.destinations.of(service, service.namespace):
                found[service.key] = own
        return MappingProxyType(found)

    def _told_of_tls(self) -> Iterator[Notice]:
        if verdicts := self._parts.tls_verdicts:
            keys = {f"{each.meta.namespace}/{each.meta.name}" for each in self._own}
            yield from backend_tls.told(verdicts, (each for key, each in self.model.proxies.items() if key in keys))

    def _resolved(self) -> Iterator[Notice]:
        """Whether what routes of the Gateway API refer to is there, and is theirs to refer to."""
        for kind in ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"):
            for each in self._inventory.resources(kind):
                problem = next(
                    (found for ref in _backend_refs(each) if (found := self._backends.problem(ref, each))), None
                )
                reason, why = problem or (RESOLVED, "")
                about = each.meta
                yield Notice(kind, about.namespace, about.name, "", RESOLVED, not problem, reason, why)

    def _bound(self) -> Iterator[Notice]:
        """Whether what is attached by targetRefs is attached to something that judges requests."""
        proxies = {each.key for each in self.model.proxies.values()}
        served = {each.service for proxy in self.model.proxies.values() for each in proxy.services}
        listed: list[tuple[str, Any]] = [("AuthorizationPolicy", p) for p in self._inventory.authorization_policies]
        for kind in ("RequestAuthentication", "Telemetry", "RateLimit", "EnvoyFilter"):
            listed += [(kind, each) for each in self._inventory.resources(kind)]
        for kind, each in listed:
            about = each.meta
            for ref in attaches(each):
                reason, why = "", ""
                if ref.kind == "Gateway":
                    if f"{about.namespace}/{ref.name}" not in proxies:
                        reason, why = "TargetNotFound", f"Gateway {about.namespace}/{ref.name} does not exist"
                elif ref.kind in ("Service", "ServiceEntry"):
                    keys = self._attached.keys(ref, about.namespace)
                    if not keys:
                        reason, why = "TargetNotFound", f"{ref.kind} {about.namespace}/{ref.name} does not exist"
                    elif not served.intersection(keys):
                        reason = "AncestorNotBound"
                        why = f"{ref.kind} {about.namespace}/{ref.name} has no waypoint: nobody enforces this"
                yield Notice(
                    kind,
                    about.namespace,
                    about.name,
                    f"{ref.kind} {ref.name}",
                    WAYPOINT_ACCEPTED,
                    not reason,
                    reason or "Accepted",
                    why,
                )


def _says(found: Destination) -> bool:
    return found is not NOTHING_SAID and found != NOTHING_SAID


def _labels(gateway: KubernetesGateway) -> Labels:
    """Of its pods, as far as they follow from the document."""
    given: Labels = gateway.spec.get("infrastructure", {}).get("labels", {})
    return {**gateway.meta.labels, **given, **dict.fromkeys(_NAME_LABELS, gateway.meta.name)}


def _is(gateway: KubernetesGateway, place: Gateway) -> bool:
    if place.address:
        return place.address in gateway.addresses
    own = f"{gateway.meta.name}.{gateway.meta.namespace}.{HOSTNAME_SUFFIX}"
    return place.hostname in (own, *gateway.hostnames)


def _backend_refs(each: Resource) -> Iterator[Tree]:
    for rule in each.spec.get("rules", ()):
        yield from rule.get("backendRefs", ())
        for given in rule.get("filters", ()):
            if "requestMirror" in given:
                yield given["requestMirror"]["backendRef"]
