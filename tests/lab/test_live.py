"""Pods that join and leave the mesh while they run and are talked to: nobody notices, and nothing goes around it."""

import subprocess

import pytest

from lab import daemons, documents
from lab.apps import ECHO_PORT
from lab.documents import PodSpec
from lab.probes import Probe
from lab.processes import wait_until

pytestmark = pytest.mark.lab

PAUSE_S = 0.01
EFFECT_S = 60.0


class Labelled:
    """A pod whose label a person changes."""

    def __init__(self, mesh, pod):
        self.mesh, self.pod, self._spec = mesh, pod, None

    def label(self, mode):
        spec = PodSpec(self.pod.name, self.pod.node, labels={"istio.io/dataplane-mode": mode})
        document = documents.pod(spec, self.pod.sandbox.uid)
        hosts = ["172.30.0.11", "fd00:172:30::b"]
        self.mesh.apply(f"pod-shop-{self.pod.name}", documents.running(document, self.pod.ips, hosts))

    @property
    def state(self):
        """None: its agent does not have it in the mesh."""
        pods = self.mesh.ask(f"nodeagent-{self.pod.node}", "/pods")
        return next((pod["state"] for pod in pods if pod["name"] == self.pod.name), None)

    def join(self):
        self.label("ambient")
        wait_until(f"{self.pod.name} is in the mesh", lambda: self.state == "IN_MESH", EFFECT_S)

    def leave(self):
        self.label("none")
        wait_until(f"{self.pod.name} leaves", lambda: self.state in ("LEAVING", None), EFFECT_S)

    def gone(self):
        wait_until(f"{self.pod.name} has left", lambda: self.state is None, 4 * EFFECT_S)


@pytest.fixture
def newcomer(mesh):
    """Runs outside the mesh, on node1."""
    pod = mesh.add_pod(PodSpec("newcomer", "node1", labels=documents.OUT_OF_MESH))
    yield Labelled(mesh, pod)
    mesh.delete_pod("newcomer")


@pytest.fixture
def veteran(mesh):
    """Started in the mesh, on node1."""
    pod = mesh.add_pod(PodSpec("veteran", "node1"))
    yield Labelled(mesh, pod)
    mesh.delete_pod("veteran")


def stopped(*loops):
    return [(said["failed"], said["why"]) for said in (loop.stop() for loop in loops)]


def test_a_running_pod_joins_and_leaves_under_load_without_a_failed_request(mesh, newcomer):
    """A new connection every 10 ms, no retry: to it from another node, its own and outside the mesh, and out of it."""
    me, far, near, plain = newcomer.pod, mesh.pods["web-2"], mesh.pods["web-1"], mesh.pods["plain-2"]
    pairs = [(far, me), (near, me), (plain, me), (me, far), (me, near), (me, plain)]
    loops = [Probe(mesh, source, "loop", target.ip, ECHO_PORT, PAUSE_S) for source, target in pairs]
    held = Probe(mesh, far, "hold", me.ip, ECHO_PORT, PAUSE_S)
    holds = Probe(mesh, me, "hold", far.ip, ECHO_PORT, PAUSE_S)
    try:
        for client in (*loops, held, holds):
            client.expect("open")
        newcomer.join()
        with Probe(mesh, far, "hold", me.ip, ECHO_PORT, PAUSE_S) as inside:
            inside.expect("open")
            newcomer.leave()
            assert stopped(*loops) == [(0, [])] * len(loops), refusals(mesh, newcomer)
            assert [client.stop()["event"] for client in (held, holds, inside)] == ["stopped"] * 3
        newcomer.gone()
    finally:
        for client in (*loops, held, holds):
            client.__exit__()


def test_a_pod_that_started_in_the_mesh_leaves_and_comes_back_under_load_without_a_failed_request(mesh, veteran):
    """Its guard, which lets no TCP out but the tunnel's, goes first."""
    me, far, near = veteran.pod, mesh.pods["web-2"], mesh.pods["web-1"]
    pairs = [(far, me), (near, me), (mesh.pods["plain-2"], me), (me, far), (me, near)]
    loops = [Probe(mesh, source, "loop", target.ip, ECHO_PORT, PAUSE_S) for source, target in pairs]
    held = Probe(mesh, far, "hold", me.ip, ECHO_PORT, PAUSE_S)
    try:
        for client in (*loops, held):
            client.expect("open")
        veteran.leave()
        with Probe(mesh, far, "hold", me.ip, ECHO_PORT, PAUSE_S) as outside:
            outside.expect("open")
            assert held.stop()["event"] == "stopped"
            veteran.gone()
            veteran.join()
            assert stopped(*loops) == [(0, [])] * len(loops), refusals(mesh, veteran)
            assert outside.stop()["event"] == "stopped"
    finally:
        for client in (*loops, held):
            client.__exit__()


def refusals(mesh, newcomer):
    """What the tunnels say of connections of that pod that failed."""
    logs = [mesh.layout.access_log(node).read_text().splitlines() for node in mesh.nodes]
    return [line for log in logs for line in log if '"error"' in line and newcomer.pod.name in line]


def test_what_joined_is_captured_and_what_left_has_no_trace(mesh, newcomer):
    before = rules(mesh, newcomer.pod)
    newcomer.join()
    with Probe(mesh, newcomer.pod, "hold", mesh.pods["web-2"].ip, ECHO_PORT, PAUSE_S) as client:
        port = client.expect("open")["local"]
        dump = mesh.ask("ztunnel-node1", "/config_dump")
        assert newcomer.pod.uid in dump["workloadState"], port
    newcomer.leave()
    newcomer.gone()
    assert rules(mesh, newcomer.pod) == before


def rules(mesh, pod):
    words = ("iptables-nft-save", "ip6tables-nft-save", "nft list tables", "ip rule", "ip -6 rule")
    said = [mesh.exec(pod, word.split()).stdout for word in words]
    listed = [line for line in "".join(said[:2]).splitlines() if "NODEMESH" in line]
    return [*listed, *(line for line in said[2].splitlines() if "nodemesh" in line), *said[3:]]


def test_a_pod_that_started_without_us_is_found_and_joins(mesh, newcomer):
    """The agent has never heard of it: it was away, and knows only what the runtime wrote down."""
    mesh.daemons["nodeagent-node1"].kill()
    newcomer.label("ambient")
    mesh.start_agent("node1")
    wait_until("it joins", lambda: newcomer.state == "IN_MESH", EFFECT_S)


def test_rules_that_somebody_took_away_are_back_within_seconds_and_it_is_told(mesh):
    pod = mesh.pods["web-1"]
    before = repairs(mesh, pod)
    assert mesh.exec(pod, ["ip", "rule", "del", "pref", "32764"]).returncode == 0
    took = wait_until("the rule is back", lambda: "32764" in mesh.exec(pod, ["ip", "rule"]).stdout, EFFECT_S)
    wait_until("it is counted", lambda: repairs(mesh, pod) > before, EFFECT_S)
    wait_until("it is proven", lambda: Labelled(mesh, pod).state == "IN_MESH", EFFECT_S)
    assert 'nodemesh_agent_repairs_total{kind="capture",backend=' in metrics(mesh, pod.node)
    print(f"repaired after {took * 1000:.0f} ms")


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15053])
def test_a_listener_that_somebody_destroyed_listens_again_and_no_connection_ends_by_it(mesh, veteran, port):
    """As `ss -K` does it, and whatever else has the right to destroy sockets."""
    pod, far = veteran.pod, mesh.pods["web-2"]
    with (
        Probe(mesh, far, "hold", pod.ip, ECHO_PORT, PAUSE_S) as inward,
        Probe(mesh, pod, "hold", far.ip, ECHO_PORT, PAUSE_S) as outward,
    ):
        for client in (inward, outward):
            client.expect("open")
        destroy(mesh, pod, port)
        wait_until("it is counted", lambda: repairs(mesh, pod) == 1, EFFECT_S)
        wait_until("it is proven", lambda: veteran.state == "IN_MESH", EFFECT_S)
        assert told(mesh, pod)["last_repair"] == f"nobody listened at {port}"
        assert 'nodemesh_agent_repairs_total{kind="listeners",backend=' in metrics(mesh, pod.node)
        for source, target in ((far, pod), (pod, far), (mesh.pods["plain-2"], pod)):
            wait_until(f"{source.name} reaches {target.name}", lambda a=source, b=target: mesh.reaches(a, b), EFFECT_S)
        assert [client.stop()["event"] for client in (inward, outward)] == ["stopped", "stopped"]


def destroy(mesh, pod, port):
    assert mesh.exec(pod, ["ss", "-K", "-lnt", f"sport = :{port}"]).returncode == 0
    assert f":{port} " not in mesh.exec(pod, ["ss", "-lnt"]).stdout


def told(mesh, pod):
    return next(p for p in mesh.ask(f"nodeagent-{pod.node}", "/pods") if p["name"] == pod.name)


def repairs(mesh, pod):
    return told(mesh, pod)["repairs"]


def metrics(mesh, node):
    """The agent's, as its door gives them."""
    socket = daemons.admin_socket(mesh.layout, mesh.daemons[f"nodeagent-{node}"])
    command = ["curl", "-sf", "--unix-socket", str(socket), "http://x/metrics"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
