"""The world as a proxy looks at it: which endpoints serve a port of a service, and who they are. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_network
from operator import attrgetter

from controlplane.l7.model import Proxy
from mesh.ids import SpiffeId
from mesh.model import HOSTNAME_SUFFIX, AppProtocol, Gateway, IPAddress, Port, Service, Vip, Workload, World

HTTP = frozenset({AppProtocol.HTTP11, AppProtocol.HTTP2, AppProtocol.GRPC})
_GATEWAY = "gateway.networking.k8s.io/gateway-name"


@dataclass(frozen=True, slots=True)
class Serving:
    workload: Workload
    port: int

    @property
    def identity(self) -> str:
        each = self.workload
        return str(SpiffeId.for_workload(each.trust_domain, each.namespace, each.service_account))


# All but what else it serves: a pod that one more service selects is the same endpoint of its other services.
_own = attrgetter(*(each.name for each in fields(Workload) if each.name != "services"))


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An endpoint of one service, which it serves at `ports`; equal while the service's endpoint is the same."""

    workload: Workload
    ports: tuple[Port, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Member) or self.ports != other.ports:
            return False
        return is_same_endpoint(self.workload, other.workload)

    __hash__ = None  # type: ignore[assignment]


def is_same_endpoint(one: Workload, other: Workload) -> bool:
    """To a service that both serve at the same ports."""
    return one is other or bool(_own(one) == _own(other))


class View:
    """`endpoints`: by service key. O(workloads) to make."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoints: dict[str, list[Workload]] = defaultdict(list)
        self._by_place: dict[tuple[str, IPAddress], Workload] = {}
        for workload in world.workloads.values():
            for key in workload.services:
                self.endpoints[key].append(workload)

    def service(self, key: str) -> Service | None:
        """Also of a workload's uid: the workload as the one endpoint of a service of its own, at its own ports."""
        found = self.world.workloads.get(key)
        return _alone(found) if found else self.world.services.get(key)

    def members(self, key: str) -> tuple[Member, ...]:
        """All that decides about a service's endpoints."""
        alone = self.world.workloads.get(key)
        return (Member(alone),) if alone else tuple(Member(each, each.services[key]) for each in self.endpoints[key])

    def behind(self, proxy: Proxy) -> Iterator[Workload]:
        """Workloads whose own addresses are reached through this waypoint."""
        own = f"{proxy.name}.{proxy.namespace}.{HOSTNAME_SUFFIX}"
        for workload in self.world.workloads.values() if proxy.workloads else ():
            place = workload.waypoint
            if not place or not workload.addresses or self.is_far(workload):
                continue
            by_name = place.hostname == own and place.namespace == proxy.namespace
            if by_name or any(_is_of(each.workload, proxy) for each in self._at(place)):
                yield workload

    def _at(self, place: Gateway) -> Iterator[Serving]:
        yield from self.waypoints(place) if place.address else ()

    def serving(self, key: str, port: int, labels: Mapping[str, str] | None = None) -> Iterator[Serving]:
        """Workloads in the order of their uids; with all of these labels."""
        if alone := self.world.workloads.get(key):
            yield Serving(alone, port)
        for workload in sorted(self.endpoints.get(key, ()), key=lambda each: each.uid):
            if labels and any(workload.labels.get(name) != value for name, value in labels.items()):
                continue
            for each in workload.services[key]:
                if each.service_port == port and (workload.addresses or workload.hostname):
                    yield Serving(workload, each.target_port)

    def is_far(self, workload: Workload) -> bool:
        """In another network, where its address is not ours to dial."""
        return workload.network != self.world.network

    def gateway(self, workload: Workload) -> Serving | None:
        """That of a far one's network; None: nobody knows it."""
        place = workload.network_gateway
        if not place or not place.address or not self.is_far(workload):
            return None
        if not self._by_place:
            for each in self.world.workloads.values():
                self._by_place.update(((each.network, address), each) for address in each.addresses)
        found = self._by_place.get((place.network, place.address))
        return Serving(found, place.port) if found else None

    def waypoints(self, gateway: Gateway) -> Iterator[Serving]:
        """Where a waypoint listens."""
        if gateway.address:
            for workload in self.world.workloads.values():
                if gateway.address in workload.addresses:
                    yield Serving(workload, gateway.port)
            return
        yield from self.serving(f"{gateway.namespace}/{gateway.hostname}", gateway.port)


def _is_of(workload: Workload, proxy: Proxy) -> bool:
    return (workload.namespace, workload.labels.get(_GATEWAY)) == (proxy.namespace, proxy.name)


def _alone(workload: Workload) -> Service:
    """Of its ports those are known that a service has: they say the protocol."""
    ports = {port.target_port: port.protocol for served in workload.services.values() for port in served}
    return Service(
        name=workload.name,
        namespace=workload.namespace,
        hostname=workload.hostname or str(workload.addresses[0]),
        vips=tuple(Vip(workload.network, ip_network(address)) for address in workload.addresses),
        ports=tuple(Port(number, number, protocol) for number, protocol in sorted(ports.items())),
    )
