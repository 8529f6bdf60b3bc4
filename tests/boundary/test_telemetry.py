"""What an operator is told of connections: traces, levels at run time, lines for people, a number for every refusal."""

import json
import os
import select

import pytest

from tests.boundary.apps import Echo, exchange, read_all
from tests.boundary.node import PATIENCE_S
from tests.boundary.test_paths import is_line

pytestmark = pytest.mark.lab
PORT = 8080


@pytest.fixture(params=(True, False), ids=("tunnel", "handed-over"))
def traced(start_node, wire, request):
    node = start_node(same_node_tls=request.param, trace_ratio=1.0)
    for pod in wire.pods[:2]:
        wire.capture(pod)
        node.enrol(pod)
    node.tell(*wire.pods[:2])
    return node


def test_both_ends_of_a_connection_are_spans_of_one_trace(traced, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT):
        exchange(a.connect(b.ip, PORT), b"hello")
        lines = {direction: traced.line(is_line(direction)) for direction in ("inbound", "outbound")}
    spans = {}
    while len(spans) < 2:
        spans |= {span["direction"]: span for span in map(json.loads, traced.core.take_spans())}
    out, into = spans["outbound"], spans["inbound"]
    assert out["trace_id"] == into["trace_id"] == lines["inbound"]["trace_id"] == lines["outbound"]["trace_id"]
    assert into["parent_span"] == out["span"] != into["span"]
    assert not out["parent_span"].strip("0")
    assert out["duration_ns"] > 0
    assert (out["bytes_sent"], into["src.workload"]) == (5, "a")


def test_who_debugs_sees_a_connection_begin_and_who_wants_errors_only_sees_nothing_else(mesh, wire):
    a, b, c = wire.pods
    mesh.core.set_log_level("debug", "access")
    with Echo(b, PORT):
        exchange(a.connect(b.ip, PORT), b"hello")
        begun = mesh.line(is_line("outbound"))
        assert (begun["message"], begun["level"], begun["src.workload"]) == ("connection opened", "debug", "a")
        mesh.line(lambda line: is_line("outbound")(line) and line["message"] == "connection complete")
        mesh.core.set_log_level("warn", "access")
        exchange(a.connect(b.ip, PORT), b"hello")
    with pytest.raises(ConnectionResetError), a.connect(c.ip, 9) as connection:
        read_all(connection)
    assert mesh.line(is_line("outbound"))["message"] == "connection failed"


def test_an_early_failure_is_a_line_with_its_flag_and_a_number(mesh, wire):
    a, b, _ = wire.pods
    with pytest.raises(ConnectionResetError), a.connect(b.ip, PORT) as connection:
        read_all(connection)
    line = mesh.line(is_line("outbound"))
    assert (line["message"], line["response_flags"]) == ("connection failed", "CONNECT")
    labels = {"reporter": "source", "source_workload": "a", "response_flags": "CONNECT"}
    assert mesh.sample("istio_tcp_connections_failed_total", **labels) == 1
    assert mesh.sample("istio_tcp_connections_opened_total") == 0


def test_with_the_console_format_a_line_is_for_people(start_node, wire):
    node = start_node(log_format="console")
    a, _, c = wire.pods
    wire.capture(a)
    node.enrol(a)
    node.tell(a)
    with Echo(c, PORT):
        exchange(a.connect(c.ip, PORT), b"hello")
    assert select.select([node._log], [], [], PATIENCE_S)[0]
    time, level, scope, message, fields = os.read(node._log, 1 << 16).decode().split("\t")
    assert (time[-1], level, scope, message) == ("Z", "info", "access", "connection complete")
    assert f"dst.addr={c.ip}:{PORT} direction=outbound bytes_sent=5 bytes_recv=5 duration=" in fields
