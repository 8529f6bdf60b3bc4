"""What a waypoint tells those who do not scrape: each kind of backend counts what the client sent."""

import json
import sys

import pytest

from lab import daemons, proxies
from lab.documents import OUT_OF_MESH, PodSpec
from lab.processes import wait_until
from tests.lab import receiver
from tests.lab.mall import NAMESPACE

pytestmark = pytest.mark.lab

SENT = 13
PORTS = {
    "statsd": receiver.STATSD,
    "statsd+tcp": receiver.STATSD,
    "dogstatsd": receiver.DOGSTATSD,
    "graphite": receiver.GRAPHITE,
    "otlp": receiver.OTLP,
    "otlp+http": receiver.OTLP_HTTP,
    "metrics-service": receiver.METRICS_SERVICE,
}
# What is sent is the growth since the last time, not the whole.
DELTAS = ("statsd", "statsd+tcp", "dogstatsd", "graphite")
LABELS = {
    "reporter": "waypoint",
    "source_workload": "alice",
    "source_principal": "spiffe://cluster.local/ns/mall/sa/alice",
    "destination_service": "told.mall.svc.cluster.local",
    "response_code": "200",
}


# What has a colon ends a name of plain statsd and of Graphite too early.
WITHOUT_PRINCIPALS = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: no-colons}
spec:
  targetRefs: [{kind: Service, group: "", name: told}]
  metrics:
  - overrides:
    - tagOverrides: {source_principal: {operation: REMOVE}, destination_principal: {operation: REMOVE}}
"""


class Backend:
    """The samples that came, in their order."""

    def __init__(self, mesh):
        self.mesh = mesh
        spec = PodSpec("backend-1", "node2", NAMESPACE, labels=OUT_OF_MESH)
        self.pod = mesh.add_pod(spec, with_apps=False)
        mesh.start_in(self.pod, "backend", [sys.executable, "-m", "tests.lab.receiver"])
        self.log = mesh.layout.log("backend")
        wait_until("the backend listens", lambda: "listening" in self.log.read_text(), 60)

    def samples(self, kind):
        lines = self.log.read_text().splitlines(keepends=True)
        found = [json.loads(each) for each in lines if each.startswith("[") and each.endswith("\n")]
        return [sample[1:] for sample in found if sample[0] == kind]

    def counted(self, kind):
        """Requests of alice's that were answered 200, by what this kind was told."""
        ours = {}
        for name, labels, value in self.samples(kind):
            if "requests_total" in name and is_ours(name, labels):
                series = (name, *sorted(labels.items()))
                ours[series] = value + (ours.get(series, 0) if kind in DELTAS else 0)
        return sum(ours.values())


def is_ours(name, labels):
    """Plain statsd has no labels: they are words of the name."""
    if not labels:
        return all(f".{key}.{value}" in f"{name}." for key, value in LABELS.items())
    return LABELS.items() <= labels.items()


@pytest.fixture(scope="module")
def backend(built_mall):
    return Backend(built_mall.mesh)


@pytest.fixture(scope="module")
def teller(built_mall, backend):
    """A waypoint that sends to every kind, and the service `told` behind it."""
    mesh = built_mall.mesh
    settings = daemons.more_settings(mesh.layout, "teller-1")
    settings.parent.mkdir(parents=True, exist_ok=True)
    sinks = [f"{kind}://{backend.pod.ip}:{port}" for kind, port in PORTS.items()]
    settings.write_text(json.dumps({"STATS_SINKS": ",".join([*sinks, "hystrix"]), "STATS_FLUSH_INTERVAL": "500ms"}))
    proxies.apply(mesh, "teller", NAMESPACE)
    pod = proxies.add(mesh, "teller", "node1", NAMESPACE)
    vip = built_mall.service("told", waypoint="teller", app="reviews")
    built_mall.until(lambda: built_mall.ask(f"http://{vip}/").status == 200, "told answers")
    return pod


def test_every_kind_of_backend_counts_what_was_sent(mall, backend, teller):
    before = counted_here(mall, teller)
    mall.ask_many(f"http://{mall.vip('told')}/", SENT)
    wait_until("the waypoint has counted them", lambda: counted_here(mall, teller) == before + SENT, 60)
    for kind in PORTS:
        wait_until(
            f"{kind} counts {before + SENT}, not {backend.counted(kind)}",
            lambda kind=kind: backend.counted(kind) == before + SENT,
            60,
        )


def test_a_hot_restart_neither_loses_nor_repeats_a_request(mall, backend, teller):
    """For those who are told of growth; totals begin anew, as for Prometheus."""
    url = f"http://{mall.vip('told')}/"
    before = counted_here(mall, teller)
    mall.ask_many(url, SENT)
    assert "epoch" in json.loads(mall.admin("/restart", teller, "POST"))
    mall.ask_many(url, SENT)
    for kind in ("statsd", "dogstatsd"):
        mall.until(lambda kind=kind: backend.counted(kind) == before + 2 * SENT, f"{kind} counts {before + 2 * SENT}")


def counted_here(mall, teller):
    lines = proxies.metrics(mall.mesh, teller).splitlines()
    ours = [each for each in lines if each.startswith("istio_requests_total") and 'response_code="200"' in each]
    return sum(int(each.rpartition(" ")[2]) for each in ours)


def test_only_what_an_operator_watches_goes_out(mall, backend, teller):
    wait_until("something came", lambda: bool(backend.samples("otlp")), 60)
    families = {name.split(".")[0] for name, *_ in backend.samples("otlp")}
    watched = {"istio", "server", "listener_manager", "cluster_manager", "control_plane", "overload"}
    assert families - watched == {"cluster"}, "for the Hystrix stream, which is on here"
    clusters = [name for name, *_ in backend.samples("otlp") if name.startswith("cluster.")]
    assert not [name for name in clusters if "upstream_rq" not in name and "membership_total" not in name]


def test_without_principals_no_name_has_a_colon(mall, backend, teller):
    mall.apply(WITHOUT_PRINCIPALS)

    def clean():
        mall.ask(f"http://{mall.vip('told')}/")
        names = [name for name, *_ in backend.samples("statsd") if "requests_total" in name]
        return any(":" not in name and ".destination_service_name.told." in name for name in names)

    wait_until("a name without a colon comes", clean, 60)


def test_a_hystrix_dashboard_is_served_a_stream_of_what_was_asked(mall, teller):
    def commands():
        """Until ten seconds are over, curl or somebody else ends the stream."""
        asked = mall.mesh.start_in(mall.alice, "asking", asking(mall.vip("told")))
        told = mall.mesh.exec(teller, ["curl", "-sN", "-m", "5", "127.0.0.1:15020/hystrix.stream"]).stdout
        asked.kill()
        lines = (json.loads(each.removeprefix("data: ")) for each in told.splitlines() if each.startswith("data: "))
        return [each for each in lines if each["type"] == "HystrixCommand" and "told.mall" in each["name"]]

    wait_until("requests are counted", lambda: any(each["requestCount"] > 0 for each in commands()), 60)


def asking(vip):
    return ["curl", "-s", "--rate", "50/s", f"http://{vip}/?[1-100000]"]
