"""Our tunnels and agents under a real istiod: its xDS, its CA, its debug pages. Only where its program is at hand."""

import os

import pytest

from lab import cluster, documents
from lab.apps import HTTP_PORT
from lab.layout import Layout
from lab.processes import wait_until
from lab.real import WHERE, IstiodCluster
from lab.watchdog import Guard

pytestmark = [pytest.mark.lab, pytest.mark.skipif(WHERE not in os.environ, reason="no real istiod is at hand")]

SOON_S = 30.0


@pytest.fixture(scope="module")
def mesh():
    layout = Layout(f"i{os.getpid()}")
    guard = Guard(layout)
    try:
        yield IstiodCluster.up(layout.name, nodes=2, pods=2)
    finally:
        cluster.down(layout)
        guard.release()


@pytest.fixture
def web(mesh):
    return mesh.pods["web-1"], mesh.pods["web-2"]


def until(what, ready):
    return wait_until(what, ready, SOON_S)


def known(mesh, node, pod):
    for each in mesh.ask(f"ztunnel-{node}", "/config_dump")["workloads"]:
        if each["uid"] == pod.uid:
            return each
    return {}


def log_of(mesh, node):
    return mesh.layout.access_log(node).read_text()


def test_pods_are_hbone_and_speak_by_identities_of_istiods_ca(mesh, web):
    for pod in web:
        for node in mesh.nodes:
            until("it is HBONE", lambda node=node, pod=pod: known(mesh, node, pod).get("protocol") == "HBONE")
    assert mesh.http(web[0], web[1].at(HTTP_PORT)).endswith("web-2")
    assert mesh.http(web[0], mesh.vip("web")).split()[-1] in ("web-1", "web-2")
    until(
        "it went through the tunnel",
        lambda: '"dst.identity":"spiffe://cluster.local/ns/shop/sa/web-2"' in log_of(mesh, "node1"),
    )


def test_nothing_is_refused(mesh):
    for node in mesh.nodes:
        log = mesh.layout.log(f"ztunnel-{node}").read_text()
        assert "configuration refused" not in log
        assert "not asked for" not in log


def test_a_policy_takes_effect(mesh, web):
    mesh.apply("policy", documents.deny_from("shop", "not-web-1", "web", "cluster.local/ns/shop/sa/web-1"))
    try:
        until("web-1 is refused", lambda: not mesh.reaches(*web))
    finally:
        mesh.remove("policy")
    until("web-1 is let in again", lambda: mesh.reaches(*web))


def test_istiod_knows_its_tunnels_and_sees_what_they_acknowledge(mesh):
    status = mesh.istiod("syncz")
    print(status)
