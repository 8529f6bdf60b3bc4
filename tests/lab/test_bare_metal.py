"""The flows of ARCHITECTURE.md without a pod: workloads that are control groups of a host, several on each, every one
with an identity and addresses of its own in the one namespace of the host."""

import os
import signal
import socket

import pytest

from lab import daemons, documents, hosts, layout
from lab.access import AccessLog
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.cluster import Cluster
from lab.documents import PodSpec
from lab.layout import Layout
from lab.probes import Probe
from lab.processes import wait_until
from lab.watchdog import guarded
from lab.wire import Capture
from tests.lab import scripts, settle, successors

pytestmark = pytest.mark.lab

SOON_S = 60.0
WIDE_PORT, HOSTS_PORT = 9010, 9011


@pytest.fixture(scope="module")
def bare(request):
    """`web-1` and `web-3` on node1, `web-2` and `web-4` on node2, `plain-1` and `plain-2` on them outside the mesh."""
    with guarded(Layout(f"b{os.getpid()}")) as place:
        made = Cluster.up(place.name, nodes=2, pods=0, capture=request.config.getoption("--mesh-capture"))
        hosts.populate(made, 4)
        for number in (1, 2):
            hosts.add(made, PodSpec(f"plain-{number}", f"node{number}"), enrolled=False)
        yield made


@pytest.fixture
def all_of(bare):
    """By name; before each test the configuration holds no policy."""
    before = {path.name for path in bare.layout.config.iterdir()}
    yield bare.pods
    settle.clean(bare, before)


def holding(bare, source, target, version):
    return Probe(bare, source, "hold", target.address(version), ECHO_PORT, 0.005)


def calling(bare, source, target, version):
    return Probe(bare, source, "loop", target.address(version), ECHO_PORT, 0.005)


def test_every_one_says_how_it_is_captured(bare, all_of):
    wanted = "bpf" if bare.capture in ("auto", "bpf") else f"nft (NODEMESH_CAPTURE={bare.capture})"
    listed = bare.ask("nodeagent-node1", "/status")["host_workloads"]
    assert {each["capture"] for each in listed} == {wanted}


# Address and identity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["web-2", "web-3"])
def test_a_request_arrives_with_the_clients_own_address(bare, all_of, version, target):
    seen = bare.http(all_of["web-1"], all_of[target].at(HTTP_PORT, version))
    assert seen == f"{all_of['web-1'].address(version)} {target}"


def test_a_service_address_reaches_every_endpoint(bare, all_of, version):
    names = {bare.http(all_of["web-1"], bare.vip("web", version)).split()[-1] for _ in range(60)}
    assert names == {"web-1", "web-2", "web-3", "web-4"}


@pytest.mark.parametrize("source", ["web-1", "web-3"])
def test_each_speaks_with_its_own_identity_though_they_share_a_namespace(bare, all_of, version, source):
    logs = AccessLog(bare, "node1"), AccessLog(bare, "node2")
    bare.http(all_of[source], all_of["web-2"].at(HTTP_PORT, version))
    for log, direction in zip(logs, ("outbound", "inbound"), strict=True):
        line = log.wait_for(direction=direction, src_workload=source, dst_workload="web-2")
        assert (line["src.identity"], line["dst.identity"]) == (all_of[source].identity, all_of["web-2"].identity)


def test_only_tunnels_are_on_the_wire(bare, all_of, version):
    with Capture(bare, f"bare-{version}") as seen:
        bare.http(all_of["web-3"], all_of["web-4"].at(HTTP_PORT, version), "-d", "a-marker-in-the-body")
    assert seen.count(b"a-marker-in-the-body") == 0
    own = {all_of["web-3"].address(version), all_of["web-4"].address(version)}
    assert any(
        {str(packet.src), str(packet.dst)} == own and 15008 in (packet.sport, packet.dport) for packet in seen.packets
    )


def test_it_reaches_its_own_address(bare, all_of, version):
    assert bare.http(all_of["web-1"], all_of["web-1"].at(HTTP_PORT, version)).endswith(" web-1")


@pytest.mark.parametrize("target", ["plain-1", "plain-2"])
def test_out_of_the_mesh_the_way_is_plain(bare, all_of, version, target):
    assert bare.http(all_of["web-1"], all_of[target].at(HTTP_PORT, version)).endswith(f" {target}")


@pytest.mark.parametrize("source", ["plain-1", "plain-2"])
def test_into_the_mesh_plaintext_is_passed_on_unless_a_policy_forbids(bare, all_of, version, source):
    assert bare.http(all_of[source], all_of["web-2"].at(HTTP_PORT, version)).endswith(" web-2")


# What listens on more than its own addresses ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(bare):
    """Programs on node1 that listen on all addresses: one of web-1's, and one of the host's own. They write down whom
    they accept, and answer."""
    body = 'print(peer[0].removeprefix("::ffff:"), flush=True); connection.sendall(b"yes"); connection.close()'

    def said(name):
        return bare.layout.log(name).read_text().split()

    for name, owner, port in (("wide", "web-1", WIDE_PORT), ("hosts-own", "plain-1", HOSTS_PORT)):
        bare.start_in(bare.pods[owner], name, scripts.server(port, body))
        wait_until(f"{name} listens", lambda each=name: "listening" in said(each), SOON_S)
    return said


def answer(bare, source, ip, port):
    body = "print(connection.recv(3))"
    return bare.exec(source, scripts.client(ip, port, body)).stdout.strip()


@pytest.mark.parametrize("source", ["plain-2", "web-2", "plain-1", "web-3", "web-1"])
def test_at_the_hosts_address_and_its_neighbours_nobody_gets_past_its_tunnel(bare, all_of, wide, version, source):
    """From the wire and from the host. A neighbour's policies are not its own."""
    host = layout.underlay_address(1, version)
    before = wide("wide")
    for ip in (host, all_of["web-3"].address(version)):
        assert answer(bare, all_of[source], ip, WIDE_PORT) != "b'yes'"
    assert wide("wide") == before
    assert answer(bare, all_of[source], host, HOSTS_PORT) == "b'yes'", "what is the host's own is as it was"


@pytest.mark.parametrize("source", ["plain-2", "web-2", "plain-1", "web-3", "web-1"])
def test_at_its_own_address_everybody_else_comes_by_the_tunnel(bare, all_of, wide, version, source):
    before = len(wide("wide"))
    log = AccessLog(bare, "node1")
    assert answer(bare, all_of[source], all_of["web-1"].address(version), WIDE_PORT) == "b'yes'"
    assert len(wide("wide")) == before + 1
    if source != "web-1":
        assert log.wait_for(direction="inbound", dst_workload="web-1")


def test_without_the_tunnel_it_is_as_unreachable_at_the_hosts_address(bare, all_of, wide, version):
    before = wide("wide")
    bare.daemons["ztunnel-node1"].kill()
    try:
        for source in ("plain-2", "plain-1"):
            assert answer(bare, all_of[source], layout.underlay_address(1, version), WIDE_PORT) != "b'yes'"
        assert wide("wide") == before
    finally:
        bare.start_tunnel("node1")
    wait_until("they talk again", lambda: bare.reaches(all_of["plain-2"], all_of["web-1"], version), SOON_S)


def test_on_loopback_it_reaches_itself(bare, all_of, wide, version):
    assert answer(bare, all_of["web-1"], "127.0.0.1" if version == 4 else "::1", WIDE_PORT) == "b'yes'"


# Policy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["web-2", "web-3"])
def test_a_deny_cuts_what_is_open_and_names_one_of_several_on_a_host(bare, all_of, version, target):
    principal = all_of["web-1"].identity.removeprefix("spiffe://")
    with holding(bare, all_of["web-1"], all_of[target], version) as open_connection:
        open_connection.expect("open")
        bare.apply("deny", documents.deny_from("shop", "deny-web-1", "web", principal))
        open_connection.expect("cut")
    assert not bare.reaches(all_of["web-1"], all_of[target], version)
    other = "web-3" if target == "web-2" else "web-2"
    assert bare.reaches(all_of[other], all_of["web-4"], version), "its neighbour is not concerned"
    bare.remove("deny")
    wait_until("web-1 may connect again", lambda: bare.reaches(all_of["web-1"], all_of[target], version), SOON_S)


@pytest.mark.parametrize("source", ["plain-1", "plain-2"])
def test_strict_cuts_and_refuses_plaintext_from_the_wire_and_from_the_same_host(bare, all_of, version, source):
    with (
        holding(bare, all_of[source], all_of["web-2"], version) as plain,
        holding(bare, all_of["web-1"], all_of["web-2"], version) as meshed,
    ):
        plain.expect("open")
        meshed.expect("open")
        bare.apply("strict", documents.strict("shop"))
        plain.expect("cut")
        assert not bare.reaches(all_of[source], all_of["web-2"], version)
        assert meshed.stop()["event"] == "stopped"
    bare.remove("strict")
    wait_until("plaintext is back", lambda: bare.reaches(all_of[source], all_of["web-2"], version), SOON_S)


# Names ---------------------------------------------------------------------------------------------------------------


def test_the_meshs_names_are_answered(bare, all_of, version):
    script = f"""
import socket, struct
name = b"".join(bytes([len(part)]) + part for part in b"web.shop.svc.cluster.local".split(b".")) + b"\\0"
asked = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", {1 if version == 4 else 28}, 1)
client = socket.socket(socket.{"AF_INET" if version == 4 else "AF_INET6"}, socket.SOCK_DGRAM)
client.settimeout(30)
client.sendto(asked, ({"192.0.2.53" if version == 4 else "2001:db8::53"!r}, 53))
print(client.recv(512).hex())
"""
    answer = bytes.fromhex(bare.exec(all_of["web-1"], scripts.python(script)).stdout.strip())
    vip = bare.vips["web"] if version == 4 else bare.vips6["web"]
    assert socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, vip) in answer


# What may fail -------------------------------------------------------------------------------------------------------


def test_while_the_tunnel_is_away_nothing_is_clear_and_what_comes_waits_for_the_next(bare, all_of, version):
    source, target = all_of["web-1"], all_of["web-2"]
    bare.daemons["ztunnel-node1"].kill()
    with Capture(bare, f"away-{version}", everything=True) as seen:
        for other in (target, all_of["plain-2"]):
            assert bare.http(source, other.at(HTTP_PORT, version), "-m", "2", "-d", "in-the-clear") == ""
    assert seen.count(b"in-the-clear") == 0
    with calling(bare, source, target, version) as outward, calling(bare, target, source, version) as inward:
        bare.start_tunnel("node1")
        for calls in (outward, inward):
            calls.expect("open")
        done = outward.stop(), inward.stop()
    assert [(each["event"], each["failed"]) for each in done] == [("done", 0)] * 2
    for one, other in (("web-1", "web-2"), ("web-2", "web-3")):
        wait_until("they talk again", lambda a=one, b=other: bare.reaches(all_of[a], all_of[b], version), SOON_S)


def test_a_tunnel_is_replaced_under_load_by_one_beside_it_and_nobody_notices(bare, all_of, version):
    source, target = all_of["web-1"], all_of["web-2"]
    successor = None
    with (
        holding(bare, source, target, version) as held,
        calling(bare, source, target, version) as outward,
        calling(bare, target, source, version) as inward,
    ):
        for probe in (held, outward, inward):
            probe.expect("open")
        try:
            successor = successors.start(bare, SOON_S)
            bare.daemons["ztunnel-node1"].signal(signal.SIGTERM)
            assert held.stop()["event"] == "stopped", "it may end by itself on the old tunnel"
            assert bare.daemons["ztunnel-node1"].wait(SOON_S)
            assert bare.reaches(source, target, version)
            done = outward.stop(), inward.stop()
            assert [(each["event"], each["failed"]) for each in done] == [("done", 0)] * 2
        finally:
            if successor:
                daemons.stop(successor)
            bare.start_tunnel("node1")
    for one, other in ((source, target), (target, source)):
        wait_until("they talk again", lambda s=one, t=other: bare.reaches(s, t, version), SOON_S)


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15053])
def test_a_listener_that_somebody_destroyed_listens_again_and_its_neighbours_never_ceased(bare, all_of, version, port):
    """As `ss -K` does it, and whatever else has the right to destroy sockets."""
    victim, neighbour = all_of["web-1"], all_of["web-3"]
    own = victim.at(port, version)
    with calling(bare, neighbour, all_of["web-2"], version) as calls:
        calls.expect("open")
        assert bare.exec(all_of["plain-1"], ["ss", "-K", "-lnt", "src", own]).returncode == 0
        assert own not in listening(bare)
        wait_until("somebody listens", lambda: own in listening(bare), SOON_S)
        assert calls.stop()["failed"] == 0
    for source, target in ((victim, all_of["web-2"]), (all_of["web-2"], victim), (all_of["plain-2"], victim)):
        assert bare.reaches(source, target, version)


def listening(bare):
    return bare.exec(bare.pods["plain-1"], ["ss", "-Hlnt"]).stdout.split()


def test_a_killed_agent_comes_back_without_touching_anybody(bare, all_of, version):
    with (
        holding(bare, all_of["web-1"], all_of["web-2"], version) as held,
        Probe(bare, all_of["web-3"], "loop", all_of["web-4"].address(version), ECHO_PORT, 0.005) as fresh,
    ):
        held.expect("open")
        fresh.expect("open")
        bare.daemons["nodeagent-node1"].kill()
        bare.start_agent("node1")
        wait_until("it knows them", lambda: hosts.state(bare, all_of["web-1"]) == "IN_MESH", SOON_S)
        assert held.stop()["event"] == "stopped"
        done = fresh.stop()
        assert (done["event"], done["failed"]) == ("done", 0)


def test_without_the_control_plane_everything_goes_on(bare, all_of, version):
    with holding(bare, all_of["web-1"], all_of["web-2"], version) as held:
        held.expect("open")
        daemons.stop(bare.daemons["controlplane"])
        try:
            assert bare.reaches(all_of["web-3"], all_of["web-4"], version)
            assert held.stop()["event"] == "stopped"
        finally:
            bare.start_controlplane()


def test_a_workload_that_leaves_is_as_it_was(bare, all_of):
    late = hosts.add(bare, PodSpec("late", "node1"))
    assert bare.reaches(late, all_of["web-2"])
    bare.remove("host-shop-late")
    wait_until("it has left", lambda: hosts.state(bare, late) == "", SOON_S)
    assert bare.http(all_of["plain-1"], late.at(HTTP_PORT)).endswith(" late")
    hosts.remove(bare, late)
    assert late.uid not in bare.ask("ztunnel-node1", "/config_dump")["workloadState"]


def test_an_address_that_the_host_does_not_have_is_a_sentence(bare, all_of):
    document = documents.host_workload(PodSpec("nowhere", "node1"), ["172.30.200.1"], "nowhere.slice")
    bare.apply("host-shop-nowhere", document)
    wait_until("it is refused", lambda: "nowhere" in str(bare.ask("nodeagent-node1", "/status")), SOON_S)
    listed = bare.ask("nodeagent-node1", "/status")["host_workloads"]
    assert next(each["last_error"] for each in listed if each["name"] == "nowhere").endswith(
        "No such file or directory"
    )
    assert bare.reaches(all_of["web-1"], all_of["web-2"])
