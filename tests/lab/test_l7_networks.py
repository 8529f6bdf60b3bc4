"""Endpoints of another network, from a waypoint and from a gateway: a tunnel to them inside of one to their gateway."""

import sys

import pytest

from lab.processes import wait_until
from lab.proxies import LABELS
from tests.lab.mall import EFFECT_S, NAMESPACE, edge
from tests.lab.test_l7_impostor import certificate

pytestmark = pytest.mark.lab
HOST = "far.example"
# Nobody is at that address: what arrives came through the gateway.
FAR = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: passage
  labels: {{topology.istio.io/network: far}}
  annotations: {{gateway.istio.io/service-account: reviews}}
spec:
  gatewayClassName: istio-remote
  addresses: [{{type: IPAddress, value: {gateway}}}]
  listeners: [{{name: cross-network, port: 15008, protocol: HBONE}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: distant, annotations: {{ambient.istio.io/redirection: enabled}}}}
spec: {{address: 192.0.2.77, network: far, serviceAccount: ratings, labels: {{app: {service}, version: v9}}}}
---
"""
EDGE = edge(HOST, "overseas")
SUBSET = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: distant}
spec: {host: distant, subsets: [{name: v9, labels: {version: v9}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: distant}
spec: {hosts: [distant], http: [{route: [{destination: {host: distant, subset: v9}}]}]}
---
"""


class Passage:
    """The other network's gateway, and who is behind it."""

    def __init__(self, mall):
        self.mall, self.process, self.times = mall, None, 0
        self.pod = mall.pod("passage-1", "node2", "passage", account="passage", **LABELS)
        for name, waypoint in (("distant", "way"), ("overseas", "")):
            mall.service(name, waypoint)

    def opens(self, gateway, endpoint):
        """With certificates of these accounts, as node2 gets them for its pods."""
        mesh = self.mall.mesh
        self.closes()
        self.times += 1
        pems = [mesh.layout.dir / f"passage-{self.times}-{end}.pem" for end in ("outer", "inner")]
        for pem, account in zip(pems, (gateway, endpoint), strict=True):
            pem.write_text(certificate(mesh, account))
        log = f"passage-{self.times}"
        self.process = mesh.start_in(self.pod, log, [sys.executable, "-m", "tests.lab.farside", *map(str, pems)])
        self.log = mesh.layout.log(log)
        wait_until(f"{log} listens", lambda: "listening" in self.log.read_text(), EFFECT_S)

    def closes(self):
        if self.process:
            self.process.kill()

    def asked(self, who):
        return {line.split()[1] for line in self.log.read_text().split("\n") if line.endswith(f" {who}")}


@pytest.fixture(scope="module")
def passage(built_mall):
    found = Passage(built_mall)
    yield found
    found.closes()
    built_mall.mesh.delete_pod(found.pod.name)
    for name in ("distant", "overseas"):
        built_mall.mesh.remove(f"service-{NAMESPACE}-{name}")


@pytest.fixture(params=["waypoint", "gateway"])
def status(request, mall, passage):
    """How a service is asked whose only endpoint is far, and its name."""
    if request.param == "waypoint":
        mall.apply(FAR.format(gateway=passage.pod.ip, service="distant"))
        return "distant", lambda: mall.ask(f"http://{mall.vip('distant')}/", "-m", "10").status
    mall.apply(FAR.format(gateway=passage.pod.ip, service="overseas") + EDGE)
    there = ["--connect-to", f"{HOST}:80:{mall.gate.ip}:80", "-m", "10"]
    return "overseas", lambda: mall.ask(f"http://{HOST}/", *there, client=mall.mesh.pods["plain-1"]).status


def test_what_is_far_is_reached_through_its_networks_gateway_as_who_it_is(mall, passage, status):
    service, ask = status
    passage.opens("reviews", "ratings")
    mall.until(lambda: ask() == 200)
    name = f"{service}.{NAMESPACE}.svc.cluster.local:80"
    assert (passage.asked("gateway"), passage.asked("endpoint")) == ({name}, {name})
    passage.opens("ratings", "ratings")
    assert ask() == 503
    assert not passage.asked("gateway"), "somebody else than the network's gateway"
    passage.opens("reviews", "reviews")
    mall.until(lambda: passage.asked("gateway") or ask() == 200)
    assert ask() == 503
    assert not passage.asked("endpoint"), "the gateway itself is not who is behind it"
    passage.opens("reviews", "ratings")
    mall.until(lambda: ask() == 200)


def test_what_is_far_is_no_endpoint_of_a_subset(mall, passage):
    """Which endpoint it becomes is decided there: it might be of another version."""
    passage.opens("reviews", "ratings")
    mall.apply(FAR.format(gateway=passage.pod.ip, service="distant"))
    mall.until(lambda: mall.ask(f"http://{mall.vip('distant')}/", "-m", "10").status == 200)
    mall.apply(SUBSET)
    mall.until(lambda: mall.ask(f"http://{mall.vip('distant')}/", "-m", "10").status == 503)
