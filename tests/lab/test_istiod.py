"""Our tunnels and agents under a real istiod: its xDS, its CA, its debug pages. Only where its program is at hand."""

import os
import re
from pathlib import Path

import pytest
import yaml

from lab import documents
from lab.apps import HTTP_PORT
from lab.layout import Layout
from lab.processes import wait_until
from lab.real import WHERE, IstiodCluster
from lab.watchdog import guarded

pytestmark = [pytest.mark.lab, pytest.mark.skipif(WHERE not in os.environ, reason="no real istiod is at hand")]

SOON_S = 60.0
DOCUMENTS = list(yaml.safe_load_all((Path(__file__).parent / "istio_documents.yaml").read_text()))
WAYPOINT = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/waypoint/status"
ADDRESS = {"type": "Hostname", "value": "wp.shop.svc.cluster.local"}


@pytest.fixture(scope="module")
def mesh():
    with guarded(Layout(f"i{os.getpid()}")) as layout:
        yield IstiodCluster.up(layout.name, nodes=2, pods=2)


def until(what, ready):
    return wait_until(what, ready, SOON_S)


def dump(mesh, node):
    return mesh.ask(f"ztunnel-{node}", "/config_dump")


def protocol(mesh, node, pod):
    return [each["protocol"] for each in dump(mesh, node)["workloads"] if each["uid"] == pod.uid]


def policies(mesh, node):
    return {each["name"] for each in dump(mesh, node)["policies"]}


def refused(mesh):
    """What any tunnel has said against any push, ever."""
    logs = [mesh.layout.log(f"ztunnel-{node}").read_text() for node in mesh.nodes]
    return [line for log in logs for line in log.splitlines() if re.search("configuration refused|not asked for", line)]


def in_step(mesh):
    """Whether every tunnel has acknowledged what istiod sent it last."""
    said = mesh.istiod("syncz")
    sent = [each for tunnel in said for each in tunnel["resources"].values()]
    return len(said) == len(mesh.nodes) and all(each["sent"] == each["acked"] for each in sent)


def test_pods_are_hbone_and_speak_by_identities_of_istiods_ca(mesh, web):
    for pod in web:
        for node in mesh.nodes:
            until("it is HBONE", lambda node=node, pod=pod: protocol(mesh, node, pod) == ["HBONE"])
    for version in (4, 6):
        assert mesh.http(web[0], web[1].at(HTTP_PORT, version)).endswith("web-2")
        assert mesh.http(web[0], mesh.vip("web", version)).split()[-1] in ("web-1", "web-2")
    identity = '"dst.identity":"spiffe://cluster.local/ns/shop/sa/web-2"'
    until("it went through the tunnel", lambda: identity in mesh.layout.access_log("node1").read_text())


def test_a_policy_takes_effect_and_ends(mesh, web):
    mesh.apply("policy", documents.deny_from("shop", "not-web-1", "web", "cluster.local/ns/shop/sa/web-1"))
    try:
        until("web-1 is refused", lambda: not mesh.reaches(*web))
    finally:
        mesh.remove("policy")
    until("web-1 is let in again", lambda: mesh.reaches(*web))


def test_every_shape_of_document_is_taken_and_traffic_goes_on(mesh, web):
    for document in DOCUMENTS:
        mesh.apply(f"{document['kind']}-{document['metadata']['name']}", document)
    mesh.api.ask("PATCH", WAYPOINT, {"status": {"addresses": [ADDRESS]}})
    for node in mesh.nodes:
        until("the last policy is there", lambda node=node: "a3-l7-allow" in policies(mesh, node))
    until("istiod has all acknowledged", lambda: in_step(mesh))
    assert refused(mesh) == []
    assert mesh.reaches(*web)
    assert mesh.http_status(mesh.layout.control, web[1].at(HTTP_PORT)) == 0, "STRICT: not from outside"


def test_without_istiod_everything_goes_on_and_after_it_what_went_meanwhile_goes(mesh, web):
    mesh.apply("late", documents.deny_from("shop", "late", "nobody", "cluster.local/ns/shop/sa/nobody"))
    until("the policy is there", lambda: "late" in policies(mesh, "node1"))
    mesh.istiod_process.kill()
    assert mesh.reaches(*web)
    mesh.remove("late")
    mesh.start_istiod()
    for node in mesh.nodes:
        until("the policy is gone", lambda node=node: "late" not in policies(mesh, node))
    until("istiod has all acknowledged", lambda: in_step(mesh))
    assert refused(mesh) == []
    assert mesh.reaches(*web)
