"""VirtualService to routes: which are about a service or a gateway's host, in which order, with delegates. Pure.

At a waypoint only those of the service's namespace and the waypoint's count. Several for one host are joined: the host
written most closely first, then the oldest; what comes after a route that takes everything is left out. A match that
asks for the labels of the source never matches there, as in Istio.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from controlplane.l7.routes import (
    DirectResponse,
    Forward,
    HttpMatch,
    HttpRoute,
    L4Match,
    L4Route,
    Redirect,
    Target,
)
from controlplane.l7.traffic import Destination
from controlplane.objects import Resource
from controlplane.translate import http_routes as parts
from controlplane.translate.destinations import Destinations
from controlplane.translate.hosts import Hosts, exported, fqdn, matches, specificity
from mesh.model import IPNetwork, Service

Tree = Mapping[str, Any]
MESH: Final = "mesh"
NOWHERE: Final = Target("")
# What a root route gives to its delegate's routes that say nothing of it.
_HANDED_DOWN: Final = (
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "mirrorPercentage",
    "corsPolicy",
    "headers",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where routes are for: the mesh (a waypoint) or a gateway, "namespace/name"; of which namespace the proxy is, and
    the port that its clients ask for (0: any)."""

    gateway: str
    namespace: str
    port: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """Which service is meant by a host (its full name) in a document of a namespace, and how a client calls it."""

    host: str
    namespace: str
    client: str
    answer: tuple[Service | None, Destination | None] = (None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """A service's routes, and what they were made of."""

    http: tuple[HttpRoute, ...]
    l4: tuple[L4Route, ...]
    documents: list[Resource]
    asked: tuple[_Question, ...]
    mesh: Tree
    leans: frozenset[str]
    """The hosts that decide about it."""


class _Root(NamedTuple):
    """A document that is nobody's delegate. `names`: its hosts in full, none when it is for gateways only."""

    order: tuple[Any, ...]
    names: tuple[str, ...]
    resource: Resource

    @classmethod
    def of(cls, each: Resource) -> _Root:
        hosts = each.spec["hosts"] if MESH in gateways(each) else ()
        return cls(each.meta.age_order, tuple(fqdn(host, each.meta.namespace) for host in hosts), each)

    def age(self) -> tuple[Any, ...]:
        return self.order


class VirtualServices:
    """All of them, with delegates put in where they belong."""

    def __init__(
        self,
        resources: list[Resource],
        hosts: Hosts,
        destinations: Destinations,
        mesh: Tree,
        before: VirtualServices | None = None,
    ) -> None:
        """`before` spares a second look at the same document."""
        self._hosts, self._destinations, self._mesh = hosts, destinations, mesh
        # By host, namespace and client.
        self._asked: dict[tuple[str, str, str], _Question] = {}
        self._retries: Tree | None = mesh.get("defaultHttpRetryPolicy")
        self._exported = mesh.get("defaultVirtualServiceExportTo", ())
        self._delegates = {each.key: each for each in resources if not each.spec.get("hosts")}
        known: Mapping[int, _Root] = before._roots if before else {}
        # No other document has the id of one that is held.
        self._roots: dict[int, _Root] = {
            id(each): known.get(id(each)) or _Root.of(each) for each in resources if each.spec.get("hosts")
        }
        ordered = sorted(self._roots.values(), key=_Root.age)
        self.roots = [each.resource for each in ordered]
        self._by_host: dict[str, list[Resource]] = {}
        for root in ordered:
            for host in root.names:
                self._by_host.setdefault(host, []).append(root.resource)
        self._wildcards = [host for host in self._by_host if host.startswith("*")]

    def changed(self, before: VirtualServices) -> frozenset[str] | None:
        """The hosts about which something is not as before, documents, services and how these are called; routes that
        lean on none of them are the same. None: that cannot be told at a glance."""
        wild = (self._wildcards, self._delegates, before._wildcards, before._delegates)
        if any(wild) or self._hosts.wild or before._hosts.wild or self._mesh != before._mesh:
            return None
        if not self._destinations.says_the_same(before._destinations):
            return None
        one, other = before._roots, self._roots
        roots = [*(one[key] for key in one.keys() - other.keys()), *(other[key] for key in other.keys() - one.keys())]
        named = {name for root in roots for name in root.names}
        return frozenset(named | before._hosts.differing(self._hosts))

    def about(self, service: Service, proxy: str) -> list[Resource]:
        """The documents that `of_service` looks at; all delegates, if one of them delegates."""
        chosen = list(self._about(service, proxy))
        if not self._delegates:
            return chosen
        delegates = any("delegate" in route for each in chosen for route in each.spec.get("http", ()))
        return [*chosen, *self._delegates.values()] if delegates else chosen

    def of_service(self, service: Service, proxy: str, known: Routes | None = None) -> Routes:
        """For a waypoint in namespace `proxy`. `known`: of an earlier world; it stays if it would be the same."""
        about = self.about(service, proxy)
        if known and self._is_same(known, about):
            return known
        self._asked = {}
        http, l4 = self._of_service(service, proxy)
        leans = frozenset((service.hostname.lower(), *(host for host, _, _ in self._asked)))
        return Routes(http, l4, about, tuple(self._asked.values()), self._mesh, leans)

    def _is_same(self, known: Routes, about: list[Resource]) -> bool:
        """The same documents, and every question that they asked then has the same answer now."""
        if len(about) != len(known.documents) or not all(map(operator.is_, about, known.documents)):
            return False
        return known.mesh == self._mesh and all(map(self._is_answered_so, known.asked))

    def _is_answered_so(self, asked: _Question) -> bool:
        service, destination = self._answer(asked)
        before, how = asked.answer
        return service is before and (destination is how or destination == how)

    def _answer(self, asked: _Question) -> tuple[Service | None, Destination | None]:
        found = self._hosts.named(asked.host, asked.namespace)
        return found, self._destinations.of(found, asked.client) if found else None

    def _of_service(self, service: Service, proxy: str) -> tuple[tuple[HttpRoute, ...], tuple[L4Route, ...]]:
        place = Place(MESH, proxy)
        chosen = list(self._about(service, proxy))
        http = joined(route for each in chosen for route in self.http(each, place))
        l4 = tuple(route for each in chosen for route in self.l4(each, place))
        return http, l4

    def _about(self, service: Service, proxy: str) -> Iterator[Resource]:
        name = service.hostname.lower()
        if not self._wildcards and name not in self._by_host:
            return
        patterns = [name, *sorted((w for w in self._wildcards if matches(w, name)), key=specificity, reverse=True)]
        seen: set[int] = set()
        for pattern in patterns:
            for each in self._by_host.get(pattern, ()):
                about = each.meta
                near = about.namespace in (service.namespace, proxy)
                if near and id(each) not in seen and self.visible(each, proxy):
                    seen.add(id(each))
                    yield each

    def visible(self, each: Resource, namespace: str) -> bool:
        return exported(each.spec.get("exportTo", self._exported), each.meta.namespace, namespace)

    def http(self, each: Resource, place: Place) -> Iterator[HttpRoute]:
        for index, route in enumerate(each.spec.get("http", ())):
            name = route.get("name") or f"{each.key}/{index}"
            for tree, about, called in self._delegated(route, each, name):
                if made := self._http(tree, about, called, place, each.meta.namespace):
                    yield made

    def _delegated(self, route: Tree, root: Resource, name: str) -> Iterator[tuple[Tree, Resource, str]]:
        """The route itself, or those of the VirtualService that it delegates to, narrowed by its own matches."""
        if "delegate" not in route:
            yield route, root, name
            return
        where: Tree = route["delegate"]
        key = f"{where.get('namespace') or root.meta.namespace}/{where.get('name', '')}"
        found = self._delegates.get(key)
        if not found or not self.visible(found, root.meta.namespace):
            yield {"match": route.get("match", [])}, root, name
            return
        for index, inner in enumerate(found.spec.get("http", ())):
            both = _narrowed(route.get("match", []), inner.get("match", []))
            if "delegate" not in inner and both is not None:
                handed = {part: route[part] for part in _HANDED_DOWN if part in route}
                yield {**handed, **inner, "match": both}, found, f"{name}-{inner.get('name') or index}"

    def _http(self, route: Tree, about: Resource, name: str, place: Place, root: str) -> HttpRoute | None:
        """None: at this place it never matches. `root`: the namespace of the document that is bound to gateways."""
        chosen = here(route.get("match", ()), place, root)
        if chosen is None:
            return None

        def resolve(destination: Tree) -> Target:
            return self.target(destination, about, place)

        fault: Tree = route.get("fault", {})
        action = self._action(route, about, place)
        retries = parts.retries(route.get("retries"), self._retries)
        if retries and isinstance(action, Forward) and self._hashed(action, place):
            retries = replace(retries, other_hosts=False)  # it would undo what the hash wants
        return HttpRoute(
            name=name,
            action=action,
            matches=tuple(parts.match(each) for each in chosen),
            rewrite=parts.rewrite(route),
            request=parts.request_changes(route),
            response=parts.response_changes(route),
            timeout_s=route.get("timeout"),
            retries=retries,
            delay=parts.delay(fault),
            abort=parts.abort(fault),
            mirrors=parts.mirrors(route, resolve),
            cors=parts.cors(route.get("corsPolicy")),
        )

    def _action(self, route: Tree, about: Resource, place: Place) -> Forward | Redirect | DirectResponse:
        if "redirect" in route:
            return parts.redirect(route["redirect"], place.port)
        if "directResponse" in route:
            return parts.direct_response(route["directResponse"])
        if "route" not in route:  # a delegate that does not exist
            return DirectResponse(500)
        return Forward(parts.shares(route["route"], lambda destination: self.target(destination, about, place)))

    def _hashed(self, action: Forward, place: Place) -> bool:
        for share in action.shares:
            service = self._hosts.service(share.target.service)
            if service and self._destinations.of(service, place.namespace).traffic.hash:
                return True
        return False

    def target(self, destination: Tree, about: Resource, place: Place) -> Target:
        """Nowhere: no such service, port or subset; requests get 500, and nobody else gets them."""
        namespace = about.meta.namespace
        asked = _Question(fqdn(destination["host"], namespace), namespace, place.namespace)
        asked = replace(asked, answer=self._answer(asked))
        self._asked[asked.host, namespace, place.namespace] = asked
        service = asked.answer[0]
        if not service:
            return NOWHERE
        wanted: Tree = destination.get("port", {})
        number = wanted.get("number") or self._hosts.named_port(service, wanted.get("name", ""))
        port = self._hosts.port(service, number, place.port)
        subset = destination.get("subset", "")
        unknown = subset and subset not in self._destinations.of(service, place.namespace).subsets
        return NOWHERE if port is None or unknown else Target(service.key, port, subset)

    def l4(self, each: Resource, place: Place) -> Iterator[L4Route]:
        """TLS that is not terminated, then TCP."""
        for kind in ("tls", "tcp"):
            for index, route in enumerate(each.spec.get(kind, ())):
                chosen = here(route.get("match", ()), place, each.meta.namespace)
                if chosen is not None:
                    yield L4Route(
                        name=f"{each.key}/{kind}-{index}",
                        shares=parts.shares(route["route"], lambda given: self.target(given, each, place)),
                        matches=tuple(map(_l4_match, chosen)),
                    )


def gateways(each: Resource) -> list[str]:
    """As written: `mesh`, a name, or `namespace/name`."""
    listed: list[str] = each.spec.get("gateways") or [MESH]
    return listed


def gateway_keys(each: Resource) -> list[str]:
    return [gateway_key(name, each.meta.namespace) for name in gateways(each)]


def gateway_key(name: str, namespace: str) -> str:
    return name if name == MESH or "/" in name else f"{namespace}/{name}"


def here(given: Iterable[Tree], place: Place, namespace: str) -> list[Tree] | None:
    """Those matches that can be true at a place; none is always. None: there are some, and all are for elsewhere.
    `namespace`: of the document, for gateways that are named without one."""
    listed = list(given)
    chosen = [each for each in listed if _is_here(each, place, namespace)]
    return chosen if chosen or not listed else None


def _is_here(given: Tree, place: Place, namespace: str) -> bool:
    names = [gateway_key(name, namespace) for name in given.get("gateways", ())]
    return (not names or place.gateway in names) and not given.get("sourceLabels")


def joined(routes: Iterable[HttpRoute]) -> tuple[HttpRoute, ...]:
    """Up to the first that takes every request."""
    found: list[HttpRoute] = []
    for route in routes:
        found.append(route)
        if not route.matches or HttpMatch() in route.matches:
            break
    return tuple(found)


def _narrowed(outer: list[Tree], inner: list[Tree]) -> list[Tree] | None:
    """Both must be true. None: they contradict each other everywhere."""
    if not outer or not inner:
        return outer or inner
    found = [both for one in outer for other in inner if (both := _both(one, other)) is not None]
    return found or None


_ONE: Final = ("scheme", "method", "authority", "port", "sourceNamespace")
_MAPS: Final = ("headers", "withoutHeaders", "queryParams", "sourceLabels")


def _both(outer: Tree, inner: Tree) -> Tree | None:
    """None: no request is both, or it takes an expression to say so (Istio refuses these, too)."""
    found: dict[str, Any] = {**outer, **inner}
    for name in _ONE:
        if name in outer and name in inner and outer[name] != inner[name]:
            return None
    for name in _MAPS:
        one, other = outer.get(name, {}), inner.get(name, {})
        if any(one[key] != other[key] for key in one.keys() & other.keys()):
            return None
        if one or other:
            found[name] = {**one, **other}
    for name, joint in (("uri", _both_uris), ("gateways", _both_gateways)):
        if outer.get(name) and inner.get(name):
            if (both := joint(outer, inner)) is None:
                return None
            found[name] = both
    return found


def _both_uris(outer: Tree, inner: Tree) -> Tree | None:
    one: Tree = outer["uri"]
    other: Tree = inner["uri"]
    if outer.get("ignoreUriCase", False) != inner.get("ignoreUriCase", False):
        return None
    if one == other:
        return one
    if "regex" in one or "regex" in other:
        return None
    for wide, narrow in ((one, other), (other, one)):
        if "prefix" in wide and narrow.get("exact", narrow.get("prefix", "")).startswith(wide["prefix"]):
            return narrow
    return None


def _both_gateways(outer: Tree, inner: Tree) -> list[str] | None:
    return [name for name in inner["gateways"] if name in outer["gateways"]] or None


def _l4_match(given: Tree) -> L4Match:
    return L4Match(
        port=given.get("port", 0),
        sni=tuple(name.lower() for name in given.get("sniHosts", ())),
        networks=_networks(given.get("destinationSubnets", ())),
        sources=_networks(filter(None, [given.get("sourceSubnet")])),
        source_namespace=given.get("sourceNamespace", ""),
    )


def _networks(listed: Iterable[str]) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(each, strict=False) for each in listed)
