"""A node that the mesh comes to, dies on at any moment, and is taken off again is the node that it was; and a node that
boots again lets no pod by.

CYCLES: how often. CYCLES_SEED: of when it dies.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cni.install import Place, install, uninstall
from lab import cgroups, daemons, hosts, netns, processes, teardown
from lab.cluster import Cluster
from lab.documents import PodSpec
from lab.layout import Layout
from lab.needs import OUR_PLUGIN, plugin_path
from lab.processes import wait_until
from lab.runtime import CniRefused
from lab.watchdog import Guard
from mesh.errors import MeshError, OperatorError, PeerError

pytestmark = pytest.mark.lab

CYCLES = int(os.environ.get("CYCLES", "1"))
SEED = int(os.environ.get("CYCLES_SEED", "5"))
SOON_S, MOST_S = 60.0, 6.0
NODE, AGENT, TUNNEL = "node1", "nodeagent-node1", "ztunnel-node1"
OURS = re.compile(r"nodemesh|NODEMESH|lookup 100|0x111")
EMPTY = re.compile(r"|}|(table ip6?|chain) \w+ {|type .*;|#.*")
STATE = {
    "nft rules": ["nft", "list", "ruleset"],
    "links": ["ip", "-o", "link"],
    "addresses": ["ip", "-o", "addr"],
    "routing rules": ["ip", "rule"],
    "IPv6 routing rules": ["ip", "-6", "rule"],
    "routes": ["ip", "route", "show", "table", "all"],
    "IPv6 routes": ["ip", "-6", "route", "show", "table", "all"],
    "settings": ["sysctl", "net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"],
}


class Life:
    """One node's, from an installation to its end by SIGKILL."""

    def __init__(self, mesh):
        self.mesh, self.layout = mesh, mesh.layout
        root = self.layout.node_dir(NODE) / "host"
        self.bin, self.net = root / "bin", root / "net.d"
        for directory in (self.bin, self.net):
            directory.mkdir(parents=True)
        (self.net / "10-net.conflist").write_text('{"name":"net",  "plugins":[{"type":"ptp"} ]}')
        self.died = threading.Event()
        self.reached = set()

    def live(self):
        """Each step in its turn, until it has died."""
        for step in (self.install, self.start_agent, self.start_tunnel, self.start_pod, self.serve_host):
            if self.died.is_set():
                return
            step()
            self.reached.add(step.__name__)

    def install(self):
        install(Place(plugin_path(OUR_PLUGIN), self.bin, self.net))

    def start_agent(self):
        for directory in (self.layout.run_dir(NODE), daemons.state_dir(self.layout, NODE)):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.mesh.start_agent(NODE)

    def start_tunnel(self):
        self.mesh.daemons[TUNNEL] = daemons.start_tunnel(self.layout, NODE)
        self._wait("the tunnel is ready", lambda: self.mesh.tunnel_ready(NODE))

    def start_pod(self):
        self.mesh.add_pod(PodSpec("cycle", NODE), with_apps=False)

    def serve_host(self):
        def states():
            with suppress(PeerError):
                return {each["state"] for each in self.mesh.ask(AGENT, "/status").get("host_workloads", ())}

        self._wait("the host workload is served", lambda: states() == {"IN_MESH"})

    def _wait(self, what, ready):
        wait_until(what, lambda: self.died.is_set() or ready(), SOON_S, step_s=0.05)

    def die(self, after_s):
        """At that moment, or when all steps are done."""
        self.died.clear()
        self.reached.clear()
        with ThreadPoolExecutor(1) as own:
            life = own.submit(self.live)
            wait([life], after_s)
            self.died.set()
            self.kill()
            with suppress(CniRefused, MeshError, OperatorError):
                life.result()
        self.kill()

    def kill(self):
        for name in (AGENT, TUNNEL):
            if name in self.mesh.daemons:
                self.mesh.daemons[name].kill()

    def reboot(self):
        """What a power failure leaves: disks. Nobody says DEL, no namespace lives, no pin."""
        self.kill()
        if (pod := self.mesh.pods.get("cycle")) is not None:
            self.mesh.forget(pod)
            netns.delete(pod.netns)
            cgroups.delete(pod.netns)
        subprocess.run(["umount", str(self.layout.bpf_dir(NODE))], check=False)
        shutil.rmtree(self.layout.run_dir(NODE))
        enrolled = daemons.state_dir(self.layout, NODE) / "enrolled.json"
        enrolled.write_text(json.dumps(json.loads(enrolled.read_text()) | {"boot_id": "the one before"}))

    @contextmanager
    def list_without_us(self):
        path = self.layout.node_dir(NODE) / "cni" / "10-nodemesh-lab.conflist"
        written = path.read_text()
        content = json.loads(written)
        path.write_text(json.dumps(content | {"plugins": content["plugins"][:-1]}))
        yield
        path.write_text(written)

    def take_off(self):
        """As docs/operations.md says. Directories of a service go with it."""
        uninstall(self.bin, self.net)
        settings = daemons.agent_settings(self.layout, NODE, self.mesh.capture)
        command = [*netns.inside(self.layout.node_netns(NODE)), sys.executable, "-m", "nodeagent.main", "uninstall"]
        environment = processes.environment(self.layout, settings)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SOON_S)
        assert done.returncode == 0, done.stderr
        for directory in (self.layout.run_dir(NODE), daemons.state_dir(self.layout, NODE)):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(f"{self.layout.keys}-{NODE}", ignore_errors=True)

    def end_pod(self):
        """It was outside the mesh before: nothing of ours is in its namespace, and no rule of anybody's. The iptables
        programs make their own tables, which they leave empty."""
        if (pod := self.mesh.pods.get("cycle")) is None:
            return
        told = state_of(pod.netns)
        assert [line for lines in told.values() for line in lines if OURS.search(line)] == []
        assert [line for line in told["nft rules"] if not EMPTY.fullmatch(line)] == []
        self.mesh.delete_pod("cycle")

    def state(self):
        """Kind -> what there is."""
        groups = cgroups.of(self.layout.node_netns(NODE))
        lab = f"/{self.layout.name}/"
        return state_of(self.layout.node_netns(NODE)) | {
            "control groups": sorted(path for path, _, _ in os.walk(groups)),
            "files": sorted(map(str, self.layout.node_dir(NODE).rglob("*"))),
            "plugin lists": [(path.name, path.stat().st_mode, path.read_bytes()) for path in self.net.iterdir()],
            "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if lab in line],
            "namespaces": [name for name in netns.names() if self.layout.owns_netns(name)],
            "processes": sorted(process.name for process in processes.all_of(self.layout)),
            "keys": sorted(map(str, self.layout.keys.parent.glob(f"{self.layout.keys.name}-*"))),
        }


def state_of(space):
    def lines(command):
        done = subprocess.run([*netns.inside(space), *command], capture_output=True, text=True, timeout=SOON_S)
        return [
            re.sub(r"\b(expires|valid_lft|preferred_lft|pref) \S+", "", line).strip()
            for line in done.stdout.splitlines()
        ]

    return {kind: lines(command) for kind, command in STATE.items()}


@pytest.fixture(scope="module")
def life(capture):
    layout = Layout(f"y{os.getpid()}")
    guard = Guard(layout)
    try:
        mesh = Cluster.up(layout.name, nodes=1, pods=0, capture=capture)
        hosts.add(mesh, PodSpec("on-host", NODE))
        made = Life(mesh)
        made.kill()
        made.die(SOON_S)
        assert made.reached == {"install", "start_agent", "start_tunnel", "start_pod", "serve_host"}
        made.take_off()
        made.end_pod()
        yield made
    finally:
        teardown.down(layout)
        guard.release()


def test_a_node_that_the_mesh_died_on_is_as_it_was_once_it_is_taken_off(life):
    before, chance = life.state(), random.Random(SEED)
    assert before["nft rules"] == []
    for cycle in range(CYCLES):
        life.die(chance.uniform(0, MOST_S))
        life.take_off()
        life.end_pod()
        after = life.state()
        differs = {kind: (before[kind], after[kind]) for kind in before if before[kind] != after[kind]}
        assert differs == {}, f"after cycle {cycle}, which got to {sorted(life.reached)}"


def test_after_a_reboot_no_pod_starts_before_it_can_be_served_and_who_did_is_taken_in(life):
    """The list of plugins is on disk: kubelet and runtime may be quicker than the agent, and so may another CNI."""
    for step in (life.start_agent, life.start_tunnel, life.start_pod):
        step()
    life.reboot()
    with pytest.raises(CniRefused) as refused:
        life.start_pod()
    assert (refused.value.plugin, refused.value.code) == (OUR_PLUGIN, 11), "no agent"
    with life.list_without_us():
        life.mesh.add_pod(PodSpec("early", NODE), with_apps=False)
    life.start_agent()
    with pytest.raises(CniRefused) as refused:
        life.start_pod()
    assert (refused.value.plugin, refused.value.code) == (OUR_PLUGIN, 11), "no tunnel"
    life.start_tunnel()
    life.start_pod()  # under the name that its namespace had before
    wait_until("both are in the mesh", lambda: states(life.mesh) == {"cycle": "IN_MESH", "early": "IN_MESH"}, SOON_S)
    assert [each["differences"] for each in life.mesh.ask(AGENT, "/verify")] == [[], [], []]
    for name in ("early", "cycle"):
        life.mesh.delete_pod(name)
    life.kill()
    life.take_off()


def states(mesh):
    return {pod["name"]: pod["state"] for pod in mesh.ask(AGENT, "/pods")}
