"""What a person gets wrong: one sentence that names it, an exit code that is not zero, never a traceback."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab import daemons, needs
from lab.layout import Layout
from mesh.errors import OperatorError

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).parents[2]
DAEMONS = ("controlplane", "nodeagent", "ztunnel")


# Not root, but able to read a checkout that only root can: where the checkout lies is not what is tested.
READ = "dac_read_search"
NOBODY = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    f"--inh-caps=+{READ}",
    f"--ambient-caps=+{READ}",
    "--",
]


def run(module, *arguments, env=None, as_nobody=False):
    """(exit code, what it said on stderr)."""
    # Not every PATH may be kept: a program that is missing is one of the mistakes.
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    drop = NOBODY if as_nobody else []
    done = subprocess.run(
        [*drop, sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=REPOSITORY,
        env=base | (env or {}),
    )
    return done.returncode, done.stderr.strip()


def one_sentence(said):
    return said and "\n" not in said and "Traceback" not in said


@pytest.fixture
def settings(tmp_path):
    """A daemon's settings that are all right, in a directory of the test's own."""
    config = tmp_path / "config"
    config.mkdir()
    (tmp_path / "root.pem").write_text("")
    return {
        "NODE_NAME": "node1",
        "NODEMESH_RUN_DIR": str(tmp_path / "run"),
        "NODEMESH_STATE_DIR": str(tmp_path / "state"),
        "NODEMESH_CONFIG_DIR": str(config),
        "NODEMESH_PODS_DIR": str(config),
        "ZDS_SOCKET": str(tmp_path / "zds.sock"),
        "NODEMESH_LISTENERS_KEPT": "0s",  # else its control group outlives the test
        "INPOD_UDS": str(tmp_path / "zds.sock"),
        "CONTROLPLANE_ADDR": "127.0.0.1:0",
        "ADMIN_ADDR": "127.0.0.1:0",
        "STATS_ADDR": "127.0.0.1:0",
        "READINESS_ADDR": "127.0.0.1:0",
    }


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_bad_setting_is_named_with_its_value(settings, daemon):
    code, said = run(f"{daemon}.main", "run", env=settings | {"LOG_FORMAT": "xml"})
    assert code == 2
    assert one_sentence(said)
    assert "LOG_FORMAT" in said
    assert "xml" in said


def test_a_missing_setting_is_named(settings):
    del settings["NODE_NAME"]
    code, said = run("nodeagent.main", "run", env=settings)
    assert code == 2
    assert one_sentence(said)
    assert "NODE_NAME" in said


def test_an_occupied_port_is_named(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        code, said = run("controlplane.main", "run", env=settings | {"CONTROLPLANE_ADDR": address})
    assert code == 2
    assert one_sentence(said)
    assert address in said


def test_a_wrong_root_certificate_is_named(settings, tmp_path):
    files = {name: str(tmp_path / "root.pem") for name in ("XDS_ROOT_CA", "CA_ROOT_CA")}
    code, said = run("ztunnel.main", "run", env=settings | files | {"AUTH_TOKEN": "x"})
    assert code == 2
    assert one_sentence(said)
    assert "XDS_ROOT_CA" in said


def test_a_token_file_that_is_not_there_is_named(settings, tmp_path):
    code, said = run("ztunnel.main", "run", env=settings | {"AUTH_TOKEN": str(tmp_path / "nowhere")})
    assert code == 2
    assert one_sentence(said)


@pytest.mark.parametrize("command", [("up",), ("demo",), ("down",), ("status",), ("exec", "web-1", "true")])
def test_without_root_the_lab_says_so(command):
    code, said = run("meshctl.main", "lab", *command, as_nobody=True)
    assert code == 4
    assert said == "meshctl: the lab makes network namespaces and needs root: run it with sudo"


@pytest.mark.parametrize("missing", ["nginx", "iperf3", "tcpdump", "socat"])
def test_a_missing_program_is_named_with_its_package(monkeypatch, tmp_path, missing):
    for program in needs.PROGRAMS.keys() - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program, path=needs.search_path()))
    monkeypatch.setattr(needs, "search_path", lambda: str(tmp_path))
    with pytest.raises(OperatorError, match=f"{missing} is not installed: apt-get install"):
        needs.require_all()


def test_a_container_that_may_not_make_namespaces_is_told_so():
    caps = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"]
    command = [*caps, sys.executable, "-m", "meshctl.main", "lab", "up", "--name", "nocaps"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=180)
    assert done.returncode == 2
    assert one_sentence(done.stderr.strip())
    assert "does not allow network namespaces" in done.stderr


def test_a_plugin_that_is_not_built_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "REPOSITORY", tmp_path)
    with pytest.raises(OperatorError, match="build/nodemesh-cni is not built: run `make setup`"):
        needs.require_all()


@pytest.mark.parametrize("name", ["Nm", "1a", "a-b", "a/b", "", "x" * 21])
def test_a_labs_name_is_checked_before_anything_is_touched(name):
    with pytest.raises(OperatorError, match="is not a lab's name"):
        Layout(name)


def test_too_many_nodes_are_refused_in_a_sentence():
    code, said = run("meshctl.main", "lab", "up", "--name", "toomany", "--nodes", "99")
    assert (code, said) == (2, "meshctl: a lab has 1 to 32 nodes and 0 to 64 pods")


def test_a_lab_that_is_up_already_is_refused(mesh):
    code, said = run("meshctl.main", "lab", "up", "--name", mesh.layout.name)
    assert code == 2
    assert said == f"meshctl: lab {mesh.layout.name} exists: `meshctl lab down --name {mesh.layout.name}` first"


def test_a_pod_that_is_not_there_is_refused_with_those_that_are(mesh):
    code, said = run("meshctl.main", "lab", "exec", "--name", mesh.layout.name, "web-9", "--", "true")
    assert code == 2
    assert one_sentence(said)
    assert "web-1" in said


def test_an_occupied_port_of_the_tunnel_is_named(mesh, settings, tmp_path):
    """A second tunnel on a node: the admin port is taken."""
    mine = {
        **daemons.tunnel_settings(mesh.layout, "node1"),
        "NODEMESH_RUN_DIR": str(tmp_path),
        "NODEMESH_STATE_DIR": str(tmp_path),
    }
    argv = [*daemons.inside(mesh.layout.node_netns("node1")), *daemons.command("ztunnel", "run")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, env={"PATH": os.environ["PATH"], **mine})
    assert done.returncode == 2
    assert one_sentence(done.stderr.strip())
    assert "15000" in done.stderr
