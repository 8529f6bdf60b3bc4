"""Pods, WorkloadEntries, ServiceEntry endpoints and EndpointSlices to workloads, named and filled as istiod does.

Pure.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import InitVar, dataclass, field, replace
from ipaddress import ip_address
from typing import Final

from controlplane.objects import (
    AuthorizationPolicy,
    Endpoint,
    EndpointSlice,
    KubernetesGateway,
    Labels,
    Mesh,
    Meta,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Pod,
    Resolution,
    ServiceEntry,
    SliceEndpoint,
    WorkloadEntry,
)
from controlplane.translate.gateways import GATEWAY_ACCOUNT, GATEWAY_GROUP, GATEWAY_TRUST_DOMAIN, NETWORK, Gateways
from controlplane.translate.inventory import Inventory
from controlplane.translate.policies import Policies
from controlplane.translate.services import Offered, Services
from mesh.ids import make_uid, pod_uid
from mesh.membership import HOST_ADDRESSES, HOST_CGROUP, HOST_NODE, is_member
from mesh.model import IPAddress, Locality, OutboundPolicy, Port, Workload, WorkloadType

REDIRECTION: Final = "ambient.istio.io/redirection"
NATIVE_TUNNEL: Final = "networking.istio.io/tunnel"
FINISHED: Final = frozenset({"Succeeded", "Failed"})
_TOPOLOGY: Final = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
_NAME_LABELS: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS: Final = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
_CRON_JOB: Final = re.compile(r"(.+)-\d{8,10}")
DEFAULT_TRUST_DOMAIN: Final = "cluster.local"

Served = dict[str, tuple[Port, ...]]
_NOTHING: Final[Served] = {}


def enrolled(pod: Pod, namespace_labels: Labels) -> bool:
    """Whether the node agent brings this pod into the mesh."""
    about = pod.meta
    return is_member(
        about.namespace,
        about.labels,
        about.annotations,
        host_network=pod.host_network,
        namespace_labels=lambda: namespace_labels,
    )


def _labels(namespace: Namespace | None) -> Labels:
    return namespace.meta.labels if namespace else {}


Context = tuple[Namespace | None, tuple[Offered, ...], tuple[AuthorizationPolicy | PeerAuthentication, ...]]
# A pod, its context, its node, what slices say of it, what became of it.
_Made = tuple[Pod, Context, Node | None, Served, Workload]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """A namespace's pods, what all of them depend on, and what became of them. No other object has the id of a pod that
    is held."""

    pods: tuple[Pod, ...] = ()
    nodes: tuple[Object, ...] = ()
    context: Context | None = None
    sliced: bool = False
    made: dict[int, _Made] = field(default_factory=dict)
    by_uid: dict[str, Workload] = field(default_factory=dict)
    joining: frozenset[tuple[str, str, str]] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Workloads:
    """Builds every workload of one world, or takes a pod's from `before` when all that it depends on is the same."""

    inventory: Inventory
    mesh: Mesh
    services: Services
    policies: Policies
    network: str
    gateways: Gateways
    before: InitVar[Workloads | None] = None
    joining: set[tuple[str, str, str]] = field(default_factory=set)
    """As `World` has it."""
    _groups: dict[str, _Group] = field(default_factory=dict)
    _known: dict[str, _Group] = field(default_factory=dict)

    def __post_init__(self, before: Workloads | None) -> None:
        same = before and before.network == self.network and before.gateways.same_as(self.gateways)
        if before and same and before._outbound() == self._outbound():
            self._known.update(before._groups)

    def by_uid(self) -> dict[str, Workload]:
        sliced = Slices(self.inventory, self.services)
        with_slices = {namespace for namespace, _ in sliced.of_pod}
        found: dict[str, Workload] = {}
        for namespace, pods in self.inventory.pods_of.items():
            group = self._group(namespace, pods, sliced if namespace in with_slices else None)
            self._groups[namespace] = group
            self.joining.update(group.joining)
            found.update(group.by_uid)
        self._known.clear()
        found.update((each.uid, each) for each in self._other(sliced))
        return found

    def _other(self, sliced: Slices) -> Iterator[Workload]:
        for entry in self.inventory.workload_entries:
            yield self._workload_entry(entry)
        for service_entry in self.inventory.service_entries:
            yield from self._inline(service_entry)
        for each, endpoint, address, served in sliced.outside():
            yield self._outside(each, endpoint, address, served)
        for gateway in self.gateways.remote:
            yield from self._gateway(gateway)

    def _group(self, namespace: str, pods: tuple[Pod, ...], sliced: Slices | None) -> _Group:
        """The one before, when nothing of it can have changed; else made of what stayed and what did not."""
        before, nodes = self._known.get(namespace, _Group()), self.inventory.nodes_shelf
        context = self._context(namespace, before.context)
        if (before.pods, before.nodes, before.context) == (pods, nodes, context) and not sliced and not before.sliced:
            return before
        group = _Group(pods, nodes, context, sliced=sliced is not None)
        joining = set()
        for pod in pods:
            own = sliced.of_pod.get((namespace, pod.meta.name), _NOTHING) if sliced else _NOTHING
            held = before.made.get(id(pod))
            node = self.inventory.nodes.get(pod.node)
            if held is None or held[1] is not context or held[2] is not node or held[3] != own:
                held = pod, context, node, own, self._pod(pod, own)
            group.made[id(pod)] = held
            if pod.phase not in FINISHED:
                group.by_uid[held[4].uid] = held[4]
                if self.mesh.marked and not held[4].hbone and enrolled(pod, _labels(context[0])):
                    joining.add((pod.node, namespace, pod.service_account))
        return replace(group, joining=frozenset(joining))

    def _gateway(self, gateway: KubernetesGateway) -> Iterator[Workload]:
        """Another network's gateway, whose pods nobody here knows."""
        about = gateway.meta
        for address in gateway.addresses:
            yield replace(
                self._base(about, {}, about.name),
                uid=make_uid(
                    self.mesh.cluster_id,
                    GATEWAY_GROUP,
                    "Gateway",
                    about.namespace,
                    about.name,
                    str(address),
                ),
                addresses=(address,),
                network=about.labels[NETWORK],
                trust_domain=about.annotations.get(GATEWAY_TRUST_DOMAIN, self.mesh.trust_domain),
                service_account=about.annotations.get(GATEWAY_ACCOUNT, about.name),
                hbone=True,
                native_tunnel=True,
            )

    def _outbound(self, namespace: str = "") -> OutboundPolicy:
        """The root namespace speaks for all that say nothing."""
        own, root = (self.inventory.namespaces.get(name) for name in (namespace, self.mesh.root_namespace))
        words = (each.outbound for each in (own, root) if each)
        return next((word for word in words if word), OutboundPolicy.UNSET)

    def _context(self, namespace: str, before: Context | None) -> Context:
        """All that a namespace's pods depend on beside themselves; the same object as before when it is equal."""
        about = self.inventory.namespaces.get(namespace)
        offered, policies = self.services.in_namespace.get(namespace, ()), self.policies.concerning(namespace)
        context = about, tuple(offered), tuple(policies)
        return before if before == context else context

    def _pod(self, pod: Pod, sliced: Served) -> Workload:
        about = pod.meta
        namespace = self.inventory.namespaces.get(about.namespace)
        native = about.labels.get(NATIVE_TUNNEL) == "http"
        name, kind = _owner(pod)
        return replace(
            self._base(about, about.labels, name),
            application_tunnel=self.gateways.application_tunnel(about),
            outbound=self._outbound(about.namespace),
            uid=pod_uid(self.mesh.cluster_id, about.namespace, about.name),
            addresses=pod.ips,
            network=(network := about.labels.get(NETWORK, self.network)),
            network_gateway=self.gateways.of_network(network, self.network),
            service_account=pod.service_account,
            node=pod.node,
            hbone=native or self._captured(pod, namespace),
            native_tunnel=native,
            host_network=pod.host_network,
            healthy=pod.ready,
            workload_type=kind,
            locality=self._locality(pod.node),
            services={**self.services.of(about.namespace, about.labels, pod.ports, is_pod=True), **sliced},
        )

    def _captured(self, pod: Pod, namespace: Namespace | None) -> bool:
        """Meant for the mesh, and in it. A pod whose label goes is out at once: what comes in the clear is still let in
        by its tunnel, until the agent has taken the rules out."""
        if self.mesh.marked and pod.meta.annotations.get(REDIRECTION) != "enabled":
            return False
        return enrolled(pod, _labels(namespace))

    def _base(self, about: Meta, labels: Labels, workload_name: str) -> Workload:
        trust_domain = self.mesh.trust_domain
        return Workload(
            uid="",
            name=about.name,
            namespace=about.namespace,
            cluster_id=self.mesh.cluster_id,
            network=self.network,
            trust_domain="" if trust_domain == DEFAULT_TRUST_DOMAIN else trust_domain,
            canonical_name=_first(labels, _NAME_LABELS, workload_name),
            canonical_revision=_first(labels, _REVISION_LABELS, "latest"),
            workload_name=workload_name,
            waypoint=self.gateways.of_workload(about, labels, self.inventory.namespaces.get(about.namespace)),
            policies=self.policies.of(about.namespace, labels),
            egress_policies=self.policies.egress_of(about.namespace, labels),
            labels=labels,
        )

    def _locality(self, node: str) -> Locality | None:
        found = self.inventory.nodes.get(node)
        parts = [found.meta.labels.get(name, "") if found else "" for name in _TOPOLOGY]
        return Locality(*parts) if any(parts) else None

    def _workload_entry(self, entry: WorkloadEntry) -> Workload:
        about, endpoint = entry.meta, entry.endpoint
        labels = {**about.labels, **endpoint.labels}
        entry_of = replace(
            self._endpoint(about, labels, endpoint),
            uid=make_uid(self.mesh.cluster_id, "networking.istio.io", "WorkloadEntry", about.namespace, about.name),
            services=self.services.of(about.namespace, labels, endpoint.ports),
        )
        return self._on_host(about, entry_of) if HOST_CGROUP in about.annotations else entry_of

    def _on_host(self, about: Meta, found: Workload) -> Workload:
        """A control group of a host: its node's tunnel serves it, and may ask for its certificate."""
        node = about.annotations.get(HOST_NODE, "")
        return replace(
            found,
            addresses=tuple(dict.fromkeys((*found.addresses, *further_addresses(about)))),
            node=node,
            hbone=True,
            locality=found.locality or self._locality(node),
        )

    def _endpoint(self, about: Meta, labels: Labels, endpoint: Endpoint) -> Workload:
        native = labels.get(NATIVE_TUNNEL) == "http"
        return replace(
            self._base(about, labels, about.name),
            addresses=(endpoint.address,) if endpoint.address else (),
            hostname=endpoint.hostname,
            network=(network := endpoint.network or labels.get(NETWORK, self.network)),
            network_gateway=self.gateways.of_network(network, self.network),
            service_account=endpoint.service_account or "default",
            hbone=native or about.annotations.get(REDIRECTION) == "enabled",
            native_tunnel=native,
            locality=endpoint.locality,
            capacity=endpoint.weight,
        )

    def _inline(self, entry: ServiceEntry) -> Iterator[Workload]:
        about = entry.meta
        for endpoint, offered in _entry_endpoints(entry, self.services.of_entry[about.namespace, about.name]):
            yield replace(
                self._endpoint(about, {**about.labels, **endpoint.labels}, endpoint),
                uid=make_uid(
                    self.mesh.cluster_id,
                    "networking.istio.io",
                    "ServiceEntry",
                    about.namespace,
                    about.name,
                    endpoint.text,
                ),
                services={each.service.key: each.serve(endpoint.ports) for each in offered},
            )

    def _outside(self, each: EndpointSlice, endpoint: SliceEndpoint, address: IPAddress, served: Served) -> Workload:
        about = replace(each.meta, name=each.service)
        return replace(
            self._base(about, {}, each.service),
            uid=make_uid(
                self.mesh.cluster_id, "discovery.k8s.io", "EndpointSlice", about.namespace, each.meta.name, str(address)
            ),
            addresses=(address,),
            node=endpoint.node,
            healthy=endpoint.ready,
            locality=self._locality(endpoint.node) or (Locality(zone=endpoint.zone) if endpoint.zone else None),
            services=served,
        )


class Slices:
    """Endpoints that EndpointSlices name for services without a selector: pods, and addresses that are no pod's."""

    def __init__(self, inventory: Inventory, services: Services) -> None:
        self.of_pod: dict[tuple[str, str], Served] = defaultdict(dict)
        self._outside: list[tuple[EndpointSlice, SliceEndpoint, IPAddress, Served]] = []
        self._by_address: dict[IPAddress, Pod] = {}
        without = [each for each in services.offered if not each.selector and not each.from_entry]
        if inventory.slices and without:
            self._by_address = {address: pod for pod in inventory.pods if not pod.host_network for address in pod.ips}
        for offered in without:
            for each in inventory.slices.get((offered.service.namespace, offered.service.name), ()):
                self._take(each, offered)

    def outside(self) -> Iterable[tuple[EndpointSlice, SliceEndpoint, IPAddress, Served]]:
        return self._outside

    def _take(self, each: EndpointSlice, offered: Offered) -> None:
        ports = ((port, each.ports.get(port.name)) for port in offered.ports)
        served = {offered.service.key: tuple(Port(p.number, target, p.protocol) for p, target in ports if target)}
        balancing = offered.service.load_balancing
        for endpoint in each.endpoints:
            for address in endpoint.addresses:
                pod = self._by_address.get(address)
                if not (pod or endpoint.pod):
                    self._outside.append((each, endpoint, address, served))
                elif endpoint.ready or (balancing and balancing.allow_unhealthy):
                    where = (pod.meta.namespace, pod.meta.name) if pod else (each.meta.namespace, endpoint.pod)
                    self.of_pod[where].update(served)


def _entry_endpoints(entry: ServiceEntry, own: list[Offered]) -> Iterator[tuple[Endpoint, list[Offered]]]:
    """Inline endpoints serve all hosts; without any, resolution DNS makes each host its own endpoint."""
    for endpoint in entry.endpoints:
        yield endpoint, own
    by_name = entry.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    if by_name and not entry.endpoints and entry.selector is None:
        for offered in own:
            host = offered.service.hostname
            yield Endpoint(None, host, {}, {}, "", None, None, ""), [offered]


def further_addresses(about: Meta) -> Iterator[IPAddress]:
    """What is no address is passed over: the node's agent refuses the workload and says so."""
    for text in about.annotations.get(HOST_ADDRESSES, "").split(","):
        with suppress(ValueError):
            yield ip_address(text.strip())


def _owner(pod: Pod) -> tuple[str, WorkloadType]:
    """A ReplicaSet's name is its Deployment's and the template's hash; a CronJob's Job ends with the minute."""
    owner = pod.owner
    template = pod.meta.labels.get("pod-template-hash", "")
    if owner and owner.kind == "ReplicaSet" and template and owner.name.endswith(f"-{template}"):
        return owner.name.removesuffix(f"-{template}"), WorkloadType.DEPLOYMENT
    if owner and owner.kind == "Job":
        cron = _CRON_JOB.fullmatch(owner.name)
        return (cron[1], WorkloadType.CRONJOB) if cron else (owner.name, WorkloadType.JOB)
    return pod.meta.name, WorkloadType.POD


def _first(labels: Labels, names: Iterable[str], default: str) -> str:
    return next((labels[name] for name in names if labels.get(name)), default)
