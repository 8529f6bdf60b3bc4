"""What becomes of a pod's connections: tunnel, plaintext, refusal, and what is told about each of them."""

import contextlib
import re
import select
import socket

import pytest

from mesh.gen.authorization_pb2 import DENY, Authorization, Clause, Match, Rule, StringMatch
from tests.boundary.apps import Echo, exchange, read_all
from tests.boundary.node import PATIENCE_S, identity

pytestmark = pytest.mark.lab
PORT = 8080


def is_line(direction):
    return lambda line: line["scope"] == "access" and line["direction"] == direction


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_pods_reach_each_other_through_a_tunnel_and_the_application_sees_its_client(mesh, wire, family):
    a, b, _ = wire.pods
    with Echo(b, PORT, "::" if family == "ip6" else "") as app:
        assert exchange(a.connect(getattr(b, family), PORT), b"x" * 300_000) == b"x" * 300_000
        assert app.seen.get(timeout=60) == getattr(a, family)
    for direction in ("inbound", "outbound"):
        line = mesh.line(is_line(direction))
        assert (line["message"], line["bytes_sent"], line["bytes_recv"]) == ("connection complete", 300_000, 300_000)
        assert (line["src.identity"], line["dst.identity"]) == (identity(a), identity(b))
        assert line["dst.addr"].endswith(":15008")
        assert line["dst.hbone_addr"].endswith(f":{PORT}")


def test_open_connections_are_shown_and_counted_while_they_last(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"12345")
        assert connection.recv(100) == b"12345"
        [out], [into] = mesh.connections(a, "outbound"), mesh.connections(b, "inbound")
        assert (out["originalDst"], out["actualDst"]) == (f"{b.ip}:{PORT}", f"{b.ip}:15008")
        assert (into["originalDst"], into["dstIdentity"], into["bytesReceived"]) == (f"{b.ip}:{PORT}", identity(b), 5)
        assert into["protocol"] == out["protocol"] == "HBONE"
        assert mesh.sample("istio_tcp_received_bytes_total", reporter="destination", source_workload="a") == 5
        assert mesh.sample("istio_tcp_sockets_open", reporter="source") == 1
        assert mesh.sample("istio_tcp_connections_closed_total") == 0
    mesh.line(is_line("outbound"))
    assert mesh.sample("istio_tcp_connections_closed_total", connection_security_policy="mutual_tls") >= 1


def test_plaintext_from_outside_is_delivered_until_a_policy_wants_identities(mesh, wire):
    _, b, c = wire.pods
    with Echo(b, PORT) as app:
        assert exchange(c.connect(b.ip, PORT), b"hello") == b"hello"
        assert app.seen.get(timeout=60) == c.ip
        mesh.put_policy(strict())
        with pytest.raises(ConnectionResetError):
            exchange(c.connect(b.ip, PORT), b"hello")
        assert app.seen.empty()
    mesh.line(is_line("inbound"))
    line = mesh.line(is_line("inbound"))
    assert line["message"] == "connection failed"
    assert line["error"] == "connection refused: denied by policy shop/strict"
    assert mesh.sample("istio_tcp_connections_failed_total", response_flags="DENY", reporter="destination") == 1


def strict():
    no_identity = Match(not_principals=[StringMatch(presence={})])
    return deny("strict", no_identity)


def deny(name, match):
    rule = Rule(clauses=[Clause(matches=[match])])
    return Authorization(name=name, namespace="shop", scope=1, action=DENY, rules=[rule])


def test_a_denied_tunnel_never_reaches_the_application_and_both_sides_say_why(mesh, wire):
    a, b, _ = wire.pods
    mesh.put_policy(deny("no-a", Match(principals=[StringMatch(exact=identity(a).removeprefix("spiffe://"))])))
    with Echo(b, PORT) as app, pytest.raises(ConnectionResetError):
        exchange(a.connect(b.ip, PORT), b"hello")
    assert app.seen.empty()
    lines = {line["direction"]: line for line in (mesh.line(lambda _: True), mesh.line(lambda _: True))}
    assert lines["inbound"]["error"] == "connection refused: denied by policy shop/no-a"
    assert re.search("401|within the node: connection refused", lines["outbound"]["error"])
    for reporter in ("source", "destination"):
        assert mesh.sample("istio_tcp_connections_failed_total", reporter=reporter, response_flags="DENY") == 1


def test_a_new_policy_cuts_what_it_denies_and_nothing_else(mesh, wire):
    a, b, c = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as denied, c.connect(b.ip, PORT) as allowed:
        for connection in (denied, allowed):
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
        mesh.put_policy(deny("no-a", Match(principals=[StringMatch(suffix="/sa/a")])))
        with pytest.raises(ConnectionResetError):
            read_all(denied)
        allowed.sendall(b"2")
        assert allowed.recv(1) == b"2"
        line = mesh.line(lambda line: is_line("inbound")(line) and "error" in line)
    assert (line["message"], line["level"]) == ("connection complete", "error")
    assert line["error"] == "connection closed: denied by policy shop/no-a"


def test_a_policy_that_a_record_names_before_it_arrives_cuts_only_what_it_denies(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        mesh.tell(b, authorization_policies=["shop/selected"])
        policy = deny("selected", Match(destination_ports=[1]))
        policy.scope = 2
        mesh.put_policy(policy)
        connection.sendall(b"2")
        assert connection.recv(1) == b"2"
        policy.rules[0].clauses[0].matches[0].destination_ports[0] = PORT
        mesh.put_policy(policy)
        with pytest.raises(ConnectionResetError):
            read_all(connection)


def test_a_connection_waits_for_a_policy_that_is_named_and_not_there_yet(mesh, wire):
    a, b, _ = wire.pods
    mesh.tell(b, authorization_policies=["shop/late"])
    assert [policy for _, policy, _ in mesh.core.missing_policies()] == ["shop/late"]
    with Echo(b, PORT) as app, a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert app.seen.empty()
        policy = deny("late", Match(destination_ports=[1]))
        policy.scope = 2
        mesh.put_policy(policy)
        assert connection.recv(1) == b"1"


def test_a_rehearsed_policy_is_told_and_not_enforced(mesh, wire):
    a, b, _ = wire.pods
    policy = deny("trial", Match(destination_ports=[PORT]))
    policy.dry_run = True
    mesh.put_policy(policy)
    with Echo(b, PORT):
        assert exchange(a.connect(b.ip, PORT), b"hello") == b"hello"
    assert mesh.line(is_line("inbound"))["dry_run"] == "denied by policy shop/trial"


def test_a_record_that_comes_late_is_waited_for(node, wire):
    a, b, _ = wire.pods
    for pod in (a, b):
        wire.capture(pod)
        node.enrol(pod)
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        node.tell(a, b)
        assert connection.recv(1) == b"1"
    wanted = {identity(a), identity(b)}
    while wanted:
        wanted.discard(node.event("need_certificate")[1])


@pytest.mark.parametrize("canary", ["192.0.2.127", "2001:db8::7f"])
def test_the_canary_is_closed_in_order_and_in_silence(mesh, wire, canary):
    a, b, _ = wire.pods
    with a.connect(canary, 4321) as connection:
        assert connection.recv(1) == b""
    assert_reset(a, b.ip, 9)
    assert mesh.line(lambda _: True)["dst.hbone_addr"] == f"{b.ip}:9", "nothing was logged before it"


def assert_reset(client, address, port):
    """Sometimes the reset is faster than connect() returns."""
    with pytest.raises(ConnectionResetError), client.connect(address, port) as connection:
        read_all(connection)


def test_who_does_not_speak_tls_to_the_tunnel_port_is_a_failed_connection(mesh, wire):
    _, b, c = wire.pods
    with contextlib.suppress(ConnectionResetError), c.connect(b.ip, 15008) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        read_all(connection)
    line = mesh.line(lambda _: True)
    assert (line["message"], line["dst.workload"]) == ("connection failed", "b")
    assert line["error"].startswith("TLS: ")
    assert mesh.sample("istio_tcp_connections_failed_total", response_flags="TLS_FAILURE") == 1


def test_an_application_that_does_not_answer_is_a_reset_and_a_sentence(mesh, wire):
    a, b, _ = wire.pods
    assert_reset(a, b.ip, 9)
    assert mesh.line(is_line("inbound"))["error"].startswith(f"connect to the application at {b.ip}:9: Connection ref")
    assert mesh.sample("istio_tcp_connections_failed_total", response_flags="CONNECT") == 2


@pytest.mark.parametrize("port", [15001, 15006])
@pytest.mark.parametrize("who", ["itself", "a stranger"])
def test_the_capture_ports_are_no_way_in(mesh, wire, port, who):
    _, b, c = wire.pods
    client = b if who == "itself" else c
    assert_reset(client, b.ip, port)
    assert "a loop" in mesh.line(lambda _: True)["error"]


def test_connections_spread_over_the_workers(start_node, wire):
    """Each worker has tunnels of its own, which the kernel can count. Two nodes: what `b` costs is not `a`'s load."""
    a, b, _ = wire.pods
    there = start_node()
    here = start_node(authority=there.authority)
    for node, pod in ((here, a), (there, b)):
        wire.capture(pod)
        node.enrol(pod)
        node.tell(a, b)
    with Echo(b, PORT), contextlib.ExitStack() as open_ones:
        for _ in range(4):
            connection = open_ones.enter_context(a.connect(b.ip, PORT))
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
        assert tunnels_from(a) == 2


def tunnels_from(pod):
    """Established TCP connections to 15008, by /proc/net/tcp (proc(5)); 3AA0 is 15008."""

    def count():
        with open("/proc/thread-self/net/tcp") as table:
            return sum(1 for row in table if row.split()[2].endswith(":3AA0") and row.split()[3] == "01")

    return pod.inside(count)


def test_bytes_arrive_in_both_directions_after_one_side_has_ended(mesh, wire):
    a, b, _ = wire.pods
    listener = b.listen(PORT)
    with listener, a.connect(b.ip, PORT) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"question"
            server.sendall(b"answer")
        assert read_all(client) == b"answer"


def test_without_a_certificate_nobody_speaks_for_a_pod(node, wire):
    a, b, _ = wire.pods
    node.deafen()
    for pod in (a, b):
        wire.capture(pod)
        node.enrol(pod)
    node.tell(a, b)
    with Echo(b, PORT) as app, a.connect(b.ip, PORT) as connection:
        while not any(event[::2] == ("need_certificate", "now") for event in node.core.take()):
            assert select.select([node.core.fileno()], [], [], PATIENCE_S)[0]
        node.core.certificate_failed(identity(a), "the authority says no")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
        assert app.seen.empty()
    assert "the authority says no" in node.line(lambda line: "error" in line)["error"]
