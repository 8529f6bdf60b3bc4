"""The units: systemd accepts them without a word, and says how much each could do."""

import re
import shutil
import subprocess

import pytest

from tests.deploy.units import DIRECT, PROGRAMS, UNITS, capabilities, settings, unit

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")

EXPOSED_AT_MOST = {"controlplane": 1.5, "nodeagent": 4.5, "ztunnel": 2.0}
"""Of 10. A unit without a sandbox has 9.6."""


def analyze(*words):
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("direct", [False, True], ids=["as-they-are", "direct"])
def test_systemd_accepts_the_units(tmp_path, direct):
    for name in EXPOSED_AT_MOST:
        program = settings(name, "ExecStart")[0]
        assert program.startswith(PROGRAMS)
        text = unit(name).read_text().replace(program, shutil.which("true"))  # it is not installed here
        (tmp_path / unit(name).name).write_text(text)
    if direct:
        (tmp_path / "nodemesh-ztunnel.service.d").mkdir()
        shutil.copy(DIRECT, tmp_path / "nodemesh-ztunnel.service.d/direct.conf")
    done = analyze("verify", *map(str, sorted(tmp_path.glob("*.service"))))
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("name", EXPOSED_AT_MOST)
def test_a_unit_can_do_little(name):
    last = analyze("security", "--offline=yes", str(unit(name))).stdout.strip().splitlines()[-1]
    exposure = float(re.search(r"nodemesh-\w+\.service: (\d+\.\d)", last).group(1))
    assert exposure <= EXPOSED_AT_MOST[name], last


def test_the_tunnel_is_not_root_and_holds_two_capabilities():
    assert settings("ztunnel", "User") == ["nodemesh"]
    assert capabilities("ztunnel") == ["sys_admin", "net_raw"]
    assert settings("ztunnel", "AmbientCapabilities") == settings("ztunnel", "CapabilityBoundingSet")


def test_for_the_direct_path_the_tunnel_gets_what_it_takes_and_no_more():
    given = [line for line in DIRECT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    assert given == [
        "CapabilityBoundingSet=CAP_NET_ADMIN",
        "AmbientCapabilities=CAP_NET_ADMIN",
        "RestrictAddressFamilies=AF_NETLINK",
        "SystemCallFilter=bpf",
    ]


def test_the_control_plane_holds_none():
    assert capabilities("controlplane") == []


def test_agent_and_tunnel_mean_the_same_socket_and_user():
    agent, tunnel = settings("nodeagent", "Environment"), settings("ztunnel", "Environment")
    assert "ZDS_SOCKET=/run/nodemesh/zds.sock" in agent
    assert "INPOD_UDS=/run/nodemesh/zds.sock" in tunnel
    assert f"NODEMESH_TUNNEL_USER={settings('ztunnel', 'User')[0]}" in agent


@pytest.mark.parametrize(
    ("tool", "file"), [("systemd-sysusers", "nodemesh.sysusers"), ("systemd-tmpfiles", "nodemesh.tmpfiles")]
)
def test_the_user_and_the_directories_are_understood(tool, file, tmp_path):
    """In a root of its own: nothing of this machine changes, and a second run changes nothing either."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nnodemesh:x:997:\n" if tool.endswith("tmpfiles") else "root:x:0:\n")
    options = ["--create"] if tool == "systemd-tmpfiles" else []
    command = [tool, *options, f"--root={tmp_path}", str(UNITS / file)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
