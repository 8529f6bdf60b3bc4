"""Our tunnels and control plane under Istio's own node agent and CNI plugin. Only where its programs are at hand."""

import os
import sys

import pytest

from lab import documents
from lab.apps import HTTP_PORT
from lab.documents import PodSpec
from lab.istio_node import WHERE, IstioNodeCluster
from lab.layout import Layout
from lab.needs import REPOSITORY
from lab.processes import wait_until
from lab.watchdog import guarded

pytestmark = [pytest.mark.lab, pytest.mark.skipif(WHERE not in os.environ, reason="no real istio-cni is at hand")]

SOON_S = 60.0
NOBODY = "192.0.2.53"
ASK = f"""
import socket, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests import dnswire
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(30)
    print(*dnswire.ask_datagram(client, *sys.argv[1:]).texts)
"""


@pytest.fixture(scope="module")
def mesh():
    with guarded(Layout(f"c{os.getpid()}")) as layout:
        yield IstioNodeCluster.up(layout.name, nodes=2, pods=2)


def until(what, ready):
    return wait_until(what, ready, SOON_S)


def certificates(mesh, node):
    return {each["identity"] for each in mesh.ask(f"ztunnel-{node}", "/config_dump")["certificates"]}


def test_pods_speak_through_the_tunnel_with_both_identities(mesh, web, version):
    assert mesh.http(web[0], web[1].at(HTTP_PORT, version)).endswith("web-2")
    assert mesh.http(web[0], mesh.vip("web", version)).split()[-1] in ("web-1", "web-2")
    log = mesh.layout.access_log("node1")
    wanted = [f'"{side}.identity":"{pod.identity}"' for side, pod in (("src", web[0]), ("dst", web[1]))]
    until("both are in the log", lambda: all(each in log.read_text() for each in wanted))


def test_both_pods_are_marked_and_their_certificates_are_there(mesh, web):
    for pod in web:
        until("it is marked", lambda pod=pod: mesh.annotation("shop", pod.name) == "enabled")
        until("its certificate is there", lambda pod=pod: pod.identity in certificates(mesh, pod.node))


def test_names_are_answered_by_the_tunnel(mesh, web):
    done = mesh.exec(web[0], [sys.executable, "-c", ASK, NOBODY, "web.shop.svc.cluster.local"])
    assert done.stdout.strip() == mesh.vip("web"), done.stderr


def test_strict_refuses_plaintext_and_lets_the_nodes_probes_in(mesh, web, version):
    mesh.apply("strict", documents.strict("shop"))
    try:
        at = web[1].at(HTTP_PORT, version)
        until("plaintext is refused", lambda: mesh.http_status(mesh.layout.control, at) == 0)
        assert mesh.http_status(mesh.layout.node_netns("node2"), at) == 200, (
            "Istio's rules mark what the node itself sends"
        )
        assert mesh.reaches(*web, version)
    finally:
        mesh.remove("strict")
    until("plaintext is taken again", lambda: mesh.http_status(mesh.layout.control, at) == 200)


def test_a_tunnel_that_restarts_is_told_of_every_pod_again(mesh, web):
    mesh.daemons["ztunnel-node1"].kill()
    mesh.start_tunnel("node1")
    for one, other in (web, web[::-1]):
        until("they reach each other", lambda one=one, other=other: mesh.reaches(one, other))


def test_after_the_agent_was_killed_pods_come_and_go_as_before(mesh, web):
    mesh.istio["node1"].kill()
    assert mesh.reaches(*web), "running pods go on"
    mesh.start_istio_cni("node1")
    late = mesh.add_pod(PodSpec("late", "node1", app="late"))
    assert mesh.reaches(late, web[1])
    until("its certificate is there", lambda: late.identity in certificates(mesh, "node1"))
    mesh.delete_pod("late")
    until("its certificate is gone", lambda: late.identity not in certificates(mesh, "node1"))
