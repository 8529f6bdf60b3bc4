"""What a waypoint tells: Istio's metrics with their labels, an access log, traces with context to the last hop."""

import json

import pytest

from lab import proxies
from lab.demo_waypoint import requests_total
from lab.processes import wait_until
from tests.lab.mall import provider

pytestmark = pytest.mark.lab


def series(mall, **labels):
    """How many requests these labels count."""
    found = requests_total(proxies.metrics(mall.mesh, mall.way))
    return sum(value for each, value in found if labels.items() <= each.items())


def test_requests_are_counted_with_istios_labels(mall):
    labels = {
        "reporter": "waypoint",
        "source_workload": "bob",
        "source_workload_namespace": "mall",
        "source_principal": "spiffe://cluster.local/ns/mall/sa/bob",
        "source_app": "bob",
        "source_version": "latest",
        "source_canonical_service": "bob",
        "source_canonical_revision": "latest",
        "source_cluster": "Kubernetes",
        "destination_workload": "ratings-v1",
        "destination_workload_namespace": "mall",
        "destination_principal": "spiffe://cluster.local/ns/mall/sa/ratings",
        "destination_app": "ratings",
        "destination_version": "v1",
        "destination_service": "ratings.mall.svc.cluster.local",
        "destination_service_name": "ratings",
        "destination_service_namespace": "mall",
        "destination_canonical_service": "ratings",
        "destination_canonical_revision": "v1",
        "destination_cluster": "Kubernetes",
        "request_protocol": "http",
        "response_code": "200",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }
    before = series(mall, **labels)
    mall.ask_many(f"http://{mall.vip('ratings')}/", 7, client=mall.bob)
    wait_until("they are counted", lambda: series(mall, **labels) - before == 7, 60)
    names = ("request_duration_milliseconds", "request_bytes", "response_bytes")
    # Envoy merges its workers' histograms every five seconds.
    wait_until(
        "durations and sizes are there",
        lambda: all(f"# TYPE istio_{n} histogram" in proxies.metrics(mall.mesh, mall.way) for n in names),
        60,
    )


def test_a_telemetry_document_takes_labels_and_metrics_away(mall):
    mall.apply("""
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: less}
spec:
  targetRefs: [{kind: Service, group: "", name: ratings}]
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides: {response_flags: {operation: REMOVE}, method: {value: request.method}}
""")
    mall.until(lambda: mall.ask(f"http://{mall.vip('ratings')}/", "-X", "PUT").status == 200)
    wait_until("counted by method", lambda: series(mall, method="PUT", destination_service_name="ratings") >= 1, 60)


def test_the_access_log_has_a_line_of_json_per_request(mall):
    mall.ask("/status/404?x=1", "-H", "x-request-id: 2f1b7c80-0000-4000-8000-000000000001")
    log = mall.mesh.layout.log("waypoint-way-1")

    def line():
        lines = (json.loads(each) for each in log.read_text().splitlines() if each.startswith('{"'))
        return next((each for each in lines if each.get("path") == "/status/404?x=1"), None)

    wait_until("the line is there", lambda: line() is not None, 60)
    found = line()
    assert (found["method"], found["response_code"]) == ("GET", 404)
    assert found["source_principal"] == "spiffe://cluster.local/ns/mall/sa/alice"
    assert found["destination_version"] in ("v1", "v2")


TRACED = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: traced}
spec:
  tracing:
  - providers: [{name: collector}]
    randomSamplingPercentage: 100
    customTags: {shop: {literal: {value: books}}}
"""


@pytest.fixture
def collector(mall):
    """A service that keeps what is posted to it."""
    if "collector" not in mall.mesh.vips:
        mall.service("collector", "")
        mall.echo("collector-1", "node2", "collector", "v1")
    return mall.mesh.pods["collector-1"]


def spans(mall, collector, path):
    return [body for each, body in mall.received(collector) if each == path]


def test_spans_go_to_zipkin_with_the_callers_context(mall, collector):
    zipkin = "zipkin: {service: mall/collector.mall.svc.cluster.local, port: 80}"
    mall.apply(provider("collector", zipkin) + TRACED)
    trace = "463ac35c9f6413ad48485a3953bb6124"
    context = ["-H", f"x-b3-traceid: {trace}", "-H", "x-b3-spanid: a2fb4a1d1a96d312", "-H", "x-b3-sampled: 1"]

    def found():
        # reviews calls ratings with the headers that it got: two hops through waypoints, one trace.
        assert mall.ask(f"/via/{mall.vip('ratings')}/x", *context).status == 200
        bodies = spans(mall, collector, "/api/v2/spans")
        listed = [span for body in bodies for span in json.loads(body) if span["traceId"] == trace]
        return {span.get("tags", {}).get("shop") for span in listed if span["kind"] == "SERVER"}, listed

    mall.until(lambda: found()[0] == {"books"} and len(found()[1]) >= 4, "spans of both hops")


def test_spans_go_to_opentelemetry(mall, collector):
    otlp = "opentelemetry: {service: mall/collector.mall.svc.cluster.local, port: 80, http: {path: /v1/traces}}"
    mall.apply(provider("collector", otlp) + TRACED)
    mall.until(lambda: mall.ask("/").status == 200 and bool(spans(mall, collector, "/v1/traces")), "a span arrives")
