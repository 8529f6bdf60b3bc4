"""One proxy's whole configuration: every resource of every type, each made again only when its parts changed. Pure.

A part's key is what it is made of; what is the same value is the same bytes. The cache is shared by all proxies, and
what one service or destination adds is looked at as a whole first (`blocks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from controlplane.l7.model import L7, Proxy, Role, Served
from controlplane.l7.patches import Patch
from controlplane.l7.routes import Target
from controlplane.l7.traffic import Destination, Traffic
from controlplane.translate.envoy import (
    clusters,
    far,
    gateway,
    listeners,
    patches,
    ports,
    secrets,
    telemetry,
    tokens,
    tunnels,
)
from controlplane.translate.envoy.blocks import Asked, Block, Cache, Parts, Seen, Shelf, same
from controlplane.translate.envoy.clusters import Called
from controlplane.translate.envoy.common import (
    CONNECT,
    ORIGINATE,
    TERMINATE,
    TUNNELS,
    Json,
    authority,
    outbound,
    served,
    to_internal,
    unique,
)
from controlplane.translate.envoy.limits import global_filter
from controlplane.translate.envoy.locality import Place
from controlplane.translate.envoy.moments import Moment
from controlplane.translate.envoy.routes import targets_of
from controlplane.translate.envoy.world import Member, Serving, View
from mesh.delta import Versioned
from mesh.envoy import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SECRET, VIRTUAL_HOST, joined
from mesh.model import AppProtocol, Service, Workload

TYPES: Final = (SECRET, CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES)
"""In the order in which additions are sent; removals go the other way round."""

# In a RouteConfiguration.
_VIRTUAL_HOSTS: Final = 2
ByType = Mapping[str, Mapping[str, Versioned]]
_PLAIN: Final = Destination()


class Translation:
    """Of one world and model."""

    def __init__(self, view: View, l7: L7, cache: Cache) -> None:
        self._view, self._l7, self._cache, self._moment = view, l7, cache, cache.moment(view, l7)

    def of(self, proxy: Proxy, here: Place = Place()) -> ByType:  # noqa: B008 (immutable)
        """`here`: where this one of the proxy's processes is."""
        return _Round(self._view, self._l7, self._cache, self._moment, proxy, here).build()


class _Round:
    def __init__(self, view: View, l7: L7, cache: Cache, moment: Moment, proxy: Proxy, here: Place) -> None:
        self._moment = moment
        self._view, self._l7, self._cache, self._proxy, self._here = view, l7, cache, proxy, here
        self._found: dict[str, dict[str, Versioned]] = {type_url: {} for type_url in TYPES}
        self._slots = tokens.slots(l7.authorizers, self._providers())
        self._used = tuple(name for name, _ in self._slots.values())
        # Without what it serves, or each service's listener would hang on all services.
        self._teller = Proxy(proxy.name, proxy.namespace, proxy.role, proxy.service_account)
        self._patches = {each.service: each.rules.patches for each in proxy.services if each.rules.patches}
        common = self._used, l7.tracers, proxy.destinations, self._patches, proxy.rules, self._teller
        self._frame = cache.frame(proxy.key, (*common, view.world.network))
        self._key, self._where = proxy.key, (*here.parts, *map("=".join, here.labels))
        self._out = cache.shelf((self._key, "out", *self._where))
        self._asked: dict[tuple[str, int], Asked] = {}
        self._all = self._now = Block()

    def build(self) -> ByType:
        if self._proxy.role is Role.WAYPOINT:
            self._waypoint()
        else:
            self._gateway()
        self._once(CLUSTER, TUNNELS, tunnels.tunnels)
        self._put(LISTENER, ORIGINATE, (self._proxy.role,), lambda: tunnels.originate(self._proxy))
        self._extensions()
        for name, target in self._all.targets.items():
            self._destination(name, target)
        for name in sorted(self._all.secrets):
            if secret := self._l7.secrets.get(name):
                for key, made in secrets.secrets(name, secret).items():
                    self._put(SECRET, key, (secret,), lambda made=made: made)  # type: ignore[misc]
        for type_url, name, item in self._all.found:
            self._found[type_url][name] = item
        return self._found

    def _still(self, shelf: Shelf, name: str, source: object) -> bool:
        """Takes over the block as it was, if a glance is enough to know that it would be the same."""
        block = shelf.find(name)
        if not block or not block.still(self._moment, self._frame, source):
            return False
        shelf.now[name] = block
        self._take(block)
        return True

    def _block(
        self,
        shelf: Shelf,
        name: str,
        source: object,
        leans: Iterable[str] | None,
        parts: Parts,
        make: Callable[[], None],
    ) -> None:
        """Whatever `make` puts and wants; as it was, when that would be the same. `leans` None: on more than keys."""
        block = shelf.find(name)
        called = block.called.items() if block and same(block.parts, parts) else None
        if not block or called is None or any(self._destination_of(target) != found for target, found in called):
            self._now = block = Block(parts)
            make()
            self._now = self._all
        if leans is not None:
            asked = (each.service for each in (*block.targets.values(), *block.called))
            block.seen = Seen(self._moment.mark, self._frame, source, frozenset((*leans, *asked)))
        shelf.now[name] = block
        self._take(block)

    def _take(self, block: Block) -> None:
        self._all.found += block.found
        self._all.targets |= block.targets
        if block.jwt:
            self._all.jwt |= block.jwt
        if block.secrets:
            self._all.secrets |= block.secrets
        for asked in block.asked:
            # What two services claim is the first one's.
            if self._asked.setdefault(asked.claim, asked) is asked:
                self._all.found += asked.found

    # Waypoint -----------------------------------------------------------------------------------------------------

    def _waypoint(self) -> None:
        self._put(LISTENER, TERMINATE, (self._proxy.port,), lambda: tunnels.terminate(self._proxy.port))
        behind = list(self._view.behind(self._proxy))
        own = (Served(each.uid, rules=self._proxy.rules) for each in behind)
        shelf = self._cache.shelf((self._key, "served"))
        for each in (*self._proxy.services, *own):
            name = each.service
            if not self._still(shelf, name, each) and (service := self._view.service(name)):
                at = tuple(ports.bound(each, port.service_port, self._has_port) for port in service.ports)
                parts = at, service, self._used, self._l7.tracers
                make = partial(self._service, at, service)
                self._block(shelf, name, each, (name, *ports.asked(each)), parts, make)
        shelf = self._cache.shelf((self._key, "any"))
        for workload in behind:
            if not self._still(shelf, workload.uid, workload):
                about = workload, self._proxy.rules, self._l7.tracers
                self._block(shelf, workload.uid, workload, (), about, partial(self._any_port, workload))
        table = self._cache.packed(ROUTES, (self._key, CONNECT), (), tunnels.connect_table)
        self._all.found.append((ROUTES, CONNECT, joined(table, _VIRTUAL_HOSTS, self._hosts())))

    def _hosts(self) -> Iterator[Versioned]:
        """For addresses of which every port is served, and for names with a wildcard; and for all that these cover,
        which else would be theirs."""
        every = {host for host, port in self._asked if not port}
        suffixes = tuple({host[1:] for host, _ in self._asked if host.startswith("*")})
        for (host, port), asked in self._asked.items() if every or suffixes else ():
            if host in every or host.endswith(suffixes):
                domain = authority(host, port or "*")
                make = partial(tunnels.connect_host, domain, asked.cluster)
                yield self._cache.packed(VIRTUAL_HOST, (self._key, CONNECT, domain), (asked.cluster,), make)

    def _service(self, at: tuple[Served, ...], service: Service) -> None:
        """`at`: what is served at each of its ports."""
        for port, each in zip(service.ports, at, strict=True):
            self._served(each, service, port.service_port, port.protocol)

    def _has_port(self, key: str, port: int) -> bool:
        service = self._view.service(key)
        return service is not None and port in [each.service_port for each in service.ports]

    def _served(self, each: Served, service: Service, port: int, protocol: AppProtocol) -> None:
        """Everything for one port."""
        name, target = served(each.service, port), Target(each.service, port)
        said = self._said(each.rules.telemetry, each.service, protocol)
        self._put(
            LISTENER,
            name,
            (protocol, each.l4, each.rules, said),
            lambda: listeners.listener(name, protocol, each.l4, each.rules, said, target),
        )
        if protocol not in (AppProtocol.TCP, AppProtocol.TLS):
            called = tuple(self._traffic(one) for one in (target, *targets_of(each.http)))
            self._put(
                ROUTES,
                name,
                (each.http, each.rules, called, self._used),
                lambda: listeners.route_table(name, each.http, each.rules, self._traffic, target, self._used),
            )
            if each.rules.jwt:
                self._now.jwt[name] = each.rules.jwt
        self._want(target, *targets_of(each.http), *(share.target for route in each.l4 for share in route.shares))
        self._want(*(limit.service for limit in each.rules.limits if limit.service))
        names = unique([*(str(vip.prefix.network_address) for vip in service.vips), service.hostname])
        for host in names:
            self._now.asked.append(self._asked_for(host, port, name))

    def _asked_for(self, host: str, port: int, listener: str) -> Asked:
        cluster = authority(host, port)
        make = partial(tunnels.internal_cluster, listener, cluster)
        key = self._key, CONNECT, listener, cluster
        item = self._cache.packed(CLUSTER, key, (), make, self._now.entries)
        return Asked((host, port), cluster, ((CLUSTER, cluster, item),))

    def _any_port(self, workload: Workload) -> None:
        """For connections to a workload's ports that no service names: layer 4."""
        name, rules = f"{workload.uid}|*", self._proxy.rules
        said = self._said(rules.telemetry, workload.uid, AppProtocol.TCP)
        about = workload.hbone, workload.addresses, Serving(workload, 0).identity
        make = partial(listeners.any_port, name, workload, rules, said)
        self._put(LISTENER, name, (about, rules, said), make)
        cluster = to_internal(name)
        self._once(CLUSTER, cluster, lambda: tunnels.internal_cluster(name, cluster))
        if not workload.hbone:
            self._once(CLUSTER, tunnels.DIRECT, tunnels.direct)
        self._now.asked += [Asked((str(address), 0), cluster) for address in workload.addresses]

    def _said(self, wanted: Any, service: str, protocol: AppProtocol) -> telemetry.Said:
        tracer = self._l7.tracers.get(wanted.tracing.tracer) if wanted.tracing else None
        if tracer:
            self._want(tracer.target)
        word = "grpc" if protocol is AppProtocol.GRPC else "http"
        return telemetry.Said(wanted, service, self._teller, tracer, word)

    # Gateway ------------------------------------------------------------------------------------------------------

    def _gateway(self) -> None:
        said = self._said(self._proxy.rules.telemetry, "", AppProtocol.HTTP11)
        for name, servers in gateway.by_port(self._proxy.servers).items():
            parts = (servers, self._proxy.rules, said)
            self._put(
                LISTENER,
                name,
                parts,
                lambda name=name, servers=servers: gateway.listener(name, servers, self._proxy.rules, said),  # type: ignore[misc]
            )
            for table, make in gateway.tables(name, servers, self._proxy.rules, self._traffic, self._used).items():
                called = tuple(self._traffic(one) for one in gateway.targets(servers))
                self._put(ROUTES, table, (servers, self._proxy.rules, called, self._used), make)
                if self._proxy.rules.jwt:
                    self._now.jwt[table] = self._proxy.rules.jwt
            self._want(*gateway.targets(servers))
            self._now.secrets |= gateway.secret_names(servers)

    # What both have -----------------------------------------------------------------------------------------------

    def _extensions(self) -> None:
        jwt = dict(self._all.jwt)
        self._place(tokens.JWT, (jwt,), lambda: tokens.authentication(jwt))
        for uri in sorted({rule.jwks_uri for rules in jwt.values() for rule in rules if rule.jwks_uri}):
            self._once(CLUSTER, tokens.jwks_cluster(uri), lambda uri=uri: gateway.jwks(uri))  # type: ignore[misc]
        for name in tokens.AUTHORIZERS:
            slot = self._slots.get(name)
            self._place(name, (slot,), lambda slot=slot: tokens.authorizer(*slot) if slot else tokens.NOTHING)  # type: ignore[misc]
            if slot:
                self._want(slot[1].target)
        asked = {each.place: each for each in self._limits() if each.service}
        for place, name in enumerate(tokens.LIMITERS):
            limit = asked.get(place)
            about = (limit.service, limit.domain, limit.fail_open) if limit else ()
            self._place(name, about, lambda limit=limit: global_filter(limit) if limit else tokens.NOTHING)  # type: ignore[misc]

    def _limits(self) -> Iterable[Any]:
        for rules in (self._proxy.rules, *(each.rules for each in self._proxy.services)):
            yield from rules.limits
        for each in self._proxy.services:
            for route in each.http:
                yield from route.limits
        for server in self._proxy.servers:
            for host in server.virtual_hosts:
                for route in host.routes:
                    yield from route.limits

    def _providers(self) -> set[str]:
        rules = (self._proxy.rules, *(each.rules for each in self._proxy.services))
        return {each.provider for one in rules for each in one.authorizations if each.action is None}

    def _place(self, name: str, parts: tuple[Any, ...], make: Callable[[], Json]) -> None:
        self._put(EXTENSION, name, parts, lambda: listeners.place(make(), name))

    def _want(self, *targets: Target | None) -> None:
        self._now.targets.update({outbound(target): target for target in targets if target and target.service})

    def _destination_of(self, target: Target) -> Destination:
        return self._proxy.destinations.get(target.service) or self._l7.destinations.get(target.service, _PLAIN)

    def _called(self, target: Target) -> Called:
        service = self._view.service(target.service)
        by_waypoint = bool(self._proxy.role is Role.GATEWAY and service and service.waypoint)
        return Called(target, service, self._destination_of(target), by_waypoint)

    def _traffic(self, target: Target) -> Traffic:
        called = self._called(target)
        self._now.called[target] = called.destination
        return called.traffic

    def _destination(self, name: str, target: Target) -> None:
        shelf = self._out
        if self._still(shelf, name, None):
            return
        called, known = self._called(target), self._view.members(target.service)
        through = called.service.waypoint if called.by_waypoint and called.service else None
        # Through another network's gateway, or through a waypoint; who that is, no key says.
        serving = tuple(self._view.waypoints(through)) if through else far.gateways(self._view, known)
        parts = called, known, serving, self._changes(target), self._view.world.network
        make = partial(self._reached, called, known, serving, self._where)
        beyond = through or any(self._view.is_far(each.workload) for each in known)
        self._block(shelf, name, None, None if beyond else (target.service,), parts, make)

    def _changes(self, target: Target) -> tuple[Patch, ...]:
        wanted = self._patches.get(target.service, self._proxy.rules.patches)
        return patches.of_cluster(wanted, self._proxy.role, target) if wanted else ()

    def _reached(
        self, called: Called, known: tuple[Member, ...], serving: tuple[Serving, ...], where: tuple[str, ...]
    ) -> None:
        target, name = called.target, outbound(called.target)
        own: tuple[str, ...] = (self._proxy.role.value,) if called.by_waypoint else ()
        own += (self._key,) if target.service in self._proxy.destinations else ()
        changes = self._changes(target)
        parts = (called, known if called.by_name else (), changes)
        mine = (*own, self._key) if changes else own
        self._put(CLUSTER, name, parts, lambda: patches.cluster(clusters.cluster(called, self._view), changes), *mine)
        if clusters.has_endpoints(called):
            members = (called, known, serving, self._view.world.network)
            if serving and not called.by_waypoint:
                self._beyond()
            make = partial(clusters.endpoints, called, self._view, self._here)
            self._put(ENDPOINTS, name, members, make, *own, *where)
        tls = called.traffic.tls
        for credential in (tls.ca, tls.client) if tls else ():
            self._now.secrets |= secrets.names_of(credential)

    def _beyond(self) -> None:
        """What inner tunnels need."""
        self._once(CLUSTER, far.FAR, far.cluster)
        for name, make in ((far.FAR, far.inner), (far.BEYOND, far.outer)):
            self._put(LISTENER, name, (self._proxy.role,), partial(make, self._teller))

    def _once(self, type_url: str, name: str, make: Callable[[], Json]) -> None:
        self._put(type_url, name, (), make)

    def _put(self, type_url: str, name: str, parts: tuple[Any, ...], make: Callable[[], Json], *more: str) -> None:
        """`more`: what tells this proxy's form of it from another's."""
        shared = type_url in (CLUSTER, ENDPOINTS)
        key = (name, *more) if shared else (self._key, name, *more)
        item = self._cache.packed(type_url, key, parts, make, self._now.entries)
        self._now.found.append((type_url, name, item))
