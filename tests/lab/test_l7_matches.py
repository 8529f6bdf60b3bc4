"""Which fields of a match choose the way of a connection in a waypoint's Envoy: true ones lead aside, others do not."""

import pytest

from lab import apps
from lab.processes import wait_until
from tests.lab.mall import NAMESPACE
from tests.waypoint.certificates import server_certificate

pytestmark = pytest.mark.lab

RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: fork}}
spec:
  hosts: [fork, two.example, '*.three.example']
  {kind}: [{{match: [{match}], route: [{{destination: {{host: aside}}}}]}}]
"""
PAIR = server_certificate("fork.example")


def port(mall, name, version, waypoint="", **ports):
    """A service of one of reviews' pods with a port beside that for HTTP."""
    if name not in mall.mesh.vips:
        vip = mall.mesh.add_service(name, {80: apps.HTTP_PORT}, NAMESPACE)
        document = mall.service_document(name, vip, waypoint, **ports)
        document["spec"]["selector"] = {"app": "reviews", "version": version}
        mall.mesh.apply(f"service-{NAMESPACE}-{name}", document)


@pytest.fixture(scope="module")
def fork(built_mall, tmp_path_factory):
    """`fork` is reviews' v1, through the waypoint; `aside` is v2. At 6000 HTTP, not known as such; at 8443 TLS."""
    mall, directory = built_mall, tmp_path_factory.mktemp("certificates")
    (directory / "pair.pem").write_text(PAIR.chain)
    (directory / "pair.key").write_text(PAIR.key)
    for version, pod in zip(("v1", "v2"), mall.reviews, strict=True):
        secure = [*apps.echo(pod.name, version, 8443), str(directory / "pair.pem"), str(directory / "pair.key")]
        mall.mesh.start_in(pod, f"secure-{pod.name}", secure)
        mall.listens(pod, 8443)
    ports = {"tcp_raw": (6000, apps.HTTP_PORT), "tls_web": (8443, 8443), "untold": (9443, 8443)}
    port(mall, "aside", "v2", **ports)
    port(mall, "fork", "v1", "way", **ports)
    for number in (6000, 8443, 9443):
        wait_until(f"fork answers at {number}", lambda number=number: versions(mall, number, 1) == {"v1"}, 60)
        wait_until(f"aside answers at {number}", lambda number=number: versions(mall, number, 1, "aside") == {"v2"}, 60)
    return mall


def versions(mall, number, times=3, service="fork", name="fork.example", client=None):
    """Who answers new connections; TLS asks for the server `name`."""
    fresh = ["-H", "Connection: close", "-m", "5"]
    if number == 6000:
        return set(mall.counted(f"http://{mall.vip(service)}:{number}/", times, *fresh, client=client))
    where = ["-k", "--resolve", f"{name}:{number}:{mall.vip(service)}"]
    return set(mall.counted(f"https://{name}:{number}/", times, *fresh, *where, client=client))


MATCHES = {
    "namespace": ("sourceNamespace: mall", "sourceNamespace: elsewhere"),
    "destination": ("destinationSubnets: [{vip}]", "destinationSubnets: [192.0.2.0/24]"),
    "source": ("sourceSubnet: {alice}", "sourceSubnet: {bob}"),
    "all": (
        "destinationSubnets: [192.0.2.0/24, {vip}], sourceNamespace: mall, port: 6000",
        "destinationSubnets: [{vip}], sourceNamespace: elsewhere, port: 6000",
    ),
}


@pytest.mark.parametrize(("true", "untrue"), MATCHES.values(), ids=MATCHES)
def test_a_connection_takes_a_way_only_where_its_match_is_true(mall, fork, true, untrue):
    places = {"vip": mall.vip("fork"), "alice": mall.alice.ip, "bob": mall.bob.ip}
    mall.apply(RULE.format(kind="tcp", match=f"{{{true.format(**places)}}}"))
    mall.until(lambda: versions(mall, 6000) == {"v2"})
    mall.apply(RULE.format(kind="tcp", match=f"{{{untrue.format(**places)}}}"), again=True)
    mall.until(lambda: versions(mall, 6000) == {"v1"})


@pytest.mark.parametrize("number", [8443, 9443], ids=["TLS", "a port that says no protocol"])
def test_a_server_name_chooses_the_way_through_a_waypoint(mall, fork, number):
    mall.apply(RULE.format(kind="tls", match="{sniHosts: [two.example, '*.three.example']}"))
    mall.until(lambda: versions(mall, number, name="two.example") == {"v2"})
    assert versions(mall, number, name="x.three.example") == {"v2"}
    assert versions(mall, number, name="fork.example") == {"v1"}
