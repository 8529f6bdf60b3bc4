"""The agent, a real process, with real namespaces and the real plugin; the tunnel is a stand-in that only listens.

What needs a mesh (daemons of every kind, traffic end to end) is in test_flows.py.
"""

import json
import os
import re
import signal
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import cgroups, daemons, netns, processes
from lab.layout import NETNS, Layout
from lab.needs import REPOSITORY, plugin_path
from lab.watchdog import Guard
from nodeagent import libbpf
from nodeagent.redirect import iptables
from tests.cni.twins import call
from tests.lab.standin import StandIn

pytestmark = pytest.mark.lab

SOON_S = 60.0
NAMESPACE = "shop"
ADDRESSES = {4: "10.9.0.2/24", 6: "fd00:9::2/64"}
GATEWAYS = {4: "10.9.0.1", 6: "fd00:9::1"}
NODAD = {4: "", 6: " nodad"}
LABELS = {"istio.io/dataplane-mode": "ambient"}


class Node:
    """One agent, its directories and its pods, all inside a lab's names, so that its guard takes everything down."""

    def __init__(self, capture):
        self.capture = capture
        self.layout = Layout(f"e{os.getpid()}")
        self.guard = Guard(self.layout)
        for directory in (self.layout.config, self.layout.logs, self.layout.dir / "tmp"):
            directory.mkdir(parents=True)
        self.netns = self.layout.node_netns("node1")
        netns.create(self.netns)
        self.home = None
        if capture == "bpf":
            self._become_a_tunnel()
        self.write("shop", {"kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": LABELS}})
        self.agent, self.tunnels = None, []
        self.start()

    def _become_a_tunnel(self):
        """The stand-in lives in this process, and BPF knows a tunnel by its control group."""
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        self.home = cgroups.mount() / own.strip("/")
        cgroups.create(self.netns)
        (cgroups.create(f"{self.netns}/ztunnel") / "cgroup.procs").write_text("0")

    def write(self, name, document):
        (self.layout.config / f"{name}.yaml").write_text(json.dumps({"apiVersion": "v1"} | document))

    def start(self, **others):
        run = self.layout.run_dir("node1")
        settings = {
            "NODE_NAME": "node1",
            "NODEMESH_RUN_DIR": str(run),
            "NODEMESH_STATE_DIR": str(self.layout.node_dir("node1") / "state"),
            "NODEMESH_PODS_DIR": str(self.layout.config),
            "ZDS_SOCKET": str(run / "zds.sock"),
            "NODEMESH_LISTENERS_KEPT": "0s",  # else its control group outlives the test
            "PYTHONPATH": str(REPOSITORY),
            "NODEMESH_CAPTURE": self.capture,
            "NODEMESH_WATCH_INTERVAL": "0s",
            "NODEMESH_CNI_CACHE_DIR": str(self.layout.node_dir("node1") / "cni"),
            "NODEMESH_BPF_DIR": str(self.layout.bpf_dir("node1")),
            "NODEMESH_CGROUP_ROOT": str(cgroups.of(self.netns)),
        } | others
        command = [sys.executable, "-m", "nodeagent.main", "run"]
        self.agent = processes.start(self.layout, "nodeagent-node1", self.netns, command, settings)
        processes.wait_until("the agent's socket is there", self.answers, SOON_S)

    def answers(self):
        try:
            return self.ask("/status")["node"] == "node1"
        except daemons.PeerError:
            return False

    def ask(self, target):
        return daemons.ask(self.layout.run_dir("node1") / "nodeagent.sock", target)[1]

    def end(self, number=signal.SIGKILL):
        self.agent.signal(number)
        assert self.agent.wait(SOON_S)

    def connect_tunnel(self, **how):
        self.tunnels.append(StandIn(self.layout.run_dir("node1") / "zds.sock", **how))
        assert self.tunnel.complete.wait(SOON_S)

    @property
    def tunnel(self):
        return self.tunnels[-1]

    def disconnect_tunnel(self):
        self.tunnel.close()
        processes.wait_until("the agent noticed", lambda: self.ask("/status")["tunnels"] == 0, SOON_S)

    def states(self):
        return {pod["name"]: pod["state"] for pod in self.ask("/pods")}

    def wait_for(self, state):
        processes.wait_until(f"web-1 is {state}", lambda: self.states() == {"web-1": state}, SOON_S)

    def pod(self, name, versions=(4, 6), **metadata):
        return Pod(self, name, versions, metadata)

    def close(self):
        try:
            for tunnel in self.tunnels:
                tunnel.close()
        finally:
            if self.home:
                (self.home / "cgroup.procs").write_text("0")
            self.guard.release()


class Pod:
    """A namespace with an address and a way out, per family, that leads nowhere."""

    def __init__(self, node, name, versions, metadata):
        self.node, self.name, self.versions = node, name, versions
        self.netns = node.layout.pod_netns(NAMESPACE, name)
        metadata = {"name": name, "namespace": NAMESPACE} | metadata
        node.write(name, {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node1"}})
        netns.create(self.netns)
        if node.capture == "bpf":
            cgroups.create_pod(node.netns, 1, name, self.netns)
        netns.run("ip", "-n", self.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        lines = [
            "link set eth0 addrgenmode none up",
            "link set peer0 addrgenmode none up",
        ]
        for version in versions:
            lines += [
                f"addr add {ADDRESSES[version]} dev eth0{NODAD[version]}",
                f"route add default via {GATEWAYS[version]}",
            ]
        netns.batch(self.netns, lines)

    def call(self, command, **environment):
        config = {
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "nodemesh-cni",
            "agentSocket": str(self.node.layout.run_dir("node1") / "cni.sock"),
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": ADDRESSES[v]} for v in self.versions]},
        }
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={self.name};K8S_POD_UID={self.name}"
        variables = {"CNI_CONTAINERID": self.name, "CNI_NETNS": str(NETNS / self.netns), "CNI_ARGS": args}
        plugin = [str(plugin_path("nodemesh-cni"))]
        return call(plugin, command, json.dumps(config).encode(), **(variables | environment))

    def add(self):
        said = self.call("ADD")
        assert said.status == 0, said
        return said

    def rules(self):
        """Everything that enrolment leaves in the namespace, or pins. iptables keeps empty tables, and counts."""
        by_iptables = self.node.capture == "iptables"
        words = (
            *(["iptables-nft-save", "ip6tables-nft-save"] if by_iptables else ["nft -a list ruleset"]),
            "ip rule",
            "ip route show table all",
            "ip -6 rule",
            "ip -6 route show table all",
        )
        said = [netns.run(*netns.inside(self.netns), *word.split()) for word in words]
        if self.node.capture == "bpf":
            pins = sorted(self.node.layout.bpf_dir("node1").glob("v1/workloads/*/*"))
            return ["\n".join(f"{pin.name} {libbpf.describe(pin)}" for pin in pins), *said]
        if not by_iptables:
            return said
        rules = [line for text in said[:2] for line in text.splitlines() if line.startswith("-A") or ":NODE" in line]
        return ["\n".join(rules), *said[2:]]

    def is_captured(self):
        return ("connect4" if self.node.capture == "bpf" else "15001") in self.rules()[0]

    def spoil(self):
        """Somebody takes the rules that capture what the pod sends."""
        if self.node.capture == "bpf":
            next(self.node.layout.bpf_dir("node1").glob("v1/workloads/*/connect4")).unlink()
            return
        by = {"iptables": f"iptables-nft -t nat -F {iptables.OUT}"}
        words = by.get(self.node.capture, "nft flush chain inet nodemesh nat-output")
        netns.run(*netns.inside(self.netns), *words.split())


@pytest.fixture
def node(capture):
    made = Node(capture)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def tunnel(node):
    node.connect_tunnel()
    return node.tunnel


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)], ids=["ipv4", "ipv6", "dual"])
def test_a_pod_comes_is_checked_and_goes_without_a_trace(node, tunnel, versions):
    pod = node.pod("web-1", versions)
    before = pod.rules()
    pod.add()
    assert node.states() == {"web-1": "IN_MESH"}
    assert list(tunnel.served) == ["Kubernetes//Pod/shop/web-1"]
    assert pod.is_captured()
    assert pod.call("CHECK").status == 0
    assert pod.call("DEL").status == 0
    assert (node.states(), tunnel.served, pod.rules()) == ({}, {}, before)


def test_a_pod_that_is_not_meant_for_the_mesh_is_not_touched(node, tunnel):
    pod = node.pod("plain", labels={"istio.io/dataplane-mode": "none"})
    before = pod.rules()
    pod.add()
    assert (pod.rules(), tunnel.served) == (before, {})


def test_without_a_tunnel_the_pod_does_not_start_and_nothing_is_left(node):
    pod = node.pod("web-1")
    before = pod.rules()
    error = pod.call("ADD").error
    assert (error["code"], error["msg"]) == (11, "pod shop/web-1 is not in the mesh: no tunnel is connected")
    assert pod.rules() == before


def test_a_tunnel_that_acknowledges_without_listening_is_found_out(node):
    node.connect_tunnel(listens=False)
    pod = node.pod("web-1")
    before = pod.rules()
    error = pod.call("ADD").error
    assert error["code"] == 100
    assert "the canary connection to 192.0.2.127 failed: Connection refused" in error["msg"]
    assert pod.rules() == before


def test_a_pod_that_took_the_tunnels_port_is_refused(node, tunnel):
    pod = node.pod("web-1")
    script = "import socket, time; s = socket.create_server(('', 15001)); print('up', flush=True); time.sleep(600)"
    processes.start(node.layout, "squatter", pod.netns, [sys.executable, "-c", script])
    processes.wait_until("the squatter listens", lambda: node.layout.log("squatter").read_text() == "up\n", SOON_S)
    error = pod.call("ADD").error
    assert (error["code"], "Address already in use" in error["msg"]) == (100, True)


def test_a_check_names_what_somebody_deleted(node, tunnel):
    pod = node.pod("web-1")
    pod.add()
    pod.spoil()
    error = pod.call("CHECK").error
    assert error["code"] == 100
    rules = r"chain \S+ (of IPv4 table nat )?lacks (9 of its 9|5 of its 5) rules"
    assert re.fullmatch(f"pod shop/web-1: (the hook connect4 is missing|{rules})", error["msg"])


def test_an_agent_that_was_killed_finds_its_pods_and_does_not_touch_them(node, tunnel):
    pod = node.pod("web-1")
    pod.add()
    rules = pod.rules()
    tunnel.hang_up()
    node.end()
    assert node.pod("web-2").call("ADD").code == 11
    node.start()
    node.wait_for("WAITING")
    for listener in tunnel.served.pop("Kubernetes//Pod/shop/web-1"):
        listener.close()
    node.connect_tunnel()
    node.wait_for("IN_MESH")
    assert pod.rules() == rules, "same handles: nothing was replaced"
    assert node.tunnel.heard == ["add", "snapshot_sent"]


def test_rules_deleted_while_the_agent_was_away_are_restored(node, tunnel):
    pod = node.pod("web-1")
    pod.add()
    tunnel.close()
    node.end()
    pod.spoil()
    node.start()
    node.connect_tunnel()
    node.wait_for("IN_MESH")
    assert pod.is_captured()


def test_a_pod_that_went_while_the_agent_was_away_is_dropped(node, tunnel):
    pod = node.pod("web-1")
    pod.add()
    node.end()
    netns.delete(pod.netns)
    netns.create(pod.netns)
    node.start()
    assert node.states() == {}


def test_an_agent_that_is_asked_to_stop_leaves_the_rules_in(node, tunnel):
    pod = node.pod("web-1")
    pod.add()
    rules = pod.rules()
    node.end(signal.SIGTERM)
    assert pod.rules() == rules
    assert pod.call("DEL").status == 0, "DEL never fails"
    node.start()


def test_the_listeners_group_stays_while_a_pod_is_in_the_mesh_and_goes_with_the_last(node):
    cgroups.create(node.netns)
    group = cgroups.of(node.netns) / "listeners"
    kept = {
        "NODEMESH_LISTENERS_KEPT": "30s",
        "NODEMESH_LISTENER_GROUP": str(group.relative_to(cgroups.mount())),
    }
    node.end()
    node.start(**kept)
    assert group.is_dir()
    node.connect_tunnel()
    pod = node.pod("web-1")
    pod.add()
    node.end(signal.SIGTERM)
    assert group.is_dir(), "the next agent's tunnels know their sockets by it"
    node.start(**kept)
    assert pod.call("DEL").status == 0
    assert node.states() == {}
    node.end(signal.SIGTERM)
    assert not group.exists()
    node.start()


def test_a_tunnel_that_comes_back_is_told_of_every_pod(node, tunnel):
    node.pod("web-1").add()
    node.disconnect_tunnel()
    node.wait_for("WAITING")
    node.connect_tunnel()
    node.wait_for("IN_MESH")


def test_many_pods_at_once_all_join(node, tunnel):
    pods = [node.pod(f"web-{number}") for number in range(12)]
    with ThreadPoolExecutor(12) as runtime:
        list(runtime.map(Pod.add, pods))
    assert set(node.states().values()) == {"IN_MESH"}


def test_how_long_an_add_takes(node, tunnel, record_property):
    took = []
    for number in range(15):
        pod = node.pod(f"web-{number}")
        began = time.perf_counter()
        pod.add()
        took.append((time.perf_counter() - began) * 1000)
    told = node.ask("/pods")
    agents = [pod["add_ms"] for pod in told]
    steps = {step: statistics.median(pod["took_ms"][step] for pod in told) for step in told[0]["took_ms"]}
    record_property("add_ms_p50", round(statistics.median(took), 1))
    record_property("agent_ms_p50", statistics.median(agents))
    print(f"ADD p50 {statistics.median(took):.1f} ms, of which the agent {statistics.median(agents):.1f} ms: {steps}")
