"""What only capture by BPF promises: every way to connect, names as if nothing had happened, no maker needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import needs
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.documents import PodSpec
from lab.processes import wait_until
from lab.wire import Capture
from nodeagent import libbpf
from nodeagent.redirect import bpf_programs, bpf_records
from tests import dnswire
from tests.lab import scripts, ways_out
from tests.lab.damage import captured_by

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("by_bpf")]

SOON_S = 60.0
PORT = 9009
LOAD = """
import socket
for _ in range(400):
    socket.create_connection(({ip!r}, {port}), 60).close()
print("all 400", flush=True)
"""
REPEATER = """
connection.settimeout(30)
words = connection.recv(100)
connection.sendall(peer[0].removeprefix("::ffff:").encode() + b" said " + words)
connection.close()
"""


@pytest.fixture(scope="module")
def server(mesh):
    """In web-2, on the other node."""
    pod = mesh.pods["web-2"]
    mesh.start_in(pod, "repeater", scripts.server(PORT, REPEATER))
    wait_until("the repeater listens", lambda: "listening" in mesh.layout.log("repeater").read_text(), SOON_S)
    return pod


@pytest.fixture(scope="module")
def name_server(mesh):
    pod = mesh.pods["plain-2"]
    mesh.start_in(pod, "names", scripts.python(scripts.NAME_SERVER))
    wait_until("it listens", lambda: "listening" in mesh.layout.log("names").read_text(), SOON_S)
    return pod


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def told(mesh, server, request):
    """Way -> what the program in web-1 was told, and the client's and the server's address."""
    ip = server.address(request.param)
    script = str(needs.REPOSITORY / "tests/lab/ways_out.py")
    with Capture(mesh, f"ways{request.param}") as wire:
        said = mesh.exec(mesh.pods["web-1"], [sys.executable, "-I", "-S", script, ip, str(PORT)])
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert wire.count(b"hello") == 0
    return {line.pop("way"): line for line in lines}, mesh.pods["web-1"].address(request.param), ip


@pytest.mark.parametrize("way", [way.__name__ for way in ways_out.WAYS])
def test_every_way_of_connecting_is_captured_and_shows_the_addresses_that_were_meant(told, way):
    lines, client, server = told
    assert lines[way] == {"said": f"{client} said hello", "peer": server, "own": client}


def test_the_application_accepts_from_the_clients_address_and_may_ask_who_it_is(mesh, server):
    """And answers over lo: nothing of the inner connection is on the wire, which the capture above counted."""
    assert mesh.http(mesh.pods["web-1"], server.at(HTTP_PORT)) == f"{mesh.pods['web-1'].ip} web-2"
    assert mesh.http(mesh.pods["plain-1"], server.at(HTTP_PORT)) == f"{mesh.pods['plain-1'].ip} web-2"


@pytest.mark.parametrize(
    ("name", "answers"), [("web.shop.svc.cluster.local", "of the mesh"), ("example.org", ["192.0.2.77"])]
)
def test_questions_are_answered_by_the_tunnel_or_by_the_server_that_was_asked_under_its_name(
    mesh, pods, name_server, version, name, answers
):
    server = name_server.address(version)
    question = dnswire.question(name).hex()
    done = mesh.exec(pods["web-1"], scripts.python(scripts.ASKER.format(server=server, question=question)))
    for line in done.stdout.splitlines():
        answer, *senders = json.loads(line)
        assert senders == [[server, 53], [server, 53]]
        wanted = [mesh.vips["web"]] if answers == "of the mesh" else answers
        assert dnswire.Message(bytes.fromhex(answer)).texts == wanted
    assert done.stdout.count("\n") == 2, done.stderr


def test_a_kernel_that_cannot_tell_the_peer_of_an_mptcp_socket_captures_all_the_same(tmp_path):
    """A helper that no kernel has stands for one that an older kernel lacks."""
    shutil.copytree(needs.REPOSITORY / "bpf", tmp_path / "bpf")
    header = tmp_path / "bpf/multipath.h"
    lacking = "((struct mptcp_sock *(*)(void *))9999)(sk)"
    header.write_text(header.read_text().replace("bpf_skc_to_mptcp_sock(sk)", lacking))
    made = tmp_path / "objects/capture.bpf.o"
    subprocess.run(["make", "-s", "-C", header.parent, f"OUT={made.parent}", made], check=True)
    with pytest.raises(libbpf.BpfError, match="mesh_connect4"):
        libbpf.Object(made, None, bpf_records.pack_abilities(multipath=True), bpf_programs.ABLE)
    with libbpf.Object(made, None, bpf_records.pack_abilities(multipath=False), bpf_programs.ABLE) as loaded:
        assert "mesh_connect4" in loaded.programs


def test_nothing_of_netfilter_is_used_for_capture(mesh):
    tables = mesh.exec(mesh.pods["web-1"], ["nft", "list", "tables"]).stdout
    assert "nodemesh\n" not in tables
    assert "nat" not in mesh.exec(mesh.pods["web-1"], ["nft", "list", "ruleset"]).stdout


def test_no_connection_of_a_pod_is_tracked(mesh, pods):
    """Which costs every packet on either side of the tunnel, and one rule that asks for it is enough."""
    assert mesh.reaches(pods["web-1"], pods["web-2"])
    for pod in (pods["web-1"], pods["web-2"]):
        tracked = mesh.exec(pod, ["cat", "/proc/sys/net/netfilter/nf_conntrack_count"])
        assert tracked.stdout in ("0\n", "")  # nothing: nobody on this machine has asked for it yet


def test_without_the_tunnel_connections_wait_without_the_agent_too_they_are_refused_and_none_is_plain(
    mesh, pods, version
):
    """The agent keeps the pod's listening sockets for the next tunnel."""
    client, server = pods["web-1"], pods["web-2"]
    calls = (client, server), (pods["plain-2"], client)
    code = "import socket; s = socket.socket({f}); s.settimeout(30); print(s.connect_ex(({ip!r}, {port})))"
    hear = """
s.settimeout(0.5)
try: s.sendall(b"?"); print(len(s.recv(9)))
except OSError as error: print(type(error).__name__)"""

    def knock(source, target):
        family = "socket.AF_INET6" if version == 6 else "socket.AF_INET"
        script = code.format(f=family, ip=target.address(version), port=HTTP_PORT) + hear
        return mesh.exec(source, scripts.python(script)).stdout.split()

    mesh.daemons["ztunnel-node1"].kill()
    try:
        with Capture(mesh, "away", everything=True) as wire:
            assert [knock(*call) for call in calls] == [["0", "TimeoutError"]] * 2
            mesh.daemons["nodeagent-node1"].kill()
            assert [knock(*call)[0] for call in calls] == ["111"] * 2
        assert not [packet for packet in wire.packets if str(packet.src) == client.ip and packet.dport == HTTP_PORT]
    finally:
        mesh.start_agent("node1")
        mesh.start_tunnel("node1")
    wait_until("they talk again", lambda: mesh.reaches(client, server, version), SOON_S)
    wait_until("and are reached", lambda: mesh.reaches(pods["plain-2"], client, version), SOON_S)


def test_capture_outlives_a_killed_agent_and_the_next_one_touches_nothing(mesh, pods):
    agent = mesh.daemons["nodeagent-node1"]
    pins = _pins(mesh, pods["web-1"])
    before = {pin.name: libbpf.describe(pin) for pin in pins.iterdir()}
    agent.kill()
    assert mesh.reaches(pods["web-1"], pods["web-2"])
    said = len(mesh.layout.log("nodeagent-node1").read_text())
    mesh.start_agent("node1")
    wait_until("its pods are back", lambda: _in_mesh(mesh, "node1"), SOON_S)
    assert {pin.name: libbpf.describe(pin) for pin in pins.iterdir()} == before
    assert "rules differ" not in mesh.layout.log("nodeagent-node1").read_text()[said:]


def test_an_agent_of_another_version_replaces_the_programs_in_place_under_load(mesh, pods):
    """As if the earlier agent had shipped other objects: its directory of programs bears another digest."""
    programs = mesh.layout.bpf_dir("node1") / "v1/programs"
    pins = _pins(mesh, pods["web-1"])
    before = {pin.name: libbpf.describe(pin) for pin in pins.iterdir()}
    mesh.daemons["nodeagent-node1"].kill()
    current = next(programs.iterdir())
    current.rename(programs / "0123456789ab")
    ask = LOAD.format(ip=pods["web-2"].ip, port=HTTP_PORT)
    load = mesh.start_in(pods["web-1"], "upgrade-load", scripts.python(ask))
    mesh.start_agent("node1")
    wait_until("its pods are back", lambda: _in_mesh(mesh, "node1"), SOON_S)
    assert load.wait(300)
    assert mesh.layout.log("upgrade-load").read_text() == "all 400\n"
    after = {pin.name: libbpf.describe(pin) for pin in pins.iterdir()}
    assert {name for name in after if after[name].program == before[name].program} == set()
    assert {name: info.target for name, info in after.items()} == {name: info.target for name, info in before.items()}
    assert [each.name for each in programs.iterdir()] != ["0123456789ab"]
    assert mesh.reaches(pods["web-1"], pods["web-2"])


def test_a_pod_that_goes_leaves_no_pin_no_entry_and_no_setting(mesh):
    pod = mesh.add_pod(PodSpec("passing", "node1"), with_apps=False)
    pins = _pins(mesh, pod)
    assert len(list(pins.iterdir())) == len(bpf_programs.WORKLOAD_HOOKS) + 1 + (1 if mesh.direct else 0)
    mesh.delete_pod("passing")
    assert not pins.exists()
    pods = mesh.ask("nodeagent-node1", "/pods")
    assert "passing" not in {each["name"] for each in pods}
    enrolled = {each["netns_identity"].removeprefix("cookie:") for each in pods if each["capture"] == "bpf"}
    assert {each.name.removeprefix("netns-") for each in pins.parent.iterdir()} == enrolled


def test_what_a_pod_left_while_no_agent_was_there_goes_with_the_next_one(mesh):
    pins = _pins(mesh, mesh.add_pod(PodSpec("fleeting", "node1"), with_apps=False))
    mesh.daemons["nodeagent-node1"].kill()
    try:
        mesh.delete_pod("fleeting")
    finally:
        mesh.start_agent("node1")
    wait_until("its pins are gone", lambda: not pins.exists(), SOON_S)
    wait_until("the others are back", lambda: _in_mesh(mesh, "node1"), SOON_S)


@pytest.mark.parametrize("hook", ["connect4", "release"])
def test_a_link_that_somebody_took_is_missed_and_put_back(mesh, pods, hook):
    """Or that an agent of an earlier version did not put in, as `release`."""
    pin = _pins(mesh, pods["web-1"]) / hook
    pin.unlink()
    verified = {pod["name"]: pod["differences"] for pod in mesh.ask("nodeagent-node1", "/verify")}
    assert verified["web-1"] == [f"the hook {hook} is missing"]
    mesh.daemons["nodeagent-node1"].signal(signal.SIGKILL)
    mesh.start_agent("node1")
    wait_until("it is repaired", pin.exists, SOON_S)
    wait_until("its pods are back", lambda: _in_mesh(mesh, "node1"), SOON_S)
    assert mesh.reaches(pods["web-1"], pods["web-2"])


def test_a_listener_that_is_not_in_the_map_any_more_files_itself_again(mesh, server):
    """What arrives is refused until then."""
    cookie = int(_pins(mesh, server).name.removeprefix("netns-"))
    listeners = _pins(mesh, server).parents[1] / "maps/mesh_listeners"
    fd = libbpf.open_pin(listeners)
    try:
        entries = libbpf.Map(fd, bpf_records.LISTENER_BYTES, bpf_records.COOKIE_BYTES)
        key = bpf_records.pack_listener(cookie, 15006)
        assert entries.get(key) is not None
        entries.discard(key)
        wait_until("it is filed again", lambda: entries.get(key) is not None, SOON_S)
    finally:
        os.close(fd)
    wait_until("it is reached", lambda: mesh.reaches(mesh.pods["plain-1"], server), SOON_S)


def test_a_gateways_pod_takes_plaintext_itself_and_tunnels_still(mesh, pods, version):
    spec = PodSpec("gate", "node1", annotations={"ambient.istio.io/bypass-inbound-capture": "true"})
    gate = mesh.add_pod(spec)
    try:
        assert mesh.http(pods["plain-2"], gate.at(HTTP_PORT, version)) == f"{pods['plain-2'].address(version)} gate"
        wait_until("it is known", lambda: mesh.reaches(pods["web-2"], gate, version), SOON_S)
    finally:
        mesh.delete_pod("gate")


@pytest.mark.parametrize(
    "annotation",
    [{"excludeOutboundPorts": str(HTTP_PORT)}, {"excludeOutboundIPRanges": "10.244.2.0/24,fd00:10:244:2::/64"}],
    ids=["ports", "ranges"],
)
def test_what_a_pod_excludes_goes_past_the_tunnel_and_the_rest_does_not(mesh, pods, server, version, annotation):
    """Plaintext of the first on the wire, none of the second."""
    spec = PodSpec("partly", "node1", annotations={f"traffic.sidecar.istio.io/{k}": v for k, v in annotation.items()})
    partly = mesh.add_pod(spec, with_apps=False)
    by = next(iter(annotation))
    try:
        assert captured_by(mesh, partly) == "bpf"
        with Capture(mesh, f"partly-{by}{version}") as wire:
            assert mesh.http(partly, server.at(HTTP_PORT, version)) == f"{partly.address(version)} web-2"
        assert wire.count(b"GET / ") > 0
        other = pods["web-4"] if "excludeOutboundPorts" in annotation else pods["web-3"]
        port = ECHO_PORT if "excludeOutboundPorts" in annotation else HTTP_PORT
        with Capture(mesh, f"wholly-{by}{version}") as wire:
            say = "connection.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(len(connection.recv(100)))"
            assert int(mesh.exec(partly, scripts.client(other.address(version), port, say)).stdout) > 0
        assert wire.count(b"GET / ") == 0
    finally:
        mesh.delete_pod("partly")


def test_an_excluded_port_takes_plaintext_itself(mesh, pods, version):
    spec = PodSpec("open", "node1", annotations={"traffic.sidecar.istio.io/excludeInboundPorts": str(ECHO_PORT)})
    partly = mesh.add_pod(spec)
    say = "connection.sendall(b'x'); print(connection.recv(1))"
    try:
        tunnel = mesh.daemons["ztunnel-node1"]
        tunnel.signal(signal.SIGSTOP)
        try:
            done = mesh.exec(pods["plain-2"], scripts.client(partly.address(version), ECHO_PORT, say))
        finally:
            tunnel.signal(signal.SIGCONT)
        assert done.stdout == "b'x'\n", "answered while the tunnel stands still"
    finally:
        mesh.delete_pod("open")


def _pins(mesh, pod):
    told = next(each for each in mesh.ask(f"nodeagent-{pod.node}", "/pods") if each["name"] == pod.name)
    cookie = told["netns_identity"].removeprefix("cookie:")
    return Path(mesh.layout.bpf_dir(pod.node)) / "v1/workloads" / f"netns-{cookie}"


def _in_mesh(mesh, node):
    return {pod["state"] for pod in mesh.ask(f"nodeagent-{node}", "/pods")} == {"IN_MESH"}
