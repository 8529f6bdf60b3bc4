"""`meshctl` against a running mesh: what it prints is what is going on."""

import gzip
import json
import sys
import tarfile

import pytest
from click.testing import CliRunner

from lab.apps import ECHO_PORT
from lab.documents import PodSpec
from lab.netns import inside, run
from lab.probes import Probe
from lab.processes import wait_until
from mesh.errors import OperatorError
from mesh.gen.profile_pb2 import Profile
from meshctl import findings
from meshctl.main import cli
from tests.lab.damage import damage

pytestmark = pytest.mark.lab

SOON_S = 60.0
OWN = {"web-1", "web-2", "web-3", "web-4", "plain-1", "plain-2"}


@pytest.fixture
def meshctl(mesh):
    def run(command, *arguments, node="node1"):
        where = ["--lab", mesh.layout.name, "--node", node, "-o", "json"]
        result = CliRunner().invoke(cli, [command, *where, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)["items"]

    return run


def test_workloads_are_the_labs_pods_with_the_way_to_reach_them(mesh, meshctl):
    """Other tests' pods, which come and go in the same lab, aside."""
    expected = {
        pod.name: (list(pod.ips), pod.node, "TCP" if pod.name.startswith("plain") else "HBONE")
        for pod in mesh.pods.values()
        if pod.name in OWN
    }

    def shown():
        return {
            w["name"]: (w["workloadIps"], w["node"], w["protocol"]) for w in meshctl("workloads") if w["name"] in OWN
        }

    wait_until("the tunnel knows the last pod", lambda: len(shown()) == len(OWN), SOON_S)
    assert shown() == expected


def test_the_service_has_every_healthy_endpoint(mesh):
    where = ["--lab", mesh.layout.name, "--node", "node2"]
    wanted = ["shop", "web", f"{mesh.vips['web']},{mesh.vips6['web']}", "None", "4/4"]

    def rows():
        return [line.split() for line in CliRunner().invoke(cli, ["services", *where]).output.splitlines()[1:]]

    wait_until("it has four of four", lambda: wanted in rows(), SOON_S)


def test_certificates_are_those_of_the_nodes_pods_and_valid(mesh, meshctl):
    for pod in (mesh.pods["web-1"], mesh.pods["web-2"]):
        states = {c["identity"]: c["state"] for c in meshctl("certificates", node=pod.node)}
        assert states[pod.identity] == "Available"
    where = ["--lab", mesh.layout.name, "--node", "node1"]

    def leaves():
        rows = CliRunner().invoke(cli, ["certificates", *where]).output.splitlines()[1:]
        return {tuple(row.split()[2:4]) for row in rows if " Leaf " in row}

    wait_until("all are there, and valid", lambda: leaves() == {("Available", "true")}, SOON_S)


def test_an_open_connection_is_shown_on_both_sides(mesh, meshctl):
    client, server = mesh.pods["web-1"], mesh.pods["web-2"]
    with Probe(mesh, client, "hold", server.ip, ECHO_PORT, 0.01) as held:
        held.expect("open")
        wanted = [("web-2.shop:15008", f"web-2.shop:{ECHO_PORT}", "HBONE")]

        def out():
            """Without those of earlier tests that are about to end."""
            shown = meshctl("connections", "--direction", "outbound")
            return [(c["remote"], c["target"], c["protocol"]) for c in shown if c["workload"] == "web-1.shop"]

        wait_until("it alone is shown", lambda: out() == wanted, SOON_S)
        into = meshctl("connections", "--direction", "inbound", "--raw", node="node2")
        assert f"{server.ip}:{ECHO_PORT}" in [c["local"] for c in into if c["workload"] == "web-2.shop"]


def test_status_knows_every_daemon(mesh):
    result = CliRunner().invoke(cli, ["status", "--lab", mesh.layout.name])
    assert result.exit_code == 0
    table, _, captured = result.output.partition("\n\n")
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [
        ["node1", "nodeagent", "running"],
        ["node1", "ztunnel", "running"],
        ["node2", "nodeagent", "running"],
        ["node2", "ztunnel", "running"],
        ["control", "controlplane", "running"],
    ]
    (backend,) = {pod["capture"] for pod in mesh.ask("nodeagent-node1", "/pods")}
    (line,) = [line for line in captured.splitlines() if line.startswith("node1 captures with")]
    assert f"{backend} (" in line
    assert line.endswith(f"NODEMESH_CAPTURE={mesh.capture}")


def ours(mesh, *arguments, node="node1"):
    """(exit code, what it prints) of any command, asked of one node."""
    result = CliRunner().invoke(cli, [*arguments, "--lab", mesh.layout.name, "--node", node], catch_exceptions=False)
    return result.exit_code, result.output


def test_check_is_content_with_a_working_node_and_finds_what_is_broken(mesh):
    assert "rules in place and in order, our ports listening, all served" in content(mesh)
    wait_until("check finds what is broken", lambda: finds_damage(mesh), 4 * SOON_S)
    content(mesh)


def test_check_of_a_whole_lab_says_once_what_no_node_can_prevent(mesh):
    said = CliRunner().invoke(cli, ["check", "--lab", mesh.layout.name], catch_exceptions=False).output.splitlines()
    notes = [line for line in said if line.startswith("note")]
    assert notes == [f"note not prevented: {residue}" for residue in findings.RESIDUAL]
    assert "ok   node1: the tunnel of node1 is ready" in said


def content(mesh):
    """What check says when it finds nothing broken; an earlier test's pods may be on their way out."""
    said = []

    def fine():
        said.append(ours(mesh, "check"))
        return said[-1][0] == 0

    try:
        wait_until("check is content", fine, SOON_S)
    except OperatorError as error:
        pytest.fail(f"{error}: {said[-1][1]}")
    return said[-1][1]


def finds_damage(mesh):
    """False: the agent mended it first."""
    pod = mesh.add_pod(PodSpec("damaged", "node1"), with_apps=False)
    try:
        said = damage(mesh, pod)
        code, text = ours(mesh, "check")
    finally:
        mesh.delete_pod("damaged")
    return code == 1 and f"FAIL pod shop/damaged: {said}" in text and "→ restart the node agent" in text


def test_explain_tells_of_a_live_call_and_of_a_saved_dump_the_same(mesh, tmp_path):
    question = ["explain", "shop/web-1", f"{mesh.pods['web-2'].ip}:8080"]
    code, live = ours(mesh, *question)
    assert code == 0, live
    assert "expects    spiffe://cluster.local/ns/shop/sa/web-2" in live
    dump = mesh.ask("ztunnel-node1", "/config_dump")
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    saved = CliRunner().invoke(cli, [*question, "-f", str(tmp_path / "dump.json")], catch_exceptions=False)
    assert saved.output == live


def test_top_shows_who_talks(mesh):
    client, server = mesh.pods["web-1"], mesh.pods["web-2"]
    with Probe(mesh, client, "loop", server.ip, ECHO_PORT, 0.01) as loop:
        loop.expect("open")

        def talks():
            code, text = ours(mesh, "top", "--once", "--interval", "0.5", "-o", "json")
            assert code == 0, text
            rows = [row for row in json.loads(text)["items"] if row["reporter"] == "source" and row["new_per_s"] > 0]
            return any(row["request_bytes_per_s"] > 0 for row in rows)

        wait_until("it is shown", talks, SOON_S)


def test_levels_are_changed_and_reset_while_it_runs(mesh):
    assert ours(mesh, "log", "--level", "access:debug")[1].splitlines()[1].split() == ["node1", "access=debug,info"]
    assert ours(mesh, "log", "--reset")[1].splitlines()[1].split() == ["node1", "info"]


def test_a_bugreport_has_everything_but_secrets(mesh, tmp_path):
    path = tmp_path / "report.tar.gz"
    code, text = ours(mesh, "bugreport", "--out", str(path))
    assert code == 0, text
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2]: archive.extractfile(name).read() for name in archive.getnames()}
    node = {"ztunnel/config_dump.json", "ztunnel/metrics.txt", "nodeagent/verify.json", "access.log"}
    assert files.keys() >= {"machine.txt", "check.txt"} | {f"node1/{name}" for name in node}
    assert b"connection complete" in files["node1/access.log"]
    token = next((mesh.layout.dir / "nodes").rglob("*token*"), None)
    secret = token.read_bytes().strip() if token and token.is_file() else b"PRIVATE KEY-----"
    assert not any(secret in body or b"PRIVATE KEY-----" in body for body in files.values())


@pytest.mark.parametrize(("kind", "daemon"), [("cpu", "ztunnel"), ("heap", "ztunnel"), ("cpu", "controlplane")])
def test_a_profile_is_one_that_pprof_reads_and_comes_by_the_private_door_only(mesh, tmp_path, kind, daemon):
    out = tmp_path / "profile.pb.gz"
    owner = "node1" if daemon == "ztunnel" else "control"
    where = ["--lab", mesh.layout.name, "--node", owner, "--of", daemon, "--seconds", "0.3", "--out", str(out)]
    result = CliRunner().invoke(cli, ["profile", kind, *where], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    profile = Profile.FromString(gzip.decompress(out.read_bytes()))
    assert [profile.string_table[each.unit] for each in profile.sample_type][-1] == (
        "nanoseconds" if kind == "cpu" else "bytes"
    )


def test_no_profile_is_taken_by_the_door_on_loopback(mesh):
    asking = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 15000, timeout=10); "
    asking += "c.request('GET', '/debug/pprof/profile?seconds=0.1'); print(c.getresponse().status)"
    assert run(*inside(mesh.layout.node_netns("node1")), sys.executable, "-c", asking).strip() == "404"
