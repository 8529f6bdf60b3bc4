"""The direct path within a node: who has a pass goes without the tunnel between, and nothing else has changed."""

import os
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from lab import documents
from lab.access import AccessLog
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.documents import PodSpec
from lab.probes import Probe
from lab.processes import wait_until
from nodeagent import libbpf
from nodeagent.redirect import bpf_records as records
from tests.lab import scripts
from tests.lab.damage import captured_by

pytestmark = pytest.mark.lab

SOON_S = 120.0
PAUSE_S = 0.01
DIRECT_MARK = 0x222


@pytest.fixture(scope="module", autouse=True)
def by_bpf(mesh):
    """The agent of node1 comes back with another setting, and goes back to the old one in the end."""
    if captured_by(mesh, mesh.pods["web-1"]) != "bpf":
        pytest.skip("the agents capture with something else")
    before = mesh.direct
    yield
    if mesh.direct != before:
        switch(mesh, before)


@pytest.fixture(autouse=True)
def direct(mesh, by_bpf):
    if not mesh.direct:
        switch(mesh, True)


def switch(mesh, on):
    mesh.daemons["nodeagent-node1"].kill()
    mesh.direct = on
    mesh.start_agent("node1")
    wait_until("its pods are back, as they should be", lambda: settled(mesh, on), SOON_S)


def settled(mesh, on):
    status, ours = mesh.ask("nodeagent-node1", "/status"), {mesh.pods[name].uid for name in ("web-1", "web-3")}
    states = {pod["state"] for pod in mesh.ask("nodeagent-node1", "/pods") if pod["uid"] in ours}
    faults = [each for each in mesh.ask("nodeagent-node1", "/verify") if each["uid"] in ours and each["differences"]]
    return (
        status["ready"]
        and status["capture"]["direct"] == ("on" if on else "off")
        and states == {"IN_MESH"}
        and not faults
    )


def goes_direct(mesh, source, target, version=0):
    """Whether the next connection does; each that does not asks for a pass, which the next change of anything ends."""
    with Probe(mesh, source, "hold", ip_of(target, version), ECHO_PORT, PAUSE_S) as client:
        return is_direct(mesh, source, client.expect("open")["local"], target, version)


def ip_of(pod, version):
    return pod.address(version) if version else pod.ip


def is_direct(mesh, source, port, target, version=0):
    """Where the connection from that port really leads."""
    said = mesh.exec(source, ["ss", "-tnH", "state", "established", f"sport = :{port}"]).stdout
    return said.split()[3].replace("[", "").replace("]", "") == f"{ip_of(target, version)}:{ECHO_PORT}"


@contextmanager
def held_direct(mesh, source, target):
    """A connection that is direct and stays open: the client, and its port."""
    with ExitStack() as clients:
        found = []

        def is_held():
            client = clients.enter_context(Probe(mesh, source, "hold", target.ip, ECHO_PORT, PAUSE_S))
            port = client.expect("open")["local"]
            found[:] = [(client, port)] if is_direct(mesh, source, port, target) else []
            return found

        wait_until("one is direct", is_held, SOON_S)
        yield found[0]


def test_two_pods_of_a_node_talk_without_the_tunnel_after_their_first_word(mesh, pods, version):
    client, server = pods["web-1"], pods["web-3"]
    wait_until("they have a pass", lambda: goes_direct(mesh, client, server, version), SOON_S)
    log = AccessLog(mesh, "node1")
    assert mesh.http(client, server.at(HTTP_PORT, version)) == f"{client.address(version)} web-3"
    wait_until("http, too", lambda: mesh.http(client, server.at(HTTP_PORT, version)) and path(log, "outbound"), SOON_S)


def path(log, direction):
    lines = [line for line in log.lines() if line.get("direction") == direction]
    return [line for line in lines if line.get("dst.path") == "direct"]


@pytest.fixture(scope="module")
def solo(mesh):
    """A service with one endpoint, on node1."""
    mesh.add_service("solo", {80: HTTP_PORT, ECHO_PORT: ECHO_PORT})
    pod = mesh.add_pod(PodSpec("solo-1", "node1", app="solo"))
    wait_until(
        "its service answers", lambda: mesh.http(mesh.pods["web-1"], mesh.vip("solo")).endswith("solo-1"), SOON_S
    )
    yield pod
    mesh.delete_pod("solo-1")


def test_a_service_with_one_endpoint_leads_there_directly_and_the_client_sees_the_services_address(
    mesh, pods, solo, version
):
    client, vip = pods["web-1"], mesh.vip("solo", version).strip("[]")
    log = AccessLog(mesh, "node1")
    body = "connection.sendall(b'?')\nassert connection.recv(1)\nprint(connection.getpeername()[0])"
    said = []

    def is_direct():
        said.append(mesh.exec(client, scripts.client(vip, ECHO_PORT, body)).stdout.strip())
        lines = [line for line in path(log, "inbound") if line["src.addr"].startswith((client.ip, f"[{client.ips[1]}"))]
        return [line for line in lines if line.get("dst.service", "").startswith("solo.shop.")]

    wait_until("it goes directly", is_direct, SOON_S)
    assert set(said) == {vip}
    assert path(log, "outbound")[0]["dst.workload"] == "solo-1"
    assert mesh.exec(client, scripts.multipath_client(vip, ECHO_PORT, body)).stdout.strip() == vip


def test_a_service_with_two_endpoints_is_the_tunnels_to_balance(mesh, pods):
    """One of them is on this node."""
    client = pods["web-1"]
    log = AccessLog(mesh, "node1")
    answers = set()

    def both():
        answers.add(mesh.http(client, mesh.vip("web")).rpartition(" ")[2])
        return answers >= {"web-2", "web-3"}

    wait_until("the far one and the near one answer", both, SOON_S)
    log.wait_for(direction="outbound", dst_service="web.shop", dst_workload="web-3")
    assert not [line for line in path(log, "outbound") if line.get("dst.service", "").startswith("web.shop")]


def test_a_direct_connection_is_told_of_at_both_ends_with_identities_and_bytes(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    wait_until("they have a pass", lambda: goes_direct(mesh, client, server), SOON_S)
    log = AccessLog(mesh, "node1")
    body = 'connection.sendall(b"x" * 1000)\nleft = 1000\nwhile left: left -= len(connection.recv(left))'
    end = "connection.shutdown(socket.SHUT_WR)\nassert not connection.recv(1)"
    ask = scripts.client(server.ip, ECHO_PORT, f"{body}\n{end}")

    def told(direction):
        assert mesh.exec(client, ask).returncode == 0
        return [line for line in path(log, direction) if line["bytes_sent"] == line["bytes_recv"] == "1000"]

    for direction in ("outbound", "inbound"):
        wait_until("it is told", lambda direction=direction: told(direction), SOON_S)
        line = told(direction)[0]
        assert line["dst.workload"] == "web-3"
        assert line["src.identity"] == client.identity
        assert line["dst.identity"] == server.identity


def test_a_policy_refuses_what_comes_and_cuts_what_is_there_with_its_name(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    with held_direct(mesh, client, server) as (live, _):
        log = AccessLog(mesh, "node1")
        mesh.apply("deny", documents.deny_from("shop", "no-web", "web", client.identity.removeprefix("spiffe://")))
        live.expect("cut")
        line = log.wait_for(direction="inbound", response_flags="DENY", dst_path="direct")
        assert "no-web" in line["error"]
        assert not mesh.reaches(client, server)
    mesh.remove("deny")
    wait_until("they talk again", lambda: mesh.reaches(client, server), SOON_S)


def test_the_agent_says_whether_it_is_on_and_explain_who_may(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    ways = [
        mesh.ask("ztunnel-node1", f"/explain?src={client.ip}&dst={target}")["ways"][0]["route"]
        for target in (server.at(HTTP_PORT), pods["web-2"].at(HTTP_PORT))
    ]
    assert [(way["kind"], way["direct"]) for way in ways] == [("joined", True), ("tunnel", False)]
    assert mesh.ask("nodeagent-node1", "/status")["capture"]["direct"] == "on"


def test_across_nodes_and_from_outside_the_mesh_nothing_is_direct(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    wait_until("they have a pass", lambda: goes_direct(mesh, client, server), SOON_S)
    log = AccessLog(mesh, "node1")
    for source, target in ((client, pods["web-2"]), (pods["plain-1"], server), (client, pods["plain-1"])):
        for _ in range(2):
            assert mesh.reaches(source, target)
    log.wait_for(direction="inbound", src_addr=pods["plain-1"].ip)
    log.wait_for(direction="outbound", dst_workload="web-2")
    others = [
        line for line in log.lines() if (line.get("src.workload"), line.get("dst.workload")) != ("web-1", "web-3")
    ]
    assert not [line for line in others if line.get("dst.path")]


def test_a_process_beside_the_pod_in_its_namespace_gains_nothing_by_its_pass(mesh, pods):
    """It is not of the pod's control group: its connection has no ticket and is plaintext, from nobody."""
    client, server = pods["web-1"], pods["web-3"]
    wait_until("they have a pass", lambda: goes_direct(mesh, client, server), SOON_S)
    log = AccessLog(mesh, "node1")
    body = 'connection.sendall(b"?")\nassert connection.recv(1)\nprint(connection.getsockname()[1])'
    beside = ["ip", "netns", "exec", client.netns, *scripts.client(server.ip, ECHO_PORT, body)]
    port = subprocess.run(beside, capture_output=True, text=True, check=True, timeout=SOON_S).stdout.strip()
    line = log.wait_for(direction="inbound", src_addr=f"{client.ip}:{port}")
    assert not line.keys() & {"dst.path", "src.identity"}


def test_nobody_in_a_pod_gives_himself_the_mark(mesh, pods):
    code = f"""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as own:
        own.setsockopt(socket.SOL_SOCKET, 36, 0x777)
        try: own.setsockopt(socket.SOL_SOCKET, 36, 0x7b000000 | {DIRECT_MARK})
        except PermissionError: print("refused")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
"""
    done = mesh.exec(pods["web-1"], scripts.python(code))
    assert done.stdout == "refused\n" * 2, done.stderr


def test_a_socket_that_was_direct_is_so_no_longer_when_it_goes_elsewhere_or_listens(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    wait_until("they have a pass", lambda: goes_direct(mesh, client, server), SOON_S)
    code = f"""
import socket, struct
with socket.socket() as own:
    mark = lambda: own.getsockopt(socket.SOL_SOCKET, 36)
    leave = lambda: libc.connect(own.fileno(), bytes(16), 16)
    import ctypes; libc = ctypes.CDLL(None, use_errno=True)
    own.connect(({server.ip!r}, {ECHO_PORT})); print(hex(mark()))
    leave(); own.connect(({pods["web-2"].ip!r}, {ECHO_PORT})); print(hex(mark()))
    leave(); own.connect(({server.ip!r}, {ECHO_PORT})); print(hex(mark()))
    leave(); own.bind(("0.0.0.0", 0)); own.listen(); print(hex(mark()))
"""
    wanted = ["0x222", "0x0", "0x222", "0x0"]
    wait_until("so it is", lambda: mesh.exec(client, scripts.python(code)).stdout.split() == wanted, SOON_S)


def test_a_pod_that_goes_takes_its_passes_with_it(mesh, pods):
    """They are its namespace's, which no other pod ever is, whatever its address."""
    server = pods["web-3"]
    guest = mesh.add_pod(PodSpec("guest", "node1"), with_apps=False)
    try:
        wait_until("it has a pass", lambda: goes_direct(mesh, guest, server), SOON_S)
        told = next(each for each in mesh.ask("nodeagent-node1", "/pods") if each["name"] == "guest")
        cookie = int(told["netns_identity"].removeprefix("cookie:"))
        assert passes_of(mesh, cookie)
    finally:
        mesh.delete_pod("guest")
    assert not passes_of(mesh, cookie)


def passes_of(mesh, cookie):
    fd = libbpf.open_pin(mesh.layout.bpf_dir("node1") / "v1/maps/mesh_passes")
    try:
        return libbpf.Map(fd, 32, 64).having(records.pack_cookie(cookie))
    finally:
        os.close(fd)


def test_without_the_tunnel_passes_lapse_and_the_next_one_ends_what_nobody_judges(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    with held_direct(mesh, client, server) as (live, _):
        mesh.daemons["ztunnel-node1"].kill()
        try:
            wait_until("connections wait for a tunnel", lambda: waits(mesh, client, server), SOON_S)
        finally:
            mesh.start_tunnel("node1")
        live.expect("cut")
    wait_until("they talk again", lambda: mesh.reaches(client, server), SOON_S)
    wait_until("and directly", lambda: goes_direct(mesh, client, server), SOON_S)


def test_without_a_next_tunnel_the_agent_ends_what_nobody_judges(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    with held_direct(mesh, client, server) as (live, _):
        mesh.daemons["ztunnel-node1"].kill()
        try:
            live.expect("cut")
        finally:
            mesh.start_tunnel("node1")
    wait_until("they talk again", lambda: mesh.reaches(client, server), SOON_S)


def waits(mesh, source, target):
    """The connection is made, to the pod's listening socket that nobody accepts from."""
    code = f"""
import socket
with socket.create_connection(({target.ip!r}, {ECHO_PORT}), 30) as own:
    own.settimeout(0.3)
    own.sendall(b"?")
    try: print(len(own.recv(9)))
    except TimeoutError: print("waits")
"""
    return mesh.exec(source, scripts.python(code)).stdout == "waits\n"


def test_an_agent_that_restarts_cuts_nothing_and_one_that_wants_none_ends_it(mesh, pods):
    client, server = pods["web-1"], pods["web-3"]
    with held_direct(mesh, client, server) as (live, port):
        switch(mesh, True)
        wait_until("the next are, too", lambda: goes_direct(mesh, client, server), SOON_S)
        assert is_direct(mesh, client, port, server), "it goes on"
        log = AccessLog(mesh, "node1")
        switch(mesh, False)
        live.expect("cut")
        line = log.wait_for(direction="outbound", src_addr=f"{client.ip}:{port}")
        assert "switched off" in line["error"]
    assert mesh.reaches(client, server)
    assert not goes_direct(mesh, client, server)
