"""`meshctl graph` of a lab: requests through waypoints and gateways, connections through tunnels, each once."""

import json

import pytest
from click.testing import CliRunner

from lab.processes import wait_until
from meshctl.main import cli

pytestmark = pytest.mark.lab

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-bob}
spec:
  targetRefs: [{kind: Service, group: "", name: ratings}]
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mall/sa/bob]}}]}]
"""


def graph(mall, *options):
    """What the command prints of the whole lab."""
    command = ["graph", "--lab", mall.mesh.layout.name, *options]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def edges(mall, *options):
    return {
        (each["source"], each["destination"], each["version"]): each
        for each in json.loads(graph(mall, "-o", "json", *options))["items"]
    }


def requests(mall, key):
    found = edges(mall).get(key, {})
    return found.get("requests", 0), found.get("failed", 0), found.get("statuses", {})


def test_requests_are_edges_with_version_and_result(mall):
    key = ("mall/alice", "mall/ratings", "v1")
    before, failed, _ = requests(mall, key)
    mall.ask_many(f"http://{mall.vip('ratings')}/", 11)
    mall.ask(f"http://{mall.vip('ratings')}/status/500")
    wait_until("they are counted", lambda: requests(mall, key)[:2] == (before + 12, failed + 1), 60)
    assert edges(mall)[key]["reporter"] == "waypoint"


def test_who_is_denied_is_an_edge_that_ends_at_the_waypoint(mall):
    mall.apply(DENY)
    mall.until(lambda: mall.ask(f"http://{mall.vip('ratings')}/", client=mall.bob).status == 403)
    denied = ("mall/bob", "mall/ratings", "")
    wait_until("it is told", lambda: "403" in requests(mall, denied)[2], 60)


def test_what_no_waypoint_sees_is_told_by_the_tunnels(mall):
    client, server = mall.mesh.pods["web-1"], mall.mesh.pods["web-2"]
    mall.ask(f"http://{server.ip}:8080/", client=client)

    def told():
        return [
            each["reporter"] for (source, *_), each in edges(mall).items()
            if source == "shop/web-1" and each["destination"] == "shop/web-2" and each["request_bytes"] > 0
        ]  # fmt: skip

    wait_until("a tunnel tells", lambda: told() == ["destination"], 60)
    run_dir = str(mall.mesh.layout.run_dir("node1"))
    own = CliRunner().invoke(cli, ["graph", "--run-dir", run_dir], catch_exceptions=False).output
    assert [line.split()[-1] for line in own.splitlines() if line.startswith("shop/web-1 ")] == ["source"]


def test_only_what_happens_from_now_on_and_only_of_a_namespace(mall):
    asking = mall.series("asking-for-the-graph")
    try:
        asking.until("name")
        now = edges(mall, "--interval", "2", "-n", "mall")
    finally:
        asking.end()
    assert {key[:2] for key in now if key[0] == "mall/alice"} == {("mall/alice", "mall/reviews")}
    assert "shop/" not in graph(mall, "-n", "mall")


def test_graphviz_and_people_get_the_same_edges(mall):
    rows = graph(mall).splitlines()[1:]
    arrows = [line for line in graph(mall, "-o", "dot").splitlines() if "->" in line]
    assert len(rows) == len(arrows) == len(edges(mall))
    assert "way-1" not in graph(mall), "the waypoint is on the way, neither its beginning nor its end"
