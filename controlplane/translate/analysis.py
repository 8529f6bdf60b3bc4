"""What is wrong between documents that are each valid: the rest of `istioctl analyze` that means something here. Pure.

Routes are in `analysis_routes.py`, what the messages say in `messages.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, Final

from controlplane.documents import ISTIO_GATEWAY
from controlplane.l7.routes import Compare
from controlplane.objects import AuthorizationPolicy, KubernetesService, Meta, Resource, ServiceEntry
from controlplane.translate.attached import selector, target_refs
from controlplane.translate.hosts import fqdn, intersection, matches
from controlplane.translate.inventory import Inventory, selects
from controlplane.translate.kubernetes import PROTOCOLS
from controlplane.translate.l7 import Layer7
from controlplane.translate.messages import Message, Step, listed, text_of
from mesh.model import AppProtocol

Tree = Mapping[str, Any]
_ATTACHED: Final = ("RequestAuthentication", "Telemetry", "EnvoyFilter")
_GATEWAY_NAME: Final = "gateway.networking.k8s.io/gateway-name"
_NO_VERIFICATION: Final = ("SIMPLE", "MUTUAL")


def of(kind: str, about: Meta, code: str, *arguments: Any, path: tuple[Step, ...] = ()) -> Message:
    return Message(code, kind, about.namespace, about.name, text_of(code, *arguments), path)


def analyze(inventory: Inventory, layer7: Layer7) -> Iterator[Message]:
    for rule in inventory.resources("DestinationRule"):
        yield from _destination_rule(rule, layer7)
    yield from _gateways(inventory, layer7)
    yield from _service_entries(inventory.service_entries)
    for service in inventory.services:
        yield from _port_names(service)
    yield from _policies(inventory, layer7)
    yield from _telemetries(inventory, layer7)
    yield from _unreachable(layer7)
    for notice in layer7.notices:
        if not notice.good:
            about = Meta(notice.name, notice.namespace)
            why = notice.message or f"as {notice.parent} sees it"
            yield of(notice.kind, about, "IST0171", notice.type, notice.reason, why)


def workloads(inventory: Inventory, namespace: str = "") -> Iterator[Mapping[str, str]]:
    """Their labels. `namespace` "": everywhere."""
    for pod in inventory.pods:
        if namespace in ("", pod.meta.namespace):
            yield pod.meta.labels
    for entry in inventory.workload_entries:
        if namespace in ("", entry.meta.namespace):
            yield {**entry.meta.labels, **entry.endpoint.labels}


def _destination_rule(rule: Resource, layer7: Layer7) -> Iterator[Message]:
    about, host = rule.meta, rule.spec["host"]
    name = fqdn(host, about.namespace)
    services = [each for each in layer7.world.services.values() if matches(name, each.hostname.lower())]
    if not services:
        yield of(rule.kind, about, "IST0174", host, path=("spec", "host"))
    yield from _verification(rule, host)
    for index, subset in enumerate(rule.spec.get("subsets", ()) if services else ()):
        labels = subset.get("labels", {})
        if labels and not any(selects(labels, each) for service in services for each in layer7.endpoints(service)):
            yield of(rule.kind, about, "IST0173", subset["name"], path=("spec", "subsets", index))


def _verification(rule: Resource, host: str) -> Iterator[Message]:
    policy: Tree = rule.spec.get("trafficPolicy", {})
    named = (rule.meta.name, rule.meta.namespace)
    if mode := _unverified(policy.get("tls", {})):
        yield of(rule.kind, rule.meta, "IST0128", *named, mode, host, path=("spec", "trafficPolicy", "tls"))
    for index, port in enumerate(policy.get("portLevelSettings", ())):
        if mode := _unverified(port.get("tls", {})):
            path = ("spec", "trafficPolicy", "portLevelSettings", index, "tls")
            yield of(rule.kind, rule.meta, "IST0129", *named, mode, host, port["port"]["number"], path=path)


def _unverified(tls: Tree) -> str:
    verified = tls.get("caCertificates") or tls.get("credentialName") or tls.get("insecureSkipVerify")
    mode: str = tls.get("mode", "")
    return mode if mode in _NO_VERIFICATION and not verified else ""


def _gateways(inventory: Inventory, layer7: Layer7) -> Iterator[Message]:
    gateways = inventory.resources(ISTIO_GATEWAY)
    for gateway in gateways:
        about, chosen = gateway.meta, gateway.spec.get("selector", {})
        if chosen and not any(selects(chosen, each) for each in workloads(inventory)):
            said = ",".join(f"{key}={value}" for key, value in chosen.items())
            yield of(gateway.kind, about, "IST0101", "selector", said, path=("spec", "selector"))
        for index, server in enumerate(gateway.spec.get("servers", ())):
            name = server.get("tls", {}).get("credentialName", "")
            if name and not layer7.has_secret(name, gateway):
                path = ("spec", "servers", index, "tls", "credentialName")
                yield of(gateway.kind, about, "IST0161", about.name, about.namespace, path=path)
    for one, other in combinations(gateways, 2):
        yield from _conflict(one, other)


def _conflict(one: Resource, other: Resource) -> Iterator[Message]:
    """Two that claim the same host at the same port of the same pods."""
    chosen, others = one.spec.get("selector", {}), other.spec.get("selector", {})
    if not selects(chosen, others) and not selects(others, chosen):
        return
    for index, server in enumerate(one.spec.get("servers", ())):
        for rival in other.spec.get("servers", ()):
            names = [(a.rpartition("/")[2], b.rpartition("/")[2]) for a in server["hosts"] for b in rival["hosts"]]
            common = sorted({both for a, b in names if (both := intersection(a, b))})
            port = server["port"]["number"]
            if common and port == rival["port"]["number"] and server.get("bind") == rival.get("bind"):
                said = ",".join(f"{key}={value}" for key, value in chosen.items())
                where = ("spec", "servers", index)
                yield of(one.kind, one.meta, "IST0145", other.key, said, port, ",".join(common), path=where)
                yield of(one.kind, other.meta, "IST0145", one.key, said, port, ",".join(common))


def _unreachable(layer7: Layer7) -> Iterator[Message]:
    """Services with endpoints in networks that no Gateway leads to: those are left out."""
    lost: dict[str, dict[str, None]] = defaultdict(dict)
    for each in layer7.world.workloads.values():
        if each.network != layer7.world.network and not each.network_gateway:
            for key in each.services:
                lost[key][each.network] = None
    for key, networks in lost.items():
        service, entry = layer7.world.services[key], layer7.hosts.entry(key)
        about = entry.meta if entry else Meta(service.name, service.namespace)
        why = f"no Gateway of class istio-remote with an address leads to network {', '.join(sorted(networks))}"
        kind = "ServiceEntry" if entry else "Service"
        yield of(kind, about, "IST0171", "EndpointsReachable", "NetworkUnknown", why)


def _service_entries(entries: Iterable[ServiceEntry]) -> Iterator[Message]:
    by_port: dict[tuple[str, int], list[tuple[ServiceEntry, AppProtocol]]] = defaultdict(list)
    for entry in entries:
        by_address = any(port.protocol in (AppProtocol.TCP, AppProtocol.UNKNOWN) for port in entry.ports)
        if by_address and not entry.addresses:
            yield of("ServiceEntry", entry.meta, "IST0134", path=("spec", "ports"))
        for host in entry.hosts:
            for port in entry.ports:
                by_port[host, port.number].append((entry, port.protocol))
    for (host, number), found in by_port.items():
        protocols = sorted({str(protocol) for _, protocol in found})
        if len(protocols) > 1:
            names = ", ".join(sorted(f"{each.meta.namespace}/{each.meta.name}" for each, _ in found))
            for entry, _ in found:
                yield of("ServiceEntry", entry.meta, "IST0177", names, host, number, ", ".join(protocols))


def _port_names(service: KubernetesService) -> Iterator[Message]:
    for index, port in enumerate(service.ports):
        unknown = port.protocol is AppProtocol.UNKNOWN and port.name.partition("-")[0] not in PROTOCOLS
        if unknown and not service.external_name:
            path = ("spec", "ports", index)
            yield of("Service", service.meta, "IST0118", port.name, port.number, port.target, path=path)


def _policies(inventory: Inventory, layer7: Layer7) -> Iterator[Message]:
    for policy in inventory.authorization_policies:
        kind, about = "AuthorizationPolicy", policy.meta
        if policy.l7 and policy.l7.provider and policy.l7.provider not in layer7.providers.authorizers:
            yield of(kind, about, "IST0101", "provider", policy.l7.provider, path=("spec", "provider", "name"))
        yield from _namespaces(policy, inventory)
        yield from _selecting(kind, about, policy.selector, inventory, layer7)
    for kind in _ATTACHED:
        for each in inventory.resources(kind):
            yield from _selecting(kind, each.meta, selector(each.spec), inventory, layer7)
    for peer in inventory.peer_authentications:
        yield from _selecting("PeerAuthentication", peer.meta, peer.selector, inventory, layer7)


def _namespaces(policy: AuthorizationPolicy, inventory: Inventory) -> Iterator[Message]:
    """Those that sources name and that nothing lies in."""
    known = {*inventory.namespaces, *inventory.used_namespaces}
    for index, rule in enumerate(policy.l7.rules if policy.l7 else ()):
        for number, source in enumerate(rule.sources):
            for text in (*source.namespaces.any, *source.namespaces.none):
                if text.how is Compare.EXACT and text.value not in known:
                    path = ("spec", "rules", index, "from", number)
                    yield of("AuthorizationPolicy", policy.meta, "IST0101", "namespace", text.value, path=path)


def _selecting(
    kind: str, about: Meta, chosen: Mapping[str, str], inventory: Inventory, layer7: Layer7
) -> Iterator[Message]:
    if not chosen:
        return
    waypoint = chosen.get(_GATEWAY_NAME, "")
    if waypoint and kind != "PeerAuthentication" and f"{about.namespace}/{waypoint}" in layer7.model.proxies:
        yield of(kind, about, "IST0166", waypoint, path=("spec", "selector"))
        return
    namespace = "" if about.namespace == layer7.root else about.namespace
    if not any(selects(chosen, each) for each in workloads(inventory, namespace)):
        said = ",".join(f"{key}={value}" for key, value in sorted(chosen.items()))
        code = ("IST0101", "selector", said) if kind == "Telemetry" else ("IST0127", said)
        yield of(kind, about, *code, path=("spec", "selector"))


def _telemetries(inventory: Inventory, layer7: Layer7) -> Iterator[Message]:
    wide: dict[str, list[Resource]] = defaultdict(list)
    for each in inventory.resources("Telemetry"):
        if not target_refs(each.spec) and not selector(each.spec):
            wide[each.meta.namespace].append(each)
        for part in ("tracing", "accessLogging", "metrics"):
            for index, given in enumerate(each.spec.get(part, ())):
                if "providers" in given:
                    yield from _providers(each, given["providers"], ("spec", part, index), layer7)
    for namespace, found in wide.items():
        names = listed(each.meta.name for each in found)
        for each in found if len(found) > 1 else ():
            yield of(each.kind, each.meta, "IST0160", names, namespace)


def _providers(each: Resource, named: list[Tree], path: tuple[Step, ...], layer7: Layer7) -> Iterator[Message]:
    if not named:
        yield of(each.kind, each.meta, "IST0157", each.meta.name, each.meta.namespace, path=path)
    for number, provider in enumerate(named):
        if provider["name"] not in layer7.providers.names:
            where = (*path, "providers", number, "name")
            yield of(each.kind, each.meta, "IST0101", "provider", provider["name"], path=where)
