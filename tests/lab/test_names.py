"""Names in pods: what is asked on port 53 the mesh answers, over UDP and TCP, whoever was asked and though nobody is
there; a ServiceEntry's host without an address gets one that leads to its endpoints."""

import json
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lab import daemons
from lab.apps import HTTP_PORT
from lab.processes import wait_until

pytestmark = pytest.mark.lab
SOON_S = 60.0
REPOSITORY = str(Path(__file__).parents[2])
NOBODY = {4: "10.255.255.53", 6: "fd00:255::53"}
ALLOCATED = {4: ip_network("240.240.0.0/16"), 6: ip_network("2001:2::/48")}
ASK = """
import json, socket, sys
sys.path.insert(0, sys.argv[1])
from tests import dnswire
server, way, name, rtype = sys.argv[2:]
family = socket.AF_INET6 if ":" in server else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if way == "tcp" else socket.SOCK_DGRAM) as client:
    client.settimeout(30)
    if way == "tcp":
        client.connect((server, 53))
        answer = dnswire.ask_stream(client, name, rtype)
    else:
        answer = dnswire.ask_datagram(client, server, name, rtype)
print(json.dumps([answer.rcode, answer.texts]))
"""


@pytest.fixture(params=["udp", "tcp"])
def ask(mesh, pods, version, request):
    """Asks, of a server that does not exist, for addresses of the family; (rcode, answers)."""

    def asked(name, rtype="A" if version == 4 else "AAAA", pod="web-1"):
        command = [sys.executable, "-c", ASK, REPOSITORY, NOBODY[version], request.param, name, rtype]
        done = mesh.exec(pods[pod], command)
        assert done.returncode == 0, done.stderr
        return tuple(json.loads(done.stdout))

    return asked


def entry(host, addresses):
    endpoints = [{"address": address} for address in addresses]
    port = {"number": HTTP_PORT, "name": "http", "protocol": "TCP"}
    spec = {
        "hosts": [host],
        "ports": [port],
        "resolution": "STATIC",
        "location": "MESH_EXTERNAL",
        "endpoints": endpoints,
    }
    about = {"name": "ledger", "namespace": "shop"}
    return {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": about, "spec": spec}


@pytest.mark.parametrize("name", ["web", "web.shop", "web.shop.svc.cluster.local"])
def test_a_service_is_known_by_every_spelling_of_its_name(mesh, ask, version, name):
    assert ask(name) == ("NOERROR", [mesh.vip("web", version).strip("[]")])


def test_a_service_record_names_the_port(ask):
    rcode, answers = ask("web", "SRV")
    assert rcode == "NOERROR"
    assert "web.shop.svc.cluster.local:80" in answers


def test_an_address_has_its_services_name(mesh, ask, version):
    pointer = ip_address(mesh.vip("web", version).strip("[]")).reverse_pointer
    assert ask(pointer, "PTR") == ("NOERROR", ["web.shop.svc.cluster.local"])


def test_the_meshs_names_go_on_without_the_control_plane(mesh, ask, version):
    daemons.stop(mesh.daemons["controlplane"])
    try:
        assert ask("web.shop") == ("NOERROR", [mesh.vip("web", version).strip("[]")])
    finally:
        mesh.start_controlplane()


def test_a_host_without_an_address_gets_one_that_leads_to_its_endpoints(mesh, pods, ask, version):
    target = pods["plain-2"]
    mesh.apply("ledger", entry("ledger.example.com", [target.address(4), target.address(6)]))
    wait_until("the name is known", lambda: ask("ledger.example.com")[1], SOON_S)
    rcode, (found,) = ask("ledger.example.com")
    assert rcode == "NOERROR"
    assert ip_address(found) in ALLOCATED[version]
    host = f"[{found}]" if version == 6 else found
    seen = mesh.http(pods["web-1"], f"{host}:{HTTP_PORT}")
    assert seen.split()[-1] == "plain-2"
