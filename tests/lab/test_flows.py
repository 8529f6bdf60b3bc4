"""The three flows of ARCHITECTURE.md and what may happen in between, on real pods, daemons and traffic."""

import signal
import time

import pytest

from lab import daemons, documents, processes
from lab.access import AccessLog
from lab.apps import ECHO_PORT, HTTP_PORT
from lab.documents import PodSpec
from lab.probes import Probe
from lab.processes import wait_until
from lab.runtime import CniRefused, Runtime
from lab.wire import Capture
from tests.lab import scripts
from tests.lab.damage import damage

pytestmark = pytest.mark.lab

SOON_S = 60.0
TRY_AGAIN = 11


def serve(mesh, pod, port, body):
    """A server of the test's own in a pod; returns a function that waits for what it prints."""
    name = f"server-{pod.name}-{port}"
    process = mesh.start_in(pod, name, scripts.server(port, body))
    log = mesh.layout.log(name)

    def printed(text):
        wait_until(f"the server in {pod.name} prints {text!r}", lambda: text in log.read_text(), SOON_S)

    printed("listening")
    return process, printed


def holding(mesh, source, target, version=4, port=ECHO_PORT):
    return Probe(mesh, source, "hold", target.address(version), port, 0.005)


# A pod starts --------------------------------------------------------------------------------------------------------


def test_a_pod_that_starts_is_served_by_its_nodes_tunnel(mesh, pods):
    for pod in (pods["web-1"], pods["web-2"]):
        assert pod.uid in mesh.ask(f"ztunnel-{pod.node}", "/config_dump")["workloadState"]


def test_a_pod_labelled_none_starts_and_stays_outside(mesh, pods):
    assert pods["plain-1"].uid not in mesh.ask("ztunnel-node1", "/config_dump")["workloadState"]
    assert "nat" not in mesh.exec(pods["plain-1"], ["nft", "list", "ruleset"]).stdout


def test_check_finds_everything_as_add_left_it(mesh, pods):
    Runtime(mesh.layout, "node1").check(pods["web-1"].sandbox)


def test_check_fails_when_a_rule_is_gone(mesh, pods):
    wait_until("CHECK comes before the agent has mended it", lambda: is_refused(mesh), 4 * SOON_S)


def is_refused(mesh):
    pod = mesh.add_pod(PodSpec("damaged", "node1"), with_apps=False)
    try:
        damage(mesh, pod)
        Runtime(mesh.layout, "node1").check(pod.sandbox)
    except CniRefused as refused:
        return refused.plugin == "nodemesh-cni"
    finally:
        mesh.delete_pod("damaged")
    return False


def test_a_deleted_pod_leaves_its_node(mesh, pods):
    pod = mesh.add_pod(PodSpec("gone", "node1"), with_apps=False)
    leases = mesh.layout.node_dir("node1") / "cni/ipam/nodemesh-lab"
    mesh.delete_pod("gone")
    assert not (leases / pod.ip).exists()
    wait_until(
        "the tunnel forgets the pod",
        lambda: pod.uid not in mesh.ask("ztunnel-node1", "/config_dump")["workloadState"],
        SOON_S,
    )


def test_a_pod_does_not_start_while_its_agent_is_down_and_nothing_of_it_is_left(mesh, pods):
    leases = mesh.layout.node_dir("node1") / "cni/ipam/nodemesh-lab"
    before = {path.name for path in leases.iterdir() if path.name.startswith("10.")}
    mesh.daemons["nodeagent-node1"].kill()
    try:
        with pytest.raises(CniRefused) as refused:
            mesh.add_pod(PodSpec("early", "node1"))
        assert refused.value.code == TRY_AGAIN
        assert {path.name for path in leases.iterdir() if path.name.startswith("10.")} == before
    finally:
        mesh.start_agent("node1")


def test_a_pod_does_not_start_when_its_port_is_occupied(mesh, pods):
    """Somebody listens on 15008 inside the namespace before the mesh comes: refused, not half captured."""
    spec = PodSpec("squatted", "node1")

    def squat():
        space = mesh.layout.pod_netns("shop", "squatted")
        processes.start(mesh.layout, "squatter", space, scripts.server(15008, "connection.close()"))
        wait_until("it listens", lambda: "listening" in mesh.layout.log("squatter").read_text(), SOON_S)

    with pytest.raises(CniRefused, match="15008"):
        mesh.add_pod(spec, with_apps=False, before_cni=squat)
    assert "squatted" not in mesh.pods


# A connection --------------------------------------------------------------------------------------------------------


def test_a_request_between_nodes_arrives_with_the_clients_own_address(mesh, pods, version):
    assert mesh.http(pods["web-1"], pods["web-2"].at(HTTP_PORT, version)) == f"{pods['web-1'].address(version)} web-2"


def test_a_request_on_one_node_arrives_with_the_clients_own_address(mesh, pods, version):
    assert mesh.http(pods["web-1"], pods["web-3"].at(HTTP_PORT, version)) == f"{pods['web-1'].address(version)} web-3"


def test_a_service_address_reaches_every_endpoint(mesh, pods, version):
    names = {mesh.http(pods["web-1"], mesh.vip("web", version)).split()[-1] for _ in range(60)}
    assert names == {"web-1", "web-2", "web-3", "web-4"}


def test_both_sides_log_both_identities(mesh, pods, version):
    logs = AccessLog(mesh, "node1"), AccessLog(mesh, "node2")
    mesh.http(pods["web-1"], pods["web-2"].at(HTTP_PORT, version))
    for log, direction in zip(logs, ("outbound", "inbound"), strict=True):
        line = log.wait_for(direction=direction, src_workload="web-1", dst_workload="web-2")
        assert (line["src.identity"], line["dst.identity"]) == (pods["web-1"].identity, pods["web-2"].identity)


def test_only_tunnels_are_on_the_wire(mesh, pods, version):
    with Capture(mesh, "flows") as seen:
        mesh.http(pods["web-3"], pods["web-4"].at(HTTP_PORT, version), "-d", "a-marker-in-the-body")
    assert seen.count(b"a-marker-in-the-body") == 0
    between = [packet for packet in seen.packets if packet.between_pods]
    assert between
    assert {packet.dport for packet in between if packet.opens} <= {15008}
    assert all(15008 in (packet.sport, packet.dport) for packet in between)


def test_out_of_the_mesh_the_way_is_plain(mesh, pods, version):
    assert (
        mesh.http(pods["web-1"], pods["plain-2"].at(HTTP_PORT, version)) == f"{pods['web-1'].address(version)} plain-2"
    )


def test_into_the_mesh_plaintext_is_passed_on_unless_a_policy_forbids(mesh, pods, version):
    assert (
        mesh.http(pods["plain-1"], pods["web-2"].at(HTTP_PORT, version)) == f"{pods['plain-1'].address(version)} web-2"
    )


def test_a_half_closed_connection_still_answers(mesh, pods, version):
    count = """
total = 0
while piece := connection.recv(65536): total += len(piece)
connection.sendall(str(total).encode()); connection.close()"""
    ask = """
connection.sendall(b"x" * 300000); connection.shutdown(socket.SHUT_WR)
answer = b""
while piece := connection.recv(100): answer += piece
print(answer.decode())"""
    process, _ = serve(mesh, pods["web-2"], 9010 + version, count)
    assert (
        mesh.exec(pods["web-1"], scripts.client(pods["web-2"].address(version), 9010 + version, ask)).stdout.strip()
        == "300000"
    )
    process.kill()


def test_a_servers_reset_arrives_as_a_reset(mesh, pods, version):
    ask = """
connection.sendall(b"hello")
try: print("end" if not connection.recv(10) else "data")
except ConnectionResetError: print("reset")"""
    process, _ = serve(mesh, pods["web-2"], 9020 + version, f"connection.recv(5); {scripts.RESET}")
    assert (
        mesh.exec(pods["web-1"], scripts.client(pods["web-2"].address(version), 9020 + version, ask)).stdout.strip()
        == "reset"
    )
    process.kill()


def test_a_clients_reset_arrives_as_a_reset(mesh, pods, version):
    watch = """
connection.sendall(b"!")
try: print("end" if not connection.recv(10) else "data", flush=True)
except ConnectionResetError: print("reset", flush=True)"""
    process, printed = serve(mesh, pods["web-2"], 9030 + version, watch)
    mesh.exec(
        pods["web-1"],
        scripts.client(pods["web-2"].address(version), 9030 + version, f"connection.recv(1); {scripts.RESET}"),
    )
    printed("reset")
    process.kill()


def test_nobody_listening_ends_the_clients_connection(mesh, pods, version):
    assert mesh.http(pods["web-1"], pods["web-2"].at(9999, version)) == ""


# A configuration change ----------------------------------------------------------------------------------------------


def test_a_deny_cuts_what_is_open_refuses_what_is_new_and_can_be_taken_back(mesh, pods, version):
    principal = pods["web-1"].identity.removeprefix("spiffe://")
    with holding(mesh, pods["web-1"], pods["web-2"], version) as open_connection:
        open_connection.expect("open")
        log = AccessLog(mesh, "node2")
        mesh.apply("deny", documents.deny_from("shop", "deny-web-1", "web", principal))
        open_connection.expect("cut")
    assert not mesh.reaches(pods["web-1"], pods["web-2"], version)
    assert "deny-web-1" in log.wait_for(direction="inbound", error="deny-web-1")["error"]
    assert mesh.reaches(pods["web-3"], pods["web-2"], version), "others are not concerned"
    mesh.remove("deny")
    wait_until("web-1 may connect again", lambda: mesh.reaches(pods["web-1"], pods["web-2"], version), SOON_S)


def test_a_deny_holds_on_one_node_too(mesh, pods, version):
    principal = pods["web-1"].identity.removeprefix("spiffe://")
    mesh.apply("deny", documents.deny_from("shop", "deny-web-1", "web", principal))
    wait_until("web-1 is denied at web-3", lambda: not mesh.reaches(pods["web-1"], pods["web-3"], version), SOON_S)
    mesh.remove("deny")
    wait_until("web-1 may connect again", lambda: mesh.reaches(pods["web-1"], pods["web-3"], version), SOON_S)


def test_strict_cuts_and_refuses_plaintext_and_nothing_else(mesh, pods, version):
    with (
        holding(mesh, pods["plain-1"], pods["web-2"], version) as plain,
        holding(mesh, pods["web-1"], pods["web-2"], version) as meshed,
    ):
        plain.expect("open")
        meshed.expect("open")
        mesh.apply("strict", documents.strict("shop"))
        plain.expect("cut")
        assert not mesh.reaches(pods["plain-1"], pods["web-2"], version)
        assert meshed.stop()["event"] == "stopped"
    mesh.remove("strict")
    wait_until("plaintext is back", lambda: mesh.reaches(pods["plain-1"], pods["web-2"], version), SOON_S)


def test_a_broken_document_changes_nothing_and_is_reported_with_its_line(mesh, pods):
    mesh.apply("broken", "apiVersion: v1\nkind: Service\nmetadata: {name: web\n")
    wait_until("the mistake is reported", lambda: "broken.yaml" in str(mesh.ask("controlplane", "/status")), SOON_S)
    assert mesh.reaches(pods["web-1"], pods["web-2"])
    mesh.remove("broken")
    wait_until("it is forgotten", lambda: "broken.yaml" not in str(mesh.ask("controlplane", "/status")), SOON_S)


# What may fail -------------------------------------------------------------------------------------------------------


def test_without_the_control_plane_everything_goes_on(mesh, pods, version):
    with (
        holding(mesh, pods["web-1"], pods["web-2"], version) as held,
        Probe(mesh, pods["web-3"], "loop", pods["web-4"].address(version), ECHO_PORT, 0.005) as fresh,
    ):
        held.expect("open")
        daemons.stop(mesh.daemons["controlplane"])
        try:
            fresh.expect("open")
            assert mesh.reaches(pods["web-2"], pods["web-3"], version)
            done = fresh.stop()
            assert (done["event"], done["failed"]) == ("done", 0)
            assert held.stop()["event"] == "stopped"
        finally:
            mesh.start_controlplane()


def test_without_the_control_plane_a_restarted_tunnel_serves_from_what_it_kept(mesh, pods, version):
    source, target = pods["web-1"], pods["web-2"]
    wait_until("they talk", lambda: mesh.reaches(source, target, version), SOON_S)
    # What is new is written two seconds later; a tunnel that is told to end writes it before it goes.
    daemons.stop(mesh.daemons["controlplane"])
    try:
        daemons.stop(mesh.daemons["ztunnel-node1"])
        mesh.start_tunnel("node1")
        wait_until("its pods are served again", lambda: mesh.reaches(source, target, version), SOON_S)
        status = mesh.ask("ztunnel-node1", "/status")
        assert (status["xds"]["connected"], status["certificates"]["troubles"]) == (False, {})
        assert source.identity in status["certificates"]["expiries"]
    finally:
        mesh.start_controlplane()


def test_after_the_control_plane_is_back_changes_arrive_again(mesh, pods):
    mesh.apply("strict", documents.strict("shop"))
    wait_until("STRICT arrives", lambda: not mesh.reaches(pods["plain-1"], pods["web-2"]), SOON_S)
    mesh.remove("strict")
    wait_until("plaintext is back", lambda: mesh.reaches(pods["plain-1"], pods["web-2"]), SOON_S)


def test_a_killed_agent_comes_back_without_touching_running_pods(mesh, pods, version):
    with (
        holding(mesh, pods["web-1"], pods["web-2"], version) as held,
        Probe(mesh, pods["web-1"], "loop", pods["web-4"].address(version), ECHO_PORT, 0.005) as fresh,
    ):
        held.expect("open")
        fresh.expect("open")
        mesh.daemons["nodeagent-node1"].kill()
        mesh.start_agent("node1")
        late = mesh.add_pod(PodSpec("late", "node1"))
        wait_until("the new pod talks", lambda: mesh.reaches(late, pods["web-2"], version), SOON_S)
        mesh.delete_pod("late")
        assert held.stop()["event"] == "stopped"
        done = fresh.stop()
        assert (done["event"], done["failed"]) == ("done", 0)


def test_a_tunnel_told_to_end_lets_connections_finish_and_ends(mesh, pods, version):
    """SIGTERM: what runs may run on until the deadline; afterwards a new tunnel serves the same pods."""
    tunnel = mesh.daemons["ztunnel-node1"]
    with holding(mesh, pods["web-1"], pods["web-2"], version) as held:
        held.expect("open")
        tunnel.signal(signal.SIGTERM)
        last = held.stop()
        assert last["event"] == "stopped", "the connection ran on after SIGTERM and could finish by itself"
    assert tunnel.wait(SOON_S)
    mesh.start_tunnel("node1")
    wait_until("its pods are served again", lambda: mesh.reaches(pods["web-1"], pods["web-2"], version), SOON_S)


def test_a_wrong_join_token_ends_the_tunnel_with_a_sentence(mesh, pods):
    """A second tunnel, on the control plane's host, with a token that nobody issued."""
    elsewhere = mesh.layout.dir / "impostor"
    elsewhere.mkdir(exist_ok=True)
    settings = daemons.tunnel_settings(mesh.layout, "node1") | {
        "NODEMESH_RUN_DIR": str(elsewhere),
        "NODEMESH_STATE_DIR": str(elsewhere),
        "INPOD_UDS": str(elsewhere / "zds.sock"),
        "AUTH_TOKEN": "nobody-issued-this",
    }
    command = daemons.command("ztunnel", "run")
    impostor = processes.start(mesh.layout, "impostor", mesh.layout.control, command, settings)
    assert impostor.wait(SOON_S)
    last = daemons.last_words(mesh.layout, "impostor")
    assert last.startswith("ztunnel: AUTH_TOKEN: the control plane at 172.30.0.10:15012 refuses it: UNAUTHENTICATED")
    assert "Traceback" not in mesh.layout.log("impostor").read_text()


def test_time_is_shared_by_all_probes():
    """The measured times of the demo are differences between two processes' clocks."""
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"
