"""The daemons with exactly the privileges that their systemd units give them: it is enough, and it is all they have."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import daemons, processes
from lab.apps import HTTP_PORT
from lab.documents import PodSpec
from lab.processes import wait_until
from tests.deploy.units import capabilities

pytestmark = pytest.mark.lab

SOON_S = 60.0
USER = 65532
ROOT = Path(__file__).parents[2]
# Interpreter and checkout may be where only root may enter: in a mount namespace of its own they are where they were,
# for all.
REACHABLE = """
set -e
aside=$1; shift
closed_above() {
  found=; dir=$(dirname "$1")
  while [ "$dir" != / ]; do
    [ $(( 0$(stat -c %a "$dir") & 1 )) = 1 ] || found=$dir
    dir=$(dirname "$dir")
  done
  printf %s "$found"
}
mkdir -p "$aside/interpreter" "$aside/checkout"
mount --bind "$INTERPRETER" "$aside/interpreter"; mount --bind "$CHECKOUT" "$aside/checkout"
for path in "$INTERPRETER" "$CHECKOUT"; do
  closed=$(closed_above "$path" 2>/dev/null)
  [ -z "$closed" ] || mount -t tmpfs -o mode=755 tmpfs "$closed"
done
mkdir -p "$INTERPRETER" "$CHECKOUT"
mount --bind "$aside/interpreter" "$INTERPRETER"; mount --bind "$aside/checkout" "$CHECKOUT"
mount -t tmpfs -o mode=700,uid="$USER_OF_KEYS" tmpfs "$NODEMESH_KEY_DIR"
exec "$@"
"""


@pytest.fixture
def place(tmp_path, tmp_path_factory):
    """A directory that every user may enter."""
    for path in (tmp_path, tmp_path_factory.getbasetemp()):
        path.chmod(0o711)
    return tmp_path


def confined(name, user=0):
    """What systemd does of CapabilityBoundingSet=, AmbientCapabilities=, User= and NoNewPrivileges=."""
    held = ",".join(["-all", *(f"+{each}" for each in capabilities(name))])
    words = ["setpriv", "--bounding-set", held, "--inh-caps", held, "--no-new-privs"]
    return [
        *words,
        *(["--reuid", str(user), "--regid", str(user), "--clear-groups", "--ambient-caps", held] if user else []),
        "--",
    ]


def reachable(place):
    return ["unshare", "--mount", "sh", "-c", REACHABLE, "sh", str(place)]


@contextmanager
def node_with(mesh, place):
    """node1's daemons by their units' privileges; afterwards as they were."""
    zds = {
        "ZDS_SOCKET": str(place / "zds.sock"),
        "NODEMESH_LISTENERS_KEPT": "0s",  # else its control group outlives the test
        "INPOD_UDS": str(place / "zds.sock"),
        "NODEMESH_TUNNEL_USER": str(USER),
    }
    own = {name: place / name for name in ("run", "state", "keys", "secrets")}
    for directory in own.values():
        directory.mkdir(mode=0o700)
    for source in (daemons.root_certificate(mesh.layout), daemons.token_path(mesh.layout, "node1")):
        shutil.copy(source, own["secrets"])
    for path in [*own.values(), *own["secrets"].iterdir()]:
        os.chown(path, USER, USER)
    root = str(own["secrets"] / daemons.root_certificate(mesh.layout).name)
    of_tunnel = {
        "NODEMESH_RUN_DIR": str(own["run"]),
        "NODEMESH_STATE_DIR": str(own["state"]),
        "NODEMESH_KEY_DIR": str(own["keys"]),
        "NODEMESH_ACCESS_LOG": "stderr",
        "XDS_ROOT_CA": root,
        "CA_ROOT_CA": root,
        "AUTH_TOKEN": str(own["secrets"] / daemons.token_path(mesh.layout, "node1").name),
        "INTERPRETER": sys.base_prefix,
        "CHECKOUT": str(ROOT),
        "USER_OF_KEYS": str(USER),
        "HOME": str(own["state"]),
        "TMPDIR": str(own["state"]),
    }
    layout, space = mesh.layout, mesh.layout.node_netns("node1")
    for name in ("ztunnel-node1", "nodeagent-node1"):
        daemons.stop(mesh.daemons[name])
    agent = processes.start(
        layout,
        "nodeagent-node1",
        space,
        [*confined("nodeagent"), *daemons.command("nodeagent", "run")],
        daemons.agent_settings(layout, "node1", mesh.capture) | zds,
        group="nodeagent",
    )
    tunnel = processes.start(
        layout,
        "ztunnel-node1",
        space,
        [*reachable(place), *confined("ztunnel", USER), *daemons.command("ztunnel", "run")],
        daemons.tunnel_settings(layout, "node1") | of_tunnel | zds,
        group="ztunnel",
    )
    try:
        wait_until("the agent is up", lambda: daemons.is_up(layout, agent), SOON_S)
        wait_until("the tunnel is ready", lambda: tunnel.alive and mesh.tunnel_ready("node1"), SOON_S)
        yield agent, tunnel
    finally:
        for process in (tunnel, agent):
            daemons.stop(process)
        mesh.start_agent("node1")
        mesh.start_tunnel("node1")


def held(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def test_the_units_privileges_are_enough_and_all_there_are(mesh, pods, place):
    with node_with(mesh, place) as (agent, tunnel):
        about = held(tunnel)
        assert about["Uid"] == [str(USER)] * 4
        assert int(about["CapEff"][0], 16) == (1 << 21 | 1 << 13)
        assert about["NoNewPrivs"] == ["1"]
        assert int(held(agent)["CapEff"][0], 16) == int(held(agent)["CapBnd"][0], 16)
        for version in (4, 6):
            for target in ("web-3", "web-2", "plain-2"):
                seen = mesh.http(pods["web-1"], pods[target].at(HTTP_PORT, version))
                assert seen == f"{pods['web-1'].address(version)} {target}"
            assert mesh.http(pods["web-2"], pods["web-1"].at(HTTP_PORT, version)).endswith(" web-1")
        late = mesh.add_pod(PodSpec("late-confined", "node1"))
        try:
            wait_until("a new pod talks", lambda: mesh.reaches(late, pods["web-2"]), SOON_S)
        finally:
            mesh.delete_pod("late-confined")
