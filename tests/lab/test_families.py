"""Pods of one family beside pods of both: who reaches whom, and that nothing of a missing family gets in the way."""

import pytest

from lab import documents
from lab.access import AccessLog
from lab.apps import HTTP_PORT
from lab.documents import PodSpec
from lab.processes import wait_until
from lab.wire import Capture

pytestmark = pytest.mark.lab

SOON_S = 60.0
CALLS = 24


@pytest.fixture(scope="module")
def single(mesh):
    """By version a pod on node2 that has only addresses of that family; both serve the service `single`."""
    mesh.add_service("single", {80: HTTP_PORT})
    made = {v: mesh.add_pod(PodSpec(f"only{v}", "node2", app="single", versions=(v,))) for v in (4, 6)}
    for node in mesh.nodes:
        wait_until(f"{node} knows both", lambda n=node: known(mesh, n) >= {"only4", "only6"}, SOON_S)
    yield made
    for pod in made.values():
        mesh.delete_pod(pod.name)
    mesh.remove("service-shop-single")
    del mesh.vips["single"], mesh.vips6["single"]


def known(mesh, node):
    """The names of pods that the node's tunnel has with a tunnel and the service."""
    workloads = mesh.ask(f"ztunnel-{node}", "/config_dump")["workloads"]
    return {w["name"] for w in workloads if w["protocol"] == "HBONE" and w["status"] == "Healthy"}


def test_a_pod_of_one_family_is_in_the_mesh_with_that_address_only(mesh, single, version):
    pod = single[version]
    assert [":" in ip for ip in pod.ips] == [version == 6]
    seen = mesh.ask("ztunnel-node1", "/config_dump")["workloads"]
    assert [each["workloadIps"] for each in seen if each["name"] == pod.name] == [list(pod.ips)]


def test_it_is_reached_and_reaches_others_with_its_own_address(mesh, single, version):
    pod, other = single[version], mesh.pods["web-1"]
    assert mesh.http(other, pod.at(HTTP_PORT)) == f"{other.address(version)} {pod.name}"
    assert mesh.http(pod, other.at(HTTP_PORT, version)) == f"{pod.ip} {other.name}"


def test_what_it_says_crosses_the_wire_in_a_tunnel_of_its_family(mesh, single, version):
    log = AccessLog(mesh, "node1")
    with Capture(mesh, f"single{version}") as seen:
        mesh.http(single[version], mesh.pods["web-3"].at(HTTP_PORT, version), "-d", "a-marker-in-the-body")
    assert seen.count(b"a-marker-in-the-body") == 0
    assert {p.dport for p in seen.packets if p.opens and p.between_pods} <= {15008}
    log.wait_for(direction="inbound", src_workload=single[version].name, dst_workload="web-3")


def test_a_service_gives_it_only_endpoints_of_its_own_family(mesh, single, version):
    names = {mesh.http(single[version], mesh.vip("single", version)) for _ in range(CALLS)}
    assert names == {f"{single[version].ip} {single[version].name}"}


def test_a_pod_of_both_families_reaches_every_endpoint_by_either_address(mesh, single, version):
    names = {mesh.http(mesh.pods["web-1"], mesh.vip("single", version)).split()[-1] for _ in range(CALLS)}
    assert names == {"only4", "only6"}


def test_a_policy_by_address_judges_the_family_that_is_used(mesh, pods, version, single):
    client, server = pods["plain-1"], single[version]
    blocks = [{"from": [{"source": {"ipBlocks": [client.address(version)]}}]}]
    mesh.apply("no-plain-1", documents.authorization("shop", "no-plain-1", "DENY", "single", blocks))
    wait_until("plain-1 is denied", lambda: not mesh.reaches(client, server), SOON_S)
    assert mesh.reaches(client, single[10 - version]), "the other family's address is not named"
    assert mesh.reaches(pods["plain-2"], server)
