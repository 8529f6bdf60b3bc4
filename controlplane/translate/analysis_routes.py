"""What is wrong with VirtualServices that are each valid: hosts, subsets, gateways that do not exist, rules that never
match, conflicts between them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final

from controlplane.documents import ISTIO_GATEWAY
from controlplane.objects import Resource
from controlplane.translate.analysis import of
from controlplane.translate.hosts import fqdn, intersection
from controlplane.translate.http_routes import CLAIMS
from controlplane.translate.inventory import Inventory
from controlplane.translate.l7 import Layer7
from controlplane.translate.messages import Message, Step, listed
from controlplane.translate.virtual_services import MESH, gateway_key, gateway_keys, gateways

Tree = Mapping[str, Any]
Path = tuple[Step, ...]
_KIND: Final = "VirtualService"
# Parts of a match that say nothing of requests.
_ASIDE: Final = ("name", "statPrefix")


def analyze(inventory: Inventory, layer7: Layer7) -> Iterator[Message]:
    known = {each.key: each for each in inventory.resources(ISTIO_GATEWAY)}
    names = {each.key for each in inventory.resources(_KIND)}
    for each in inventory.resources(_KIND):
        for destination, path in _destinations(each):
            yield from _destination(each, destination, path, layer7)
        yield from _bound(each, known)
        yield from _elsewhere(each)
        for index, route in enumerate(each.spec.get("http", ())):
            if "delegate" in route:
                where = route["delegate"].get("namespace") or each.meta.namespace
                key = f"{where}/{route['delegate'].get('name', '')}"
                if key not in names:
                    yield of(_KIND, each.meta, "IST0101", "delegate", key, path=("spec", "http", index, "delegate"))
        for part in ("http", "tls", "tcp"):
            yield from _unreachable(each, part)
        yield from _claims(each, layer7)
    yield from _conflicts(inventory)


def _destinations(each: Resource) -> Iterator[tuple[Tree, Path]]:
    for part in ("http", "tls", "tcp"):
        for index, route in enumerate(each.spec.get(part, ())):
            path: Path = ("spec", part, index)
            for number, share in enumerate(route.get("route", ())):
                yield share["destination"], (*path, "route", number, "destination")
            for number, mirror in enumerate(route.get("mirrors", ())):
                yield mirror["destination"], (*path, "mirrors", number, "destination")
            if "mirror" in route:
                yield route["mirror"], (*path, "mirror")


def _destination(each: Resource, destination: Tree, path: Path, layer7: Layer7) -> Iterator[Message]:
    host, about = destination["host"], each.meta
    service = layer7.hosts.find(host, about.namespace)
    if not service:
        yield of(_KIND, about, "IST0101", "host", host, path=(*path, "host"))
        return
    subset = destination.get("subset", "")
    if subset and subset not in layer7.destinations.of(service, about.namespace).subsets:
        said = f"{host}+{subset}"
        yield of(_KIND, about, "IST0101", "host+subset in destinationrule", said, path=(*path, "subset"))
    numbers = [port.service_port for port in service.ports]
    wanted: Tree = destination.get("port", {})
    if wanted.get("number") and numbers and wanted["number"] not in numbers:
        yield of(_KIND, about, "IST0101", "host:port", f"{host}:{wanted['number']}", path=(*path, "port"))
    if not wanted and len(numbers) > 1:
        yield of(_KIND, about, "IST0112", host, listed(numbers), path=path)


def _elsewhere(each: Resource) -> Iterator[Message]:
    """Matches for gateways that the document is not bound to: they never match. A delegate's are its root's."""
    own, bound = each.meta.namespace, gateway_keys(each)
    for part in ("http", "tls", "tcp") if each.spec.get("hosts") else ():
        for index, route in enumerate(each.spec.get(part, ())):
            for number, match in enumerate(route.get("match", ())):
                path: Path = ("spec", part, index, "match", number, "gateways")
                for name in match.get("gateways", ()):
                    if gateway_key(name, own) not in bound:
                        yield of(_KIND, each.meta, "IST0101", "gateway", name, path=path)


def _bound(each: Resource, known: Mapping[str, Resource]) -> Iterator[Message]:
    for index, (written, key) in enumerate(zip(gateways(each), gateway_keys(each), strict=True)):
        if key == MESH:
            continue
        if key not in known:
            yield of(_KIND, each.meta, "IST0101", "gateway", written, path=("spec", "gateways", index))
            continue
        own = each.meta.namespace
        lost = [host for host in each.spec.get("hosts", ()) if not _served(fqdn(host, own), own, known[key])]
        if lost:
            yield of(_KIND, each.meta, "IST0132", listed(lost), each.meta.name, written, path=("spec", "hosts"))


def _served(host: str, namespace: str, gateway: Resource) -> bool:
    for server in gateway.spec.get("servers", ()):
        for each in server["hosts"]:
            where, _, name = each.rpartition("/")
            where = gateway.meta.namespace if where == "." else where
            if where in ("", "*", namespace) and intersection(name.lower(), host):
                return True
    return False


def _unreachable(each: Resource, part: str) -> Iterator[Message]:
    """What comes after a rule without matches, and matches that stand twice."""
    seen: list[tuple[Tree, str]] = []
    everything = False
    for index, rule in enumerate(each.spec.get(part, ())):
        name = f'"{rule["name"]}"' if rule.get("name") else f"#{index}"
        path: Path = ("spec", part, index)
        matches: list[Tree] = rule.get("match", [])
        if everything:
            yield of(_KIND, each.meta, "IST0130", name, "only the last rule can have no matches", path=path)
        everything = everything or not matches
        covered = [(number, before) for number, match in enumerate(matches) if (before := _covering(seen, match))]
        if matches and len(covered) == len(matches):
            yield of(_KIND, each.meta, "IST0130", name, "all matches used by prior rules", path=path)
        for number, before in covered:
            yield of(_KIND, each.meta, "IST0131", name, f"#{number}", before, path=(*path, "match", number))
        seen += [(match, name) for match in matches]


def _covering(seen: list[tuple[Tree, str]], match: Tree) -> str | None:
    """The rule of the first match that is true whenever this one is."""
    return next((name for before, name in seen if _covers(before, match)), None)


def _covers(before: Tree, match: Tree) -> bool:
    for key, wanted in before.items():
        if key in _ASIDE or wanted == match.get(key):
            continue
        if key != "uri" or "prefix" not in wanted:
            return False
        uri: Tree = match.get("uri", {})
        if "regex" in uri or not uri.get("exact", uri.get("prefix", "")).startswith(wanted["prefix"]):
            return False
    return True


def _claims(each: Resource, layer7: Layer7) -> Iterator[Message]:
    keys = [
        key
        for route in each.spec.get("http", ())
        for match in route.get("match", ())
        for part in ("headers", "withoutHeaders")
        for key in match.get(part, ())
        if key.startswith(CLAIMS)
    ]
    for proxy in layer7.model.proxies.values() if keys else ():
        for rules, routes in (*((s.rules, s.http) for s in proxy.services), *_hosts_of(proxy)):
            mine = any(route.name.startswith(each.key) and route.matches for route in routes)
            if mine and not rules.jwt:
                yield of(_KIND, each.meta, "IST0149", keys[0], proxy.key, proxy.name, path=("spec", "http"))
                break


def _hosts_of(proxy: Any) -> Iterator[tuple[Any, Any]]:
    for server in proxy.servers:
        for host in server.virtual_hosts:
            yield proxy.rules, host.routes


def _conflicts(inventory: Inventory) -> Iterator[Message]:
    """Two for one host of the mesh are joined here, but in an order that nobody wrote down."""
    by_host: dict[str, list[Resource]] = defaultdict(list)
    for each in inventory.resources(_KIND):
        for host in each.spec.get("hosts", ()) if MESH in gateways(each) else ():
            by_host[fqdn(host, each.meta.namespace)].append(each)
    for host, found in by_host.items():
        rivals = {id(a): a for one, other in combinations(found, 2) if _both_seen(one, other) for a in (one, other)}
        keys = ",".join(sorted(each.key for each in rivals.values()))
        for each in rivals.values():
            yield of(_KIND, each.meta, "IST0109", keys, host, path=("spec", "hosts"))


def _both_seen(one: Resource, other: Resource) -> bool:
    """Whether some namespace sees both."""
    places = [_seen_from(each) for each in (one, other)]
    return any("*" in place for place in places) or bool(places[0] & places[1])


def _seen_from(each: Resource) -> set[str]:
    listed = each.spec.get("exportTo") or ["*"]
    return {each.meta.namespace if place == "." else place for place in listed}
