"""The world as a proxy looks at it: which endpoints serve a port of a service, and who they are. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesh.ids import SpiffeId
from mesh.model import AppProtocol, Gateway, Service, Workload, World

HTTP = frozenset({AppProtocol.HTTP11, AppProtocol.HTTP2, AppProtocol.GRPC})


@dataclass(frozen=True, slots=True)
class Serving:
    workload: Workload
    port: int

    @property
    def identity(self) -> str:
        each = self.workload
        return str(SpiffeId.for_workload(each.trust_domain, each.namespace, each.service_account))


class View:
    """`endpoints`: by service key. O(workloads) to make."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoints: dict[str, list[Workload]] = defaultdict(list)
        for workload in world.workloads.values():
            for key in workload.services:
                self.endpoints[key].append(workload)

    def service(self, key: str) -> Service | None:
        return self.world.services.get(key)

    def serving(self, key: str, port: int, labels: Mapping[str, str] | None = None) -> Iterator[Serving]:
        """Workloads in the order of their uids; with all of these labels."""
        for workload in sorted(self.endpoints.get(key, ()), key=lambda each: each.uid):
            if labels and any(workload.labels.get(name) != value for name, value in labels.items()):
                continue
            for each in workload.services[key]:
                if each.service_port == port and (workload.addresses or workload.hostname):
                    yield Serving(workload, each.target_port)

    def waypoints(self, gateway: Gateway) -> Iterator[Serving]:
        """Where a waypoint listens."""
        if gateway.address:
            for workload in self.world.workloads.values():
                if gateway.address in workload.addresses:
                    yield Serving(workload, gateway.port)
            return
        yield from self.serving(f"{gateway.namespace}/{gateway.hostname}", gateway.port)
