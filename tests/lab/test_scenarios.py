"""What Istio's own suites ask of an ambient data plane at layer 4, by name: README.md beside this file has the table.

Every case runs in both families on the session's mesh.
"""

import signal

import pytest

from lab import cgroups, daemons, documents
from lab.access import AccessLog
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.documents import PodSpec
from lab.probes import Probe
from lab.processes import wait_until
from lab.wire import Capture
from tests.lab import scripts, successors

pytestmark = pytest.mark.lab

SOON_S = 60.0
MESHED, OUTSIDE = "web-1", "plain-1"
SAME_NODE, OTHER_NODE, OUTSIDE_THERE = "web-3", "web-2", "plain-2"
ROOT = "istio-system"


@pytest.fixture(scope="module")
def banner(mesh):
    """A server that speaks first, on every pod that is called here."""
    body = """connection.sendall(b"ready " + peer[0].removeprefix("::ffff:").encode()); connection.close()"""
    started = [
        mesh.start_in(mesh.pods[name], f"banner-{name}", scripts.server(9100, body))
        for name in (SAME_NODE, OTHER_NODE, OUTSIDE_THERE)
    ]
    for process in started:
        log = mesh.layout.log(process.name)
        wait_until(f"{process.name} listens", lambda log=log: "listening" in log.read_text(), SOON_S)
    yield 9100
    for process in started:
        process.kill()


def holding(mesh, source, target, version):
    return Probe(mesh, source, "hold", target.address(version), ECHO_PORT, 0.005)


def applied(mesh, name, document, took_effect):
    mesh.apply(name, document)
    wait_until(f"{name} is in force", took_effect, SOON_S)


# TestServices, TestPodIP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [SAME_NODE, OTHER_NODE, OUTSIDE_THERE])
@pytest.mark.parametrize("source", [MESHED, OUTSIDE])
def test_every_source_reaches_every_destination_with_its_own_address(mesh, pods, version, source, target):
    seen = mesh.http(pods[source], pods[target].at(HTTP_PORT, version))
    assert seen == f"{pods[source].address(version)} {target}"


@pytest.mark.parametrize("target", [SAME_NODE, OTHER_NODE, OUTSIDE_THERE])
@pytest.mark.parametrize("source", [MESHED, OUTSIDE])
def test_a_server_that_speaks_first_is_heard(mesh, pods, version, banner, source, target):
    hear = "print(connection.recv(100).decode())"
    said = mesh.exec(pods[source], scripts.client(pods[target].address(version), banner, hear)).stdout.strip()
    assert said == f"ready {pods[source].address(version)}"


@pytest.mark.parametrize("name", [MESHED, OTHER_NODE])
def test_a_pod_reaches_itself_by_its_own_address(mesh, pods, version, name):
    own = pods[name].address(version)
    assert mesh.http(pods[name], pods[name].at(HTTP_PORT, version)) == f"{own} {name}"


def test_a_pod_that_is_the_only_endpoint_reaches_itself_by_its_service(mesh, pods, version):
    spec = PodSpec("alone", "node1")
    mesh.add_service("alone", {80: HTTP_PORT})
    try:
        pod = mesh.add_pod(spec)
        wait_until("the service has its endpoint", lambda: mesh.http(pod, mesh.vip("alone", version)), SOON_S)
        assert mesh.http(pod, mesh.vip("alone", version)).split()[-1] == "alone"
    finally:
        mesh.delete_pod("alone")
        mesh.remove("service-shop-alone")
        del mesh.vips["alone"], mesh.vips6["alone"]


@pytest.mark.parametrize("source", [SAME_NODE, MESHED, OUTSIDE])
def test_what_listens_on_loopback_only_is_reached_by_nobody_else(mesh, pods, version, source):
    """HTTPLocalHost: the tunnel sits in the pod's namespace, and must not be a way round that."""
    port, loopback = 9110 + version, "::1" if version == 6 else "127.0.0.1"
    target = pods[OTHER_NODE]
    name = f"local-{source}-{version}"
    server = mesh.start_in(target, name, scripts.server(port, 'connection.sendall(b"secret")', loopback))
    try:
        wait_until("it listens", lambda: "listening" in mesh.layout.log(name).read_text(), SOON_S)
        hear = "print(connection.recv(100).decode())"
        assert mesh.exec(target, scripts.client(loopback, port, hear)).stdout.strip() == "secret"
        assert "secret" not in mesh.exec(pods[source], scripts.client(target.address(version), port, hear)).stdout
    finally:
        server.kill()


# Malicious calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("target", [MESHED, SAME_NODE, OTHER_NODE])
def test_the_tunnels_own_ports_lead_nowhere(mesh, pods, version, target, port):
    """A pod calls its own, a neighbour's and a far pod's: at most a TLS alert, and never a loop that eats the node."""
    ask = 'connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n"); print("answer:", connection.recv(100)[:2])'
    done = mesh.exec(pods[MESHED], scripts.client(pods[target].address(version), port, ask), timeout_s=90.0)
    assert done.stdout.strip() in ("", "answer: b''", r"answer: b'\x15\x03'")
    assert mesh.reaches(pods[MESHED], pods[OTHER_NODE], version)


# TestPeerAuthentication ----------------------------------------------------------------------------------------------

PEER_AUTHENTICATION = {
    "permissive": ([documents.peer_authentication("shop", "PERMISSIVE")], True, True),
    "strict": ([documents.peer_authentication("shop", "STRICT")], False, False),
    "strict, permissive ports": (
        [documents.peer_authentication("shop", "STRICT", "web", {HTTP_PORT: "PERMISSIVE"})],
        True,
        False,
    ),
    "mesh strict, workload's permissive ports": (
        [
            documents.peer_authentication(ROOT, "STRICT"),
            documents.peer_authentication("shop", "STRICT", "web", {HTTP_PORT: "PERMISSIVE"}),
        ],
        True,
        False,
    ),
    "mesh permissive, workload's strict ports": (
        [
            documents.peer_authentication(ROOT, "PERMISSIVE"),
            documents.peer_authentication("shop", "PERMISSIVE", "web", {ECHO_PORT: "STRICT"}),
        ],
        True,
        False,
    ),
}


@pytest.mark.parametrize("case", PEER_AUTHENTICATION)
def test_plaintext_is_taken_or_refused_as_peer_authentication_says(mesh, pods, version, case):
    """(documents, whether 8080 takes plaintext, whether 7007 does); who comes through a tunnel always may."""
    wanted, http, echo = PEER_AUTHENTICATION[case]
    for number, document in enumerate(wanted):
        mesh.apply(f"peer-authentication-{number}", document)
    target = pods[OTHER_NODE]

    def answers():
        return mesh.reaches(pods[OUTSIDE], target, version), echoes(mesh, pods[OUTSIDE], target, version)

    wait_until(f"8080 takes plaintext: {http}, 7007: {echo}", lambda: answers() == (http, echo), SOON_S)
    assert mesh.reaches(pods[MESHED], target, version)
    assert echoes(mesh, pods[MESHED], target, version)


def echoes(mesh, source, target, version):
    ask = 'connection.sendall(b"ping"); print(connection.recv(4).decode())'
    return mesh.exec(source, scripts.client(target.address(version), ECHO_PORT, ask)).stdout.strip() == "ping"


# TestAuthorizationL4 -------------------------------------------------------------------------------------------------


def allow(*accounts):
    principals = [f"cluster.local/ns/shop/sa/{account}" for account in accounts]
    return documents.authorization(
        "shop", "allow", "ALLOW", "web", [{"from": [{"source": {"principals": principals}}]}]
    )


def test_an_allow_lets_those_in_whom_it_names_and_nobody_without_an_identity(mesh, pods, version):
    target = pods[OTHER_NODE]
    mesh.apply("allow", allow("web-1"))
    wait_until("web-3 is out", lambda: not mesh.reaches(pods[SAME_NODE], target, version), SOON_S)
    assert mesh.reaches(pods[MESHED], target, version)
    assert not mesh.reaches(pods[OUTSIDE], target, version), "plaintext has no identity"
    assert mesh.reaches(pods[MESHED], pods[OUTSIDE_THERE], version), "outside the mesh nothing is enforced"


def test_an_allow_for_somebody_else_refuses_with_the_reason_in_the_log(mesh, pods, version):
    mesh.apply("allow", allow("somebody-else"))
    log = AccessLog(mesh, "node2")
    wait_until("web-1 is out", lambda: not mesh.reaches(pods[MESHED], pods[OTHER_NODE], version), SOON_S)
    log.wait_for(direction="inbound", src_workload=MESHED, error="allow")


# Ingress mode --------------------------------------------------------------------------------------------------------


def test_in_ingress_mode_plaintext_comes_in_uncaptured_and_tunnels_still_end_at_the_tunnel(mesh, pods, version):
    """Even under STRICT: a gateway's pod answers for itself (istio/istio#58577: its HBONE must go on)."""
    spec = PodSpec("gateway", "node2", annotations={"ambient.istio.io/bypass-inbound-capture": "true"})
    mesh.apply("strict", documents.strict("shop"))
    try:
        pod = mesh.add_pod(spec)
        wait_until("STRICT is in force", lambda: not mesh.reaches(pods[OUTSIDE], pods[OTHER_NODE], version), SOON_S)
        assert mesh.http(pods[OUTSIDE], pod.at(HTTP_PORT, version)) == f"{pods[OUTSIDE].address(version)} gateway"
        log = AccessLog(mesh, "node2")

        def tunnelled():
            mesh.http(pods[MESHED], pod.at(HTTP_PORT, version))
            return any(line.get("dst.workload") == "gateway" for line in log.lines())

        wait_until("web-1 comes through a tunnel", tunnelled, SOON_S)
    finally:
        mesh.delete_pod("gateway")


# Certificates --------------------------------------------------------------------------------------------------------


def test_a_pods_certificate_comes_before_its_first_connection_and_goes_with_it(mesh, pods):
    def held():
        return {each["identity"] for each in mesh.ask("ztunnel-node1", "/config_dump")["certificates"]}

    pod = mesh.add_pod(PodSpec("brief", "node1"), with_apps=False)
    try:
        wait_until("its certificate is there", lambda: pod.identity in held(), SOON_S)
    finally:
        mesh.delete_pod("brief")
    wait_until("its certificate is gone", lambda: pod.identity not in held(), SOON_S)


# Restarts ------------------------------------------------------------------------------------------------------------


def test_with_the_agent_gone_for_good_established_pods_go_on(mesh, pods, version):
    """TestTrafficWithEstablishedPodsIfCNIMissing."""
    mesh.daemons["nodeagent-node2"].kill()
    try:
        assert mesh.reaches(pods[MESHED], pods[OTHER_NODE], version)
        assert mesh.reaches(pods[OTHER_NODE], pods[MESHED], version)
    finally:
        mesh.start_agent("node2")


def test_a_tunnel_that_restarts_keeps_new_connections_waiting_and_loses_none(mesh, pods, version):
    """TestZtunnelRestart, without its nine in ten: what arrives while there is no tunnel waits, and nothing leaks."""
    source, target = pods[MESHED], pods[OTHER_NODE]
    with (
        Capture(mesh, f"restart-{version}") as seen,
        Probe(mesh, source, "loop", target.address(version), ECHO_PORT, 0.005) as outward,
        Probe(mesh, target, "loop", source.address(version), ECHO_PORT, 0.005) as inward,
    ):
        outward.expect("open")
        inward.expect("open")
        daemons.stop(mesh.daemons["ztunnel-node1"])
        mesh.start_tunnel("node1")
        wait_until("its pods are served again", lambda: mesh.reaches(source, target, version), SOON_S)
        done = outward.stop(), inward.stop()
    assert [(each["event"], each["failed"]) for each in done] == [("done", 0)] * 2
    assert {packet.dport for packet in seen.packets if packet.opens and packet.between_pods} <= {15008}


def test_a_killed_tunnel_loses_what_it_had_in_hand_and_refuses_nobody(mesh, pods, version):
    source, target = pods[MESHED], pods[OTHER_NODE]
    with holding(mesh, source, target, version) as held:
        held.expect("open")
        mesh.daemons["ztunnel-node1"].kill()
        held.expect("cut")
    with Probe(mesh, source, "loop", target.address(version), ECHO_PORT, 0.005) as calls:
        mesh.start_tunnel("node1")
        calls.expect("open")
        assert calls.stop()["failed"] == 0


def test_a_tunnel_is_replaced_under_load_by_one_beside_it_and_nobody_notices(mesh, pods, version):
    """As a DaemonSet with a surge does it: the new one has doors of its own, serves, and only then the old one goes."""
    source, target = pods[MESHED], pods[OTHER_NODE]
    successor = None
    with (
        holding(mesh, source, target, version) as held,
        Probe(mesh, source, "loop", target.address(version), ECHO_PORT, 0.005) as outward,
        Probe(mesh, target, "loop", source.address(version), ECHO_PORT, 0.005) as inward,
    ):
        for probe in (held, outward, inward):
            probe.expect("open")
        try:
            successor = successors.start(mesh, SOON_S)
            mesh.daemons["ztunnel-node1"].signal(signal.SIGTERM)
            assert held.stop()["event"] == "stopped", "it may end by itself on the old tunnel"
            assert mesh.daemons["ztunnel-node1"].wait(SOON_S)
            cgroups.delete(
                f"{mesh.layout.node_netns('node1')}/ztunnel"
            )  # as kubelet does; the guard must not go by it any longer
            assert mesh.reaches(source, target, version)
            done = outward.stop(), inward.stop()
            assert [(each["event"], each["failed"]) for each in done] == [("done", 0)] * 2
        finally:
            if successor:
                daemons.stop(successor)
            mesh.start_tunnel("node1")
    for one, other in ((source, target), (target, source)):
        wait_until("its pods are served again", lambda s=one, t=other: mesh.reaches(s, t, version), SOON_S)
