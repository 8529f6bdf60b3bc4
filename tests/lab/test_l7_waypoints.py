"""Waypoints themselves: bound to services, several of them, weighted, restarted, killed; never gone round."""

import os
import signal
from pathlib import Path

import pytest

from lab import apps, proxies
from lab.processes import wait_until
from mesh.backoff import Backoff
from tests.lab.mall import NAMESPACE
from tests.lab.test_l7_routing import routes
from waypoint.envoy import LAST_RETRY_S

pytestmark = pytest.mark.lab
RATE = ["curl", "-s", "-m", "30", "--rate", "50/s", "-o", "/dev/null", "-w", "%{http_code}\n"]


def series(mall, name, count, url=None):
    """A request every 20 ms."""
    where = url or f"http://{mall.vip('reviews')}/"
    return mall.mesh.start_in(mall.alice, name, [*RATE, f"{where}?[1-{count}]"])


def statuses(mall, process, count):
    assert process.wait(240)
    return mall.mesh.layout.log(process.name).read_text().split()[-count:]


@pytest.fixture(autouse=True)
def log(mall):
    yield
    print(mall.mesh.layout.log("waypoint-way-1").read_text()[-3000:])


@pytest.fixture
def second(mall):
    """Another pod of the same Gateway, on the other node."""
    pod = proxies.add(mall.mesh, "way", "node2", NAMESPACE, replica=2)
    yield pod
    mall.mesh.delete_pod(pod.name)


def requests_of(mall, pod):
    text = mall.admin("/envoy/stats?filter=http.hbone.downstream_rq_total", pod)
    return sum(int(line.rpartition(": ")[2]) for line in text.splitlines())


def test_several_pods_share_the_work(mall, second):
    def both():
        command = f"for i in $(seq 20); do curl -s -o /dev/null http://{mall.vip('reviews')}/; done"
        mall.mesh.exec(mall.alice, ["bash", "-c", command])
        return all("reviews" in mall.admin("/envoy/clusters", pod) and _served(mall, pod) for pod in (mall.way, second))

    mall.until(both)


def _served(mall, pod):
    lines = proxies.metrics(mall.mesh, pod).splitlines()
    return any(line.startswith("istio_requests_total") and "reviews" in line for line in lines)


def test_a_waypoint_that_is_killed_is_left_for_the_other_at_once(mall, second):
    """No request of a client that tries again fails for more than a second; none goes round."""
    proxies.process(mall.mesh, second).kill()
    command = (
        f"for i in $(seq 30); do curl -s -m 20 -o /dev/null -w '%{{http_code}}\\n' http://{mall.vip('reviews')}/; done"
    )
    done = mall.mesh.exec(mall.alice, ["bash", "-c", command]).stdout.split()
    assert done == ["200"] * 30


def test_without_any_waypoint_nothing_goes_round_it(mall):
    process = proxies.process(mall.mesh, mall.way)
    process.signal(signal.SIGSTOP)
    try:
        pid = _envoy_pid(mall)
        os.kill(pid, signal.SIGKILL)
        assert mall.ask("/").status == 0
    finally:
        process.signal(signal.SIGCONT)
    # It may have died before, for another test: then the runner waits longer.
    wait_until("a dead Envoy is started again", lambda: mall.ask("/").status == 200, LAST_RETRY_S + 60)


def _envoy_pid(mall):
    parent = proxies.process(mall.mesh, mall.way).pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(children[-1])


def test_a_hot_restart_loses_nothing(mall):
    running = series(mall, "hot", 150)
    assert '"epoch"' in mall.admin("/restart", method="POST")
    assert set(statuses(mall, running, 150)) == {"200"}
    mall.until(lambda: mall.ask("/").status == 200)


def nodes(mall):
    """Who holds a stream to the control plane."""
    return {each.get("node") or each["proxy"] for each in mall.mesh.ask("controlplane", "/status")["nodes"]}


def test_the_control_plane_may_go_away(mall):
    """Traffic goes on; what changed meanwhile is there when it is back."""
    everybody = {*mall.mesh.nodes, f"{NAMESPACE}/way"}
    running = series(mall, "headless", 100)
    mall.mesh.daemons["controlplane"].kill()
    try:
        assert set(statuses(mall, running, 100)) == {"200"}
    finally:
        mall.mesh.start_controlplane()
    wait_until("everybody is back", lambda: nodes(mall) >= everybody, Backoff().cap_s + 60)
    mall.apply(routes("- directResponse: {status: 418}"))
    mall.until(lambda: mall.ask("/").status == 418)


def test_an_invalid_document_is_refused_and_traffic_goes_on(mall):
    mall.apply(routes("- directResponse: {status: 418}"))
    mall.mesh.apply("l7-broken", routes("- directResponse: {status: 418}\n  redirect: {uri: /x}"))
    try:
        mall.until(
            lambda: any("redirect" in each["why"] for each in mall.mesh.ask("controlplane", "/status")["findings"])
        )
        [finding] = [
            e for e in mall.mesh.ask("controlplane", "/status")["findings"] if e["file"].endswith("l7-broken.yaml")
        ][:1]
        assert finding["line"] > 0
        assert mall.ask("/").status == 418
    finally:
        mall.mesh.remove("l7-broken")


def test_weighted_waypoints_get_their_shares(mall):
    """A canary of the waypoint itself."""
    proxies.apply(mall.mesh, "canary", NAMESPACE)
    pod = proxies.add(mall.mesh, "canary", "node2", NAMESPACE)
    try:
        vip = mall.service("shared", "")
        document = mall.service_document("shared", vip)
        document["metadata"]["labels"] = {"istio.io/use-waypoint": "way", "istio.io/use-waypoint-canary": "canary"}
        document["metadata"]["annotations"] = {"istio.io/use-waypoint-canary-weight": "50"}
        document["spec"]["selector"] = {"app": "reviews"}
        mall.mesh.apply("service-mall-shared", document)

        def principals():
            command = (
                f"for i in $(seq 40); do curl -s http://{vip}/ | grep -o 'By=spiffe://[^;]*'; done | sort | uniq -c"
            )
            return mall.mesh.exec(mall.alice, ["bash", "-c", command]).stdout

        mall.until(lambda: "sa/way" in (seen := principals()) and "sa/canary" in seen)
    finally:
        mall.mesh.remove("service-mall-shared")
        mall.mesh.delete_pod(pod.name)
        mall.mesh.remove("gateway-mall-canary")


def test_a_destination_can_demand_that_traffic_came_through_its_waypoint(mall):
    """Istio's way: the application's pods let only the waypoint in."""
    mall.apply("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-waypoint}
spec:
  selector: {matchLabels: {app: reviews}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/mall/sa/way]}}]}]
""")
    assert mall.ask("/").status == 200
    assert mall.ask(f"http://{mall.reviews[1].ip}:8080/").status == 0


def _any_port_is_served(mall, pod):
    """One that no service names; and a policy that is about that port."""
    mall.mesh.start_in(pod, "echo-alone-9", apps.echo("alone-9", "v9", 9009))
    url = f"http://{pod.ip}:9009/x"
    mall.until(lambda: mall.ask(url).status == 200)
    assert mall.ask(url).told["name"] == "alone-9"
    mall.apply("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-nine}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: own}]
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [mall/alice]}}], to: [{operation: {ports: ["9009"]}}]}]
""")
    mall.until(lambda: mall.ask(url).status == 0)
    assert mall.ask(url, client=mall.bob).status == 200
    assert mall.ask(f"http://{pod.ip}:8080/x").status == 200


def test_a_workloads_own_address_is_reached_through_its_waypoint(mall):
    """Bound by a label of the pod, for a waypoint that serves workloads."""
    proxies.apply(mall.mesh, "own", NAMESPACE, **{"istio.io/waypoint-for": "workload"})
    way = proxies.add(mall.mesh, "own", "node1", NAMESPACE)
    mall.service("alone", "")
    pod = mall.echo("alone-1", "node2", "alone", "v1", **{"istio.io/use-waypoint": "own"})
    try:
        answer = mall.ask(f"http://{pod.ip}:8080/x")
        assert answer.header("x-forwarded-client-cert").startswith("By=spiffe://cluster.local/ns/mall/sa/own;")
        assert answer.told["name"] == "alone-1"
        _any_port_is_served(mall, pod)
    finally:
        mall.mesh.delete_pod(pod.name)
        mall.mesh.delete_pod(way.name)
        mall.mesh.remove("service-mall-alone")
        mall.mesh.remove("gateway-mall-own")
