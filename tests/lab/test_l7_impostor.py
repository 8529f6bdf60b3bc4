"""Who answers at an endpoint's address must be who the registry says: a certificate of the mesh alone is not enough."""

import sys

import pytest

from lab.processes import wait_until
from lab.proxies import LABELS
from tests.lab.mall import EFFECT_S, NAMESPACE, edge
from tests.lab.test_hbone_by_hand import ask_ca, new_key

pytestmark = pytest.mark.lab
HOST = "bare.example"
EDGE = edge(HOST, "bare")


def certificate(mesh, account):
    """With its key, as node2's tunnel gets one for its pods of that account."""
    key = new_key()
    answer = ask_ca(mesh, f"spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}", key, "node2")
    return "".join(answer["chain"]) + key


class Endpoint:
    """A pod of the account `ratings` that says of itself that it speaks HBONE, and a service of its own."""

    def __init__(self, mall, name, waypoint):
        self.mall, self.name, self.process, self.times = mall, name, None, 0
        self.pod = mall.pod(f"{name}-1", "node2", name, account="ratings", **LABELS)
        before = mall.version
        mall.service(name, waypoint)
        mall.settled(before)

    def serve_as(self, account):
        """With a real certificate of the mesh."""
        mesh = self.mall.mesh
        self.stop()
        self.times += 1
        log = f"impostor-{self.name}-{self.times}"
        pem = mesh.layout.dir / f"{log}.pem"
        pem.write_text(certificate(mesh, account))
        self.process = mesh.start_in(self.pod, log, [sys.executable, "-m", "tests.lab.impostor", str(pem)])
        self.log = mesh.layout.log(log)
        wait_until(f"{log} listens", lambda: "listening" in self.log.read_text(), EFFECT_S)

    @property
    def connects(self):
        """How many believed it."""
        return self.log.read_text().count("CONNECT")

    def stop(self):
        if self.process:
            self.process.kill()


@pytest.fixture(scope="module", params=["waypoint", "gateway"])
def asked(request, built_mall):
    """An endpoint, who asks it and how."""
    mall = built_mall
    if request.param == "waypoint":
        endpoint = Endpoint(mall, "claimed", "way")
        yield endpoint, mall.way, lambda: mall.ask(f"http://{mall.vip('claimed')}/").status
    else:
        endpoint = Endpoint(mall, "bare", "")
        there = ["--connect-to", f"{HOST}:80:{mall.gate.ip}:80"]
        client = mall.mesh.pods["plain-1"]
        yield endpoint, mall.gate, lambda: mall.ask(f"http://{HOST}/", *there, client=client).status
    endpoint.stop()
    mall.mesh.delete_pod(endpoint.pod.name)
    mall.mesh.remove(f"service-{NAMESPACE}-{endpoint.name}")


def refused_names(mall, proxy):
    """Peers whose certificate was good and another's."""
    stats = mall.admin("/envoy/stats?filter=cluster.tunnels.ssl.fail_verify_san", proxy)
    return int(stats.rpartition(":")[2])


def test_an_endpoint_with_the_certificate_of_another_is_refused(mall, asked):
    endpoint, proxy, status = asked
    mall.apply(EDGE)
    endpoint.serve_as("ratings")
    mall.until(lambda: status() == 200)
    assert endpoint.connects
    endpoint.serve_as("reviews")
    before = refused_names(mall, proxy)
    assert status() == 503
    assert refused_names(mall, proxy) > before
    assert not endpoint.connects
    endpoint.serve_as("ratings")
    mall.until(lambda: status() == 200)
