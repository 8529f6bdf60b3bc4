"""`meshctl graph`: an edge is told once, by whoever knows most of it."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from mesh.errors import OperatorError
from meshctl import edges as pure
from meshctl.admin import Unreachable
from meshctl.edges import dot, edges
from meshctl.main import cli

WAYPOINT = """\
# TYPE istio_requests_total counter
istio_requests_total{reporter="waypoint",SOURCE,destination_service_name="web",destination_service_namespace="shop",\
destination_version="v1",request_protocol="http",response_code="200",grpc_response_status=""} 40
istio_requests_total{reporter="waypoint",SOURCE,destination_service_name="web",destination_service_namespace="shop",\
destination_version="v1",request_protocol="http",response_code="503",grpc_response_status=""} 2
istio_requests_total{reporter="waypoint",SOURCE,destination_service_name="web",destination_service_namespace="shop",\
destination_version="unknown",request_protocol="http",response_code="403",grpc_response_status=""} 3
istio_requests_total{reporter="waypoint",SOURCE,destination_service_name="rpc",destination_service_namespace="shop",\
destination_version="v1",request_protocol="grpc",response_code="200",grpc_response_status="14"} 5
istio_request_bytes_sum{reporter="waypoint",SOURCE} 4000
""".replace("SOURCE", 'source_workload="bob",source_workload_namespace="shop"')
GATEWAY = """\
istio_requests_total{reporter="source",source_workload="bob",source_workload_namespace="shop",\
destination_service_name="web",destination_service_namespace="shop",response_code="200",request_protocol="http"} 7
istio_requests_total{reporter="source",source_workload="edge",source_workload_namespace="shop",\
destination_service_name="web",destination_service_namespace="shop",response_code="200",request_protocol="http"} 7
"""


def tunnel(reporter, opened=1, failed=0, service="unknown", source="bob"):
    labels = (
        f'reporter="{reporter}",source_workload="{source}",source_workload_namespace="shop",'
        f'destination_service_name="{service}",destination_service_namespace="shop",destination_workload="db-1",'
        'destination_workload_namespace="shop",destination_version="v2",request_protocol="tcp"'
    )
    of = {"connections_opened": opened, "connections_failed": failed, "received_bytes": 10, "sent_bytes": 20}
    return "".join(f"istio_tcp_{name}_total{{{labels}}} {value}\n" for name, value in of.items())


def told(*texts):
    return [
        (each.source, each.destination, each.version, each.protocol, each.count, each.failed, each.reporter)
        for each in edges(map(pure.told, texts))
    ]


WEB_V1 = ("shop/bob", "shop/web", "v1", "http", 42, 2, "waypoint")
WEB_NONE = ("shop/bob", "shop/web", "", "http", 3, 0, "waypoint")
RPC = ("shop/bob", "shop/rpc", "v1", "grpc", 5, 5, "waypoint")


def test_requests_are_counted_by_source_service_and_version():
    assert told(WAYPOINT) == [RPC, WEB_NONE, WEB_V1]
    [_, _, web] = edges([pure.told(WAYPOINT)])
    assert web.document() == {
        "source": "shop/bob",
        "destination": "shop/web",
        "version": "v1",
        "protocol": "http",
        "reporter": "waypoint",
        "requests": 42,
        "failed": 2,
        "statuses": {"200": 40, "503": 2},
    }


def test_a_waypoint_is_believed_before_a_gateway_and_both_before_a_tunnel():
    edge = ("shop/edge", "shop/web", "", "http", 7, 0, "source")
    assert told(tunnel("source", service="web"), GATEWAY, WAYPOINT) == [RPC, WEB_NONE, WEB_V1, edge]


def test_a_connection_is_counted_at_its_destination_or_where_only_the_source_knows_of_it():
    both = tunnel("source", opened=3), tunnel("destination", opened=2, failed=1)
    assert told(*both) == [("shop/bob", "shop/db-1", "v2", "tcp", 3, 1, "destination")]
    assert told(both[0]) == [("shop/bob", "shop/db-1", "v2", "tcp", 3, 0, "source")]
    assert told(tunnel("source", opened=1), tunnel("source", opened=4)) == [
        ("shop/bob", "shop/db-1", "v2", "tcp", 5, 0, "source")
    ]


def test_what_a_proxy_connects_to_is_told_by_the_proxy_itself():
    """A gateway's connections to a database: its own word, not also that of its tunnel."""
    info = 'nodemesh_proxy_info{proxy="shop/edge",principal="spiffe://td/ns/shop/sa/edge"} 1\n'
    own = tunnel("source", service="db", source="edge").replace('reporter="source"', 'reporter="source",PRINCIPAL')
    leg = tunnel("destination", opened=9, source="edge-1").replace('="destination"', '="destination",PRINCIPAL')
    texts = [each.replace("PRINCIPAL", 'source_principal="spiffe://td/ns/shop/sa/edge"') for each in (info + own, leg)]
    assert told(*texts) == [("shop/edge", "shop/db", "v2", "tcp", 1, 0, "source")]
    assert len(told(texts[1])) == 1


def test_who_is_not_known_is_called_so():
    text = 'istio_tcp_connections_opened_total{reporter="destination",source_workload="unknown",other="a\\"b,c"} 1\n'
    assert told(text) == [("unknown", "unknown", "", "tcp", 1, 0, "destination")]


def test_between_two_looks_only_what_is_new_counts():
    before, after = (pure.told(tunnel("source", opened=opened)) for opened in (5, 7))
    [edge] = edges([after.since(before)])
    assert (edge.connections, edge.request_bytes) == (2, 0)
    assert edges([after.since(after)]) == []
    [begun_anew] = edges([before.since(after)])
    assert begun_anew.connections == 5


def test_graphviz_gets_an_arrow_per_edge_and_failures_are_red():
    text = dot(edges([pure.told(WAYPOINT)]))
    assert '"shop/bob" -> "shop/web" [label="42 requests, 2 failed\\nv1", color=red];' in text
    assert text.startswith("digraph mesh {")
    assert text.endswith("}")


@contextmanager
def serving(text, status=200):
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server: HTTPServer = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def graph(*options):
    return CliRunner().invoke(cli, ["graph", *options], catch_exceptions=True)


def test_several_daemons_are_asked_over_the_network():
    with serving(WAYPOINT) as way, serving(tunnel("source", opened=3)) as node:
        result = graph("--scrape", way, "--scrape", node)
        assert [line.split()[:6] for line in result.output.splitlines()] == [
            ["SOURCE", "DESTINATION", "VERSION", "PROTOCOL", "COUNT", "FAILED"],
            ["shop/bob", "shop/db-1", "v2", "tcp", "3", "0"],
            ["shop/bob", "shop/rpc", "v1", "grpc", "5", "5"],
            ["shop/bob", "shop/web", "-", "http", "3", "0"],
            ["shop/bob", "shop/web", "v1", "http", "42", "2"],
        ]
        items = json.loads(graph("--scrape", way, "-n", "shop", "-o", "json").output)["items"]
        assert len(items) == 3
        assert graph("--scrape", way, "-n", "other").output.count("\n") == 1


def test_what_is_wrong_is_one_sentence(tmp_path):
    assert "goes without --run-dir" in graph("--scrape", "127.0.0.1:1", "--lab", "nm").output
    assert isinstance(error := graph("--scrape", "nowhere").exception, OperatorError)
    assert str(error) == "--scrape: 'nowhere' is not ADDRESS:PORT"
    assert isinstance(error := graph("--run-dir", str(tmp_path)).exception, Unreachable)
    assert "neither a tunnel nor a waypoint runs here" in str(error)
    with serving("", 503) as way:
        assert "answers /metrics with status 503" in str(graph("--scrape", way).exception)
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    assert "nobody answers" in str(graph("--scrape", f"127.0.0.1:{closed}").exception)


@pytest.mark.parametrize("file", ["ztunnel.sock", "waypoint.sock"])
def test_a_daemon_that_is_named_and_does_not_answer_is_told(tmp_path, file):
    (tmp_path / file).touch()
    assert isinstance(graph("--run-dir", str(tmp_path)).exception, Unreachable)
