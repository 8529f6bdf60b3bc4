"""A failure of `meshctl` is one sentence on stderr and a code that a script can act on."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest
from click.testing import CliRunner

from mesh.errors import MeshError
from meshctl.main import cli, exit_code


class Answering(BaseHTTPRequestHandler):
    """A daemon's admin socket with a fixed status."""

    STATUS = None

    def do_GET(self):
        body = json.dumps(self.STATUS).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


@pytest.fixture
def daemon(tmp_path):
    """Starts an admin socket: daemon("nodeagent", {...}) -> its run directory."""
    servers = []

    def start(name, status):
        handler = type("Handler", (Answering,), {"STATUS": status})
        server = UnixStreamServer(str(tmp_path / f"{name}.sock"), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return tmp_path

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def run(*arguments):
    """(exit code, stdout, sentence)."""
    result = CliRunner().invoke(cli, list(arguments))
    if isinstance(result.exception, MeshError):
        return exit_code(result.exception), result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_nobody_there_is_three(tmp_path):
    code, _, said = run("workloads", "--run-dir", str(tmp_path))
    assert (code, said) == (3, f"{tmp_path}/ztunnel.sock: nobody answers (No such file or directory)")


def test_a_lab_that_is_not_up_is_three():
    code, _, said = run("workloads", "--lab", "nosuchlab")
    assert (code, said) == (3, "lab nosuchlab is not up: `meshctl lab up --name nosuchlab`")


def test_a_file_that_is_no_dump_is_two(tmp_path):
    (tmp_path / "x").write_text("{")
    code, _, said = run("services", "--file", str(tmp_path / "x"))
    assert code == 2
    assert said.startswith(f"{tmp_path}/x: this is not JSON: ")
    (tmp_path / "x").write_text("[]")
    assert run("services", "--file", str(tmp_path / "x"))[0] == 2


def test_a_file_and_a_place_exclude_each_other():
    code, _, said = run("services", "--file", "x", "--lab", "nm")
    assert code == 2
    assert "--file goes without" in said


def test_a_node_without_its_lab_is_two():
    assert run("services", "--node", "node1") == (
        2,
        "",
        "--node chooses a node of a lab: give --lab, or --run-dir of the node's daemons",
    )


def test_status_of_healthy_daemons_is_zero(daemon):
    daemon("nodeagent", {"pods": ["a", "b"], "node": "node1"})
    code, text, _ = run("status", "--run-dir", str(daemon("ztunnel", {"ready": True})))
    assert code == 0
    assert text.splitlines() == [
        "NODE  DAEMON    STATE   DETAILS",
        "local nodeagent running pods=2  node=node1",
        "local ztunnel   running ready=True",
    ]


def test_status_with_a_refused_document_is_one_and_says_where(daemon):
    finding = {"file": "shop.yaml", "line": 12, "level": "error", "why": "unknown kind Pood"}
    run_dir = daemon("controlplane", {"objects": {"Pod": 3}, "findings": [finding, {"level": "warning"}]})
    code, text, _ = run("status", "--run-dir", str(run_dir))
    assert code == 1
    assert text.splitlines()[1:] == [
        "local controlplane finding objects.Pod=3  findings=2",
        "local controlplane: shop.yaml:12: unknown kind Pood",
    ]


def test_status_says_what_does_not_work_and_is_one(daemon):
    foreign = {"Kubernetes//Pod/shop/web-1": ["IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT -j DNAT"]}
    daemon("nodeagent", {"tunnels": 0, "pods": {"CUT_OFF": 2}, "foreign_rules": foreign})
    troubles = {"troubles": {"spiffe://x/ns/a/sa/b": "the CA is away"}}
    run_dir = daemon(
        "ztunnel", {"pending": ["xds"], "xds": {"address": "cp:1", "connected": False}, "certificates": troubles}
    )
    code, out, _ = run("status", "--run-dir", str(run_dir))
    assert code == 1
    assert out.splitlines()[3:] == [
        "local nodeagent: no tunnel is connected: pods of the mesh do not start on this node",
        "local nodeagent: 2 pods are cut off: `last_error` of GET /pods says why",
        "local nodeagent: Kubernetes//Pod/shop/web-1: beside its capture, IPv4 legacy table nat sends TCP elsewhere: "
        "-A OUTPUT -j DNAT",
        "local ztunnel: not ready, waits for: xds",
        "local ztunnel: no configuration comes from cp:1; what was received last is in force",
        "local ztunnel: spiffe://x/ns/a/sa/b: the CA is away",
    ]


def test_status_without_daemons_is_three(tmp_path):
    assert run("status", "--run-dir", str(tmp_path))[0] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_somebody_else_is_told_who_may_ask(tmp_path, daemon):
    """As user nobody, in a process of its own: one sentence, code 4, no traceback."""
    daemon("ztunnel", {})
    os.chmod(tmp_path / "ztunnel.sock", 0o600)
    code = (
        "import os, sys; from meshctl.admin import Place; from pathlib import Path;"
        f"place = Place(Path({str(tmp_path)!r}));"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);\n"
        "try: place.config_dump()\n"
        "except Exception as error: print(type(error).__name__, error.exit_code)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    ).stdout
    assert said.split() == ["NotPermitted", "4"]


def test_the_running_control_plane_is_asked_what_is_wrong(daemon):
    report = {
        "level": "Warning",
        "code": "IST0174",
        "origin": "DestinationRule a/b",
        "reference": "f:1",
        "message": "m",
    }
    place = str(daemon("controlplane", [report]))
    assert run("analyze", "--run-dir", place) == (0, "Warning [IST0174] (DestinationRule a/b f:1) m\n", "")
    assert run("analyze", "--run-dir", place, "--failure-threshold", "Warning")[0] == 1


def test_files_are_judged_by_the_control_planes_checker(tmp_path):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: n}\n")
    assert run("validate", str(tmp_path / "a.yaml"))[0] == 0
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: N}\n")
    assert run("validate", str(tmp_path / "a.yaml"))[0] == 1
    assert run("analyze", str(tmp_path / "a.yaml"))[0] == 1
