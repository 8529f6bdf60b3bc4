"""A pod with a container's usual capabilities cannot send one byte of TCP past the mesh.

The cases C1 to C13, each tried from inside the mesh and, to show that the attempt is a real one, from outside. What
counts is what the wire between the nodes carried, not what the attacker was told.
"""

import json
import signal
import sys
from contextlib import contextmanager

import pytest

from lab import cgroups, daemons, needs, processes
from lab.apps import HTTP_PORT
from lab.documents import PodSpec
from lab.processes import wait_until
from lab.runtime import CniRefused
from lab.wire import Capture
from tests.lab import attacker, scripts
from tests.lab.damage import captured_by

pytestmark = pytest.mark.lab

SOON_S = 60.0
NET_ADMIN, NET_RAW, SYS_ADMIN = 12, 13, 21
CONTAINER = (
    "chown,dac_override,fsetid,fowner,mknod,net_raw,setgid,setuid,setfcap,setpcap,"
    "net_bind_service,sys_chroot,kill,audit_write"
)
"""What Docker and containerd leave to a container's root."""

THREATS = {
    "C1 the tunnel's marks": "as_tunnel as_tunnel_on_device as_judged as_judged_on_device marked_after_connect",
    "C1 the mark of the direct path": "as_direct as_direct_on_device raw_as_direct",
    "C1 another device": "on_device",
    "C3 own packets": "raw_syn raw_data raw_nonsense raw_as_tunnel raw_as_judged raw_as_reply raw_fragments raw_hidden",
    "C3 own frames": "frame_plain frame_as_tunnel frame_past_queues",
    "C5 the other family": "plain mapped",
    "C6 the proxy's user": "as_proxy_uid as_daemon_uid",
    "C10 a probe's address": "from_foreign_source",
    "C11 the tunnel's ports": "to_outbound to_plaintext to_tunnel to_tunnel_as_tunnel to_dns",
    "C13 odd TCP": "fast_open multipath tiny_segments urgent port_zero to_itself_at_once",
}
CASES = [(threat.split()[0], case) for threat, cases in THREATS.items() for case in cases.split()]
# From outside these do not reach the wire either: nobody answers there, or the kernel has no such thing.
NEVER_SEEN = {
    "port_zero",
    "to_itself_at_once",
    "to_dns",
    "to_outbound",
    "to_plaintext",
    "from_foreign_source",
    "raw_hidden4",
}


def confined(*argv):
    """As a container's process: root with the usual capabilities, and no way to others."""
    chosen = ",".join(f"+{name}" for name in CONTAINER.split(","))
    return ["setpriv", "--bounding-set", f"-all,{chosen}", "--inh-caps", f"-all,{chosen}", "--", *argv]


class Attack:
    """Every attempt of `attacker.py` from both pods at once, and what the wire said."""

    def __init__(self, mesh, version):
        self.target = mesh.pods["web-2"]
        self.inside, self.outside = mesh.pods["web-1"], mesh.pods["plain-1"]
        with Capture(mesh, f"bypass-{version}", everything=True) as wire, _leaving(mesh, self.inside) as left:
            said = [
                mesh.start_in(pod, f"attacker{version}-{pod.name}", self._command(pod, version))
                for pod in (self.inside, self.outside)
            ]
            assert all(process.wait(300.0) for process in said)
        self.told = {pod.name: _told(mesh, f"attacker{version}-{pod.name}") for pod in (self.inside, self.outside)}
        self.seen, self.left = wire.content, left.read_bytes()
        self.packets = wire.packets
        self.version = version

    def _command(self, pod, version):
        script = str(needs.REPOSITORY / "tests/lab/attacker.py")
        # Inside most attempts wait in vain; outside hardly any does, and each must come through.
        patience_s = "1" if pod is self.inside else "20"
        words = [pod.name, self.target.address(version), str(HTTP_PORT), pod.address(version), patience_s]
        return confined(sys.executable, "-I", "-S", script, *words)

    def count(self, case, pod):
        return self.seen.count(attacker.marker(case, pod.name))


@contextmanager
def _leaving(mesh, pod):
    """All that goes out of the pod's device: a node may hold or mend what the wire between nodes then does not show."""
    name = f"leaving-{pod.name}"
    file = mesh.layout.dir / f"{name}.pcap"
    options = ["-Q", "out", "-s", "65664", "-B", "65536", "-U", "--immediate-mode", "-Z", "root", "-w", str(file)]
    process = mesh.start_in(pod, name, ["tcpdump", "-i", "eth0", *options])
    wait_until("tcpdump listens", lambda: b"listening on" in mesh.layout.log(name).read_bytes(), SOON_S)
    yield file
    process.signal(signal.SIGTERM)
    assert process.wait(SOON_S)


def _told(mesh, name):
    return [json.loads(line) for line in mesh.layout.log(name).read_text().splitlines()]


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def attack(mesh, request):
    return Attack(mesh, request.param)


def test_the_attacker_is_a_container_as_usual(attack):
    held = attack.told["web-1"][0]["capabilities"]
    assert NET_RAW in held
    assert not {NET_ADMIN, SYS_ADMIN} & set(held)


@pytest.mark.parametrize(("threat", "case"), CASES, ids=[f"{threat}-{case}" for threat, case in CASES])
def test_not_one_byte_gets_past_the_mesh(attack, threat, case):
    if {case, f"{case}{attack.version}"}.isdisjoint(NEVER_SEEN):
        assert attack.count(case, attack.outside) > 0, "from outside the same attempt is seen"
    assert attack.count(case, attack.inside) == 0
    assert attack.left.count(attacker.marker(case, attack.inside.name)) == 0


def test_every_segment_of_the_pod_on_the_wire_is_the_tunnels(attack):
    own = str(attack.inside.address(attack.version))
    sent = [packet for packet in attack.packets if str(packet.src) == own]
    assert sent
    assert [packet for packet in sent if 15008 not in (packet.sport, packet.dport)] == []


@pytest.mark.parametrize("case", attacker.OTHER)
def test_what_is_not_tcp_goes_past_the_mesh_as_the_manual_says(attack, case):
    """C4. The exceptions, so that nobody believes otherwise."""
    assert attack.count(case, attack.inside) > 0
    assert attack.left.count(attacker.marker(case, attack.inside.name)) > 0


# The tunnel's ports ---------------------------------------------------------------------------------------------------

PORTS = (15001, 15006, 15008)
BIND = """
import socket, sys
for host in ("::", "0.0.0.0", "127.0.0.1", {own!r}):
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        made.bind((host, {port}))
        made.listen()
        print("took", host, flush=True)
    except OSError:
        pass
"""


@pytest.mark.parametrize("port", PORTS)
def test_a_pod_cannot_share_the_tunnels_ports(mesh, pods, port):
    """C7. The tunnel listens without SO_REUSEPORT, so that nobody gets a share, on no address."""
    code = scripts.python(BIND.format(port=port, own=pods["web-1"].ip))
    done = mesh.exec(pods["web-1"], confined(*code))
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("port", PORTS)
def test_a_pod_that_holds_a_port_before_the_mesh_comes_does_not_start(mesh, pods, port):
    """C8. Refused, not half captured; for 15008 on every address, for the others on one."""
    host = "::" if port == 15008 else "127.0.0.1"

    def squat():
        space = mesh.layout.pod_netns("shop", f"early-{port}")
        processes.start(mesh.layout, f"squatter-{port}", space, scripts.server(port, "connection.close()", host))
        wait_until("it listens", lambda: "listening" in mesh.layout.log(f"squatter-{port}").read_text(), SOON_S)

    with pytest.raises(CniRefused, match=str(port)):
        mesh.add_pod(PodSpec(f"early-{port}", "node1"), with_apps=False, before_cni=squat)


def test_nobody_takes_a_port_while_the_tunnel_is_away(mesh, pods):
    """The agent holds it for the next tunnel; captured by BPF, it is not even to be had when nobody does."""
    tunnel = mesh.daemons["ztunnel-node1"]
    pod = mesh.add_pod(PodSpec("taker", "node1"), with_apps=False)
    refusal = "PermissionError" if captured_by(mesh, pod) == "bpf" else "Address already in use"
    try:
        tunnel.kill()
        taken = mesh.exec(pod, confined(*scripts.server(15001, "pass")))
        assert refusal in taken.stderr
        with Capture(mesh, "taker", everything=True) as wire:
            say = "connection.sendall(b'<taken-port>')"
            mesh.exec(pod, confined(*scripts.client(pods["web-2"].ip, HTTP_PORT, say)))
            back = mesh.daemons[tunnel.name] = daemons.start_tunnel(mesh.layout, "node1")
            wait_until("it is up", lambda: daemons.is_up(mesh.layout, back), SOON_S)
            wait_until("the others are served", lambda: mesh.reaches(pods["web-1"], pods["web-2"]), SOON_S)
            mesh.exec(pod, confined(*scripts.client(pods["web-2"].ip, HTTP_PORT, say)))
        assert wire.count(b"<taken-port>") == 0
        assert pod.uid not in mesh.ask("ztunnel-node1", "/status")["zds"]["waiting"]
    finally:
        mesh.delete_pod("taker")


# The guard behind capture ---------------------------------------------------------------------------------------------


def test_a_tunnel_that_comes_back_in_a_new_control_group_is_known_before_it_serves(mesh, pods, version):
    """A service manager removes the group with the service and makes another of the same name."""
    tunnel = mesh.daemons["ztunnel-node1"]
    daemons.stop(tunnel)
    cgroups.delete(f"{mesh.layout.node_netns('node1')}/ztunnel")
    mesh.start_tunnel("node1")
    wait_until("its pods talk", lambda: mesh.reaches(pods["web-1"], pods["web-2"], version), SOON_S)
    assert all(pod["differences"] == [] for pod in mesh.ask("nodeagent-node1", "/verify"))


def test_a_restarted_agent_does_not_take_the_mark_from_the_tunnel(mesh, pods):
    """It knows the tunnel's group before the tunnel is back: what it repairs, it repairs right."""
    agent = mesh.daemons["nodeagent-node1"]
    agent.kill()
    mesh.start_agent("node1")
    assert mesh.reaches(pods["web-1"], pods["web-2"])
    began = mesh.layout.log("nodeagent-node1").read_text().rpartition('"event": "ready"')[2]
    assert "rules differ" not in began
    again = f"{mesh.layout.node_netns('node1')}/ztunnel"
    daemons.stop(mesh.daemons["ztunnel-node1"])
    cgroups.delete(again)
    mesh.start_tunnel("node1")
    wait_until("pods that it found are renewed, too", lambda: mesh.reaches(pods["web-1"], pods["web-2"]), SOON_S)


def test_a_guard_that_is_gone_is_put_in_again(mesh, pods):
    pod = mesh.add_pod(PodSpec("unguarded", "node1"), with_apps=False)
    try:
        mesh.exec(pod, ["nft", "delete", "table", "inet", "nodemesh-guard"])

        def repaired():
            return [p["last_repair"] for p in mesh.ask("nodeagent-node1", "/pods") if p["uid"] == pod.uid]

        wait_until("it is back", lambda: "table nodemesh-guard" in repaired()[0], SOON_S)
    finally:
        mesh.delete_pod("unguarded")
