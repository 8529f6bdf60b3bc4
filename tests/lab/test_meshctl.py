"""`meshctl` against a running mesh: what it prints is what is going on."""

import json

import pytest
from click.testing import CliRunner

from lab.apps import ECHO_PORT
from lab.probes import Probe
from lab.processes import wait_until
from meshctl.main import cli

pytestmark = pytest.mark.lab


@pytest.fixture
def meshctl(mesh):
    def run(command, *arguments, node="node1"):
        where = ["--lab", mesh.layout.name, "--node", node, "-o", "json"]
        result = CliRunner().invoke(cli, [command, *where, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)["items"]

    return run


def test_workloads_are_the_labs_pods_with_the_way_to_reach_them(mesh, meshctl):
    expected = {
        pod.name: (list(pod.ips), pod.node, "TCP" if pod.name.startswith("plain") else "HBONE")
        for pod in mesh.pods.values()
    }

    def shown():
        return {w["name"]: (w["workloadIps"], w["node"], w["protocol"]) for w in meshctl("workloads")}

    wait_until("the tunnel knows the last pod", lambda: len(shown()) == len(expected), 10.0)
    assert shown() == expected


def test_the_service_has_every_healthy_endpoint(mesh):
    where = ["--lab", mesh.layout.name, "--node", "node2"]
    lines = CliRunner().invoke(cli, ["services", *where]).output.splitlines()
    assert lines[1].split() == ["shop", "web", f"{mesh.vips['web']},{mesh.vips6['web']}", "None", "4/4"]


def test_certificates_are_those_of_the_nodes_pods_and_valid(mesh, meshctl):
    for pod in (mesh.pods["web-1"], mesh.pods["web-2"]):
        states = {c["identity"]: c["state"] for c in meshctl("certificates", node=pod.node)}
        assert states[pod.identity] == "Available"
    where = ["--lab", mesh.layout.name, "--node", "node1"]
    rows = CliRunner().invoke(cli, ["certificates", *where]).output.splitlines()[1:]
    leaves = [row.split() for row in rows if " Leaf " in row]
    assert leaves
    assert all(leaf[2:4] == ["Available", "true"] for leaf in leaves)


def test_an_open_connection_is_shown_on_both_sides(mesh, meshctl):
    client, server = mesh.pods["web-1"], mesh.pods["web-2"]
    with Probe(mesh, client, "hold", server.ip, ECHO_PORT, 0.01) as held:
        held.expect("open")
        out = [c for c in meshctl("connections", "--direction", "outbound") if c["workload"] == "web-1.shop"]
        into = meshctl("connections", "--direction", "inbound", "--raw", node="node2")
        assert [(c["remote"], c["target"], c["protocol"]) for c in out] == [
            ("web-2.shop:15008", f"web-2.shop:{ECHO_PORT}", "HBONE")
        ]
        assert f"{server.ip}:{ECHO_PORT}" in [c["local"] for c in into if c["workload"] == "web-2.shop"]


def test_status_knows_every_daemon(mesh):
    result = CliRunner().invoke(cli, ["status", "--lab", mesh.layout.name])
    assert result.exit_code == 0
    assert [line.split()[:3] for line in result.output.splitlines()[1:]] == [
        ["node1", "nodeagent", "running"],
        ["node1", "ztunnel", "running"],
        ["node2", "nodeagent", "running"],
        ["node2", "ztunnel", "running"],
        ["control", "controlplane", "running"],
    ]
