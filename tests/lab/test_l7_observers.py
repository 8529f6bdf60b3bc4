"""What the mesh tells, in the words of those who listen: a real Prometheus, a real Zipkin server."""

import secrets

import pytest

from lab import observers, proxies
from lab.documents import OUT_OF_MESH, PodSpec
from lab.layout import underlay_address
from lab.processes import wait_until
from mesh.errors import OperatorError
from tests.lab.mall import NAMESPACE, provider
from tests.lab.test_l7_telemetry import TRACED
from tools import dashboards, slo

pytestmark = pytest.mark.lab

STATS_PORT = 15020
# Istio's standard metrics: https://istio.io/latest/docs/reference/config/metrics/
PARTIES = {
    f"{party}_{label}"
    for party in ("source", "destination")
    for label in (
        *("workload", "workload_namespace", "principal", "app", "version", "cluster"),
        *("canonical_service", "canonical_revision"),
    )
} | {"reporter", "destination_service", "destination_service_name", "destination_service_namespace"}
BY_REQUEST = PARTIES | {"request_protocol", "response_code", "response_flags", "connection_security_policy"}
BY_CONNECTION = (
    PARTIES
    | {f"{party}_{place}" for party in ("source", "destination") for place in ("region", "zone")}
    | {"request_protocol", "response_flags", "connection_security_policy"}
)
FROM_PROMETHEUS = {"__name__", "instance", "job"}
COUNTED = {
    "source_workload_namespace": "mall",
    "source_principal": "spiffe://cluster.local/ns/mall/sa/front",
    "source_canonical_service": "front",
    "source_cluster": "Kubernetes",
    "destination_service": "reviews.mall.svc.cluster.local",
    "destination_service_name": "reviews",
    "destination_service_namespace": "mall",
    "destination_workload_namespace": "mall",
    "request_protocol": "http",
    "response_code": "200",
    "response_flags": "-",
}
# Who sends cannot know how the other end's connection is secured: Istio's word for that.
SECURITY = {"waypoint": "mutual_tls", "source": "unknown"}
CALLER = "a2fb4a1d1a96d312"
FRONT = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: front}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [front.example]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: [front.example]
  gateways: [front]
  http: [{route: [{destination: {host: reviews}}]}]
---
"""


@pytest.fixture(scope="module")
def front(built_mall):
    """A way in, `front`."""
    return proxies.add(built_mall.mesh, "front", "node2", NAMESPACE, gateway=True)


def outside(mesh, name):
    return mesh.add_pod(PodSpec(name, "node1", NAMESPACE, labels=OUT_OF_MESH), with_apps=False)


def hosts(mall, front):
    return [mall.way.ip, front.ip, *(underlay_address(number) for number in (1, 2))]


@pytest.fixture(scope="module")
def prometheus(built_mall, front):
    """In a pod outside the mesh; scrapes the waypoint, the gateway and both tunnels; has the rules of objectives."""
    mesh, pod = built_mall.mesh, outside(built_mall.mesh, "prometheus")
    observers.start_prometheus(mesh, pod, [f"{host}:{STATS_PORT}" for host in hosts(built_mall, front)], [slo.TARGET])
    return pod


def visit(mall, front, path, *options):
    where = ["--resolve", f"front.example:80:{front.ip}", *options]
    return mall.ask(f"http://front.example{path}", *where, client=mall.mesh.pods["plain-1"])


def test_prometheus_understands_everybody(mall, front, prometheus):
    everybody = {f"{host}:{STATS_PORT}": "" for host in hosts(mall, front)}
    wait_until("everybody was scraped", lambda: observers.targets(mall.mesh, prometheus) == everybody, 90)


def test_requests_have_all_of_istios_labels_from_waypoint_and_gateway(mall, front, prometheus):
    mall.apply(FRONT)
    mall.until(lambda: visit(mall, front, "/").status == 200)

    def counted(reporter):
        name = f'istio_requests_total{{reporter="{reporter}",source_workload="front"}}'
        return [each["metric"] for each in observers.query(mall.mesh, prometheus, name)]

    for reporter in ("waypoint", "source"):
        wait_until(f"{reporter} counts", lambda r=reporter: bool(counted(r)), 90)
        for series in counted(reporter):
            assert set(series) - FROM_PROMETHEUS == BY_REQUEST
            assert series.items() >= {**COUNTED, "connection_security_policy": SECURITY[reporter]}.items()
            assert "unknown" not in {series[label] for label in PARTIES}


def test_a_quantile_of_the_durations_comes_out(mall, prometheus):
    mall.ask_many("/", 5)
    expression = (
        "histogram_quantile(0.9, sum by (le) "
        '(istio_request_duration_milliseconds_bucket{destination_service_name="reviews"}))'
    )

    def quantile():
        found = observers.query(mall.mesh, prometheus, expression)
        return bool(found) and float(found[0]["value"][1]) > 0

    wait_until("a quantile", quantile, 90)


def test_connections_have_all_of_istios_labels_from_both_tunnels(mall, prometheus):
    client, server = mall.mesh.pods["web-1"], mall.mesh.pods["web-2"]
    mall.ask(f"http://{server.ip}:8080/", client=client)

    def series(reporter):
        of = f'reporter="{reporter}",source_workload="web-1",destination_workload="web-2"'
        return observers.query(mall.mesh, prometheus, f"istio_tcp_connections_opened_total{{{of}}}")

    for reporter in ("source", "destination"):
        wait_until(f"the tunnel at the {reporter} counts", lambda r=reporter: bool(series(r)), 90)
        for found in series(reporter):
            assert set(found["metric"]) - FROM_PROMETHEUS == BY_CONNECTION


def test_every_panel_of_every_dashboard_is_understood_and_shows_something(mall, front, prometheus):
    mall.apply(FRONT)
    mall.until(lambda: visit(mall, front, "/").status == 200)
    mall.ask(f"http://{mall.mesh.pods['web-2'].ip}:8080/", client=mall.mesh.pods["web-1"])
    for path in ("/status/404", "/status/503"):
        mall.ask(path)
    asking = mall.series("asking")
    wanted = {(board, panel, query.expr): query.always for board, panel, query in dashboards.queries()}
    everything = {(board.name, name, f"count by ({label}) ({metric})"): True
                  for board in dashboards.ALL for name, metric, label in board.variables} | wanted  # fmt: skip

    left = set(everything)

    def shown():
        for key in sorted(left):
            answer = observers.query(mall.mesh, prometheus, concrete(key[2]))
            if not everything[key] or any(map(is_number, answer)):
                left.remove(key)
        return not left

    try:
        wait_until("every panel shows something", shown, 120, step_s=1)
    except OperatorError:
        raise AssertionError(f"nothing to show in {left}") from None
    finally:
        asking.end()


def concrete(expression):
    """As Grafana asks it, with everything chosen."""
    for name in ("service", "namespace", "workload", "instance"):
        expression = expression.replace(f"${name}", ".*")
    return expression.replace("$__rate_interval", "1m")


def is_number(series):
    return series["value"][1] != "NaN"


def test_zipkin_shows_one_trace_from_the_gateway_to_the_last_hop(mall, front):
    """The gateway, the waypoint before `reviews`, the waypoint before `ratings`: each is the next one's parent."""
    mesh = mall.mesh
    mall.service("zipkin", "")
    pod = mall.pod("zipkin-1", "node2", "zipkin")
    observers.start_zipkin(mesh, pod)
    collector = provider("collector", "zipkin: {service: mall/zipkin.mall.svc.cluster.local, port: 80}")
    mall.apply(FRONT + collector + TRACED)
    mall.until(lambda: visit(mall, front, "/").status == 200)
    on_the_way = [(each, kind) for each in ("mall/front", "mall/way", "mall/way") for kind in ("SERVER", "CLIENT")]
    for headers in (
        lambda trace: (f"x-b3-traceid: {trace}", f"x-b3-spanid: {CALLER}", "x-b3-sampled: 1"),
        lambda trace: (f"traceparent: 00-{trace}-{CALLER}-01",),
    ):
        asked = []

        def told(headers=headers, asked=asked):
            """Asked again and again: the first may come before every worker of every proxy traces."""
            asked.append(secrets.token_hex(16))
            context = [word for each in headers(asked[-1]) for word in ("-H", each)]
            assert visit(mall, front, f"/via/{mall.vip('ratings')}/x", *context).status == 200
            return next((found for each in asked if len(found := hops(observers.trace(mesh, pod, each))) >= 6), None)

        wait_until("the whole way is told", lambda told=told: told() == on_the_way, 120, step_s=0.5)


def hops(spans):
    """Service and kind of each span, from the caller's span on, by who is whose parent."""
    by_parent = {span.get("parentId"): span for span in spans}
    found, parent = [], CALLER
    while span := by_parent.get(parent):
        found.append((span["localEndpoint"]["serviceName"], span["kind"]))
        parent = span["id"]
    return found
