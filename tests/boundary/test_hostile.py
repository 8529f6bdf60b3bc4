"""What the operator is told of peers that were turned away; the attacks themselves are in the Rust corpus `hostile`."""

import contextlib

import pytest

from tests.boundary.apps import Echo, read_all
from tests.boundary.hbone import Hbone
from tests.boundary.node import identity
from tests.boundary.wire import run

pytestmark = pytest.mark.lab
PORT = 8080


def turned_away(node, reason):
    return node.sample("nodemesh_tunnels_turned_away_total", reason=reason)


def test_plaintext_on_the_tunnels_port_gets_no_byte_and_is_counted(mesh, wire):
    _, b, c = wire.pods
    with contextlib.suppress(ConnectionResetError), c.connect(b.ip, 15008) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(connection) == b""
    assert "does not speak TLS" in mesh.line(lambda line: "error" in line)["error"]
    assert turned_away(mesh, "plaintext") == 1


def test_an_offence_behind_a_good_handshake_names_the_offender(mesh, wire, tmp_path):
    _, b, c = wire.pods
    with Hbone(mesh, c, b.ip, tmp_path) as tunnel:
        tunnel.give_up(f"{b.ip}:{PORT}", times=260)
        line = mesh.line(lambda line: "too many resets" in line.get("error", ""))
    assert (line["src.identity"], line["message"]) == (identity(c), "connection failed")
    assert turned_away(mesh, "enhance_your_calm") == 1
    assert mesh.sample("istio_tcp_connections_failed_total", response_flags="PEER_OFFENCE") == 1


def test_a_request_that_is_given_up_costs_no_more_work(mesh, wire, tmp_path):
    """Its application answers no SYN: without that rule, each request would hold a socket for ten seconds."""
    _, b, c = wire.pods
    silence = "add table inet t\nadd chain inet t out { type filter hook output priority 0; }\n"
    silence += f"add rule inet t out tcp dport {PORT} drop\n"
    run("ip", "netns", "exec", b.netns, "nft", "-f", "-", stdin=silence)
    with Hbone(mesh, c, b.ip, tmp_path) as tunnel:
        tunnel.give_up(f"{b.ip}:{PORT}", times=100)
        for _ in range(100):
            line = mesh.line(lambda line: line["direction"] == "inbound")
            assert line["error"] == "the peer gave the request up before its answer"
        with Echo(b, PORT + 1):
            assert tunnel.ask(f"{b.ip}:{PORT + 1}", payload=b"x") == 200
