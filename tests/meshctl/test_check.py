"""`meshctl check`: one sentence per finding, and what to do about it."""

import json

import pytest
from click.testing import CliRunner

from meshctl import findings
from meshctl.main import cli
from meshctl.scrape import Totals, gauges, traffic
from meshctl.top import rates

NOW = 1_000_000.0
HEALTHY = {
    "node": "node1",
    "pending": [],
    "xds": {"address": "cp:15012", "connected": True, "resources": {"a": 3}, "last_message": NOW - 60, "refused": {}},
    "policies": {"missing": []},
    "zds": {"socket": "/z", "connected": True, "pods": ["u1"], "waiting": {}},
    "certificates": {"expiries": {"spiffe://x/ns/a/sa/b": NOW + 3600}, "troubles": {}},
}
POD = {"uid": "u1", "namespace": "shop", "name": "web", "state": "IN_MESH", "error": "", "differences": []}
LISTENING = [15001, 15006, 15008, 15053]


def said(found):
    return [(finding.level, finding.what) for finding in found if finding.level != "ok"]


def test_a_healthy_node_has_nothing_but_good_news():
    found = [*findings.of_tunnel(HEALTHY, NOW), *findings.of_pods([{**POD, "listening": LISTENING}], ["u1"])]
    assert [finding.level for finding in found] == ["ok"] * len(found)
    assert "1 certificates, the first ends in 1 h 0 min" in [finding.what for finding in found]


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("xds", {"connected": False, "error": "refused"}, "no configuration comes from cp:15012 (refused)"),
        ("xds", {"last_message": NOW - 7200}, "the control plane was silent for 120 minutes"),
        ("xds", {"refused": {"shop/p": "port 70000"}}, "shop/p is refused: port 70000"),
        (
            "policies",
            {"missing": [{"pod": "u1", "policy": "shop/p", "refused": ""}]},
            "u1 names the policy shop/p, which has not come from the control plane: what it would judge is denied",
        ),
        (
            "policies",
            {"missing": [{"pod": "u1", "policy": "shop/p", "refused": "port: 65536 is not a port"}]},
            "u1 names the policy shop/p, which was refused (port: 65536 is not a port)",
        ),
        ("zds", {"connected": False}, "no node agent at /z"),
        ("zds", {"waiting": {"u2": "port 15001 is taken"}}, "pod u2 is not served: port 15001 is taken"),
        ("certificates", {"expiries": {"i": NOW - 1}}, "i: its certificate has expired"),
        ("certificates", {"expiries": {"i": NOW + 120}, "troubles": {"i": "CA away"}}, "lasts 2 min more"),
        ("certificates", {"troubles": {"j": "CA away"}}, "j: CA away; it has no valid certificate"),
    ],
)
def test_what_is_wrong_with_a_tunnel_is_a_sentence(part, change, sentence):
    found = said(findings.of_tunnel({**HEALTHY, part: {**HEALTHY[part], **change}}, NOW))
    assert len(found) == 1
    assert sentence in found[0][1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state": "CUT_OFF"}, "pod shop/web is CUT_OFF"),
        ({"differences": ["chain output lacks 1 of its 5 rules"]}, "pod shop/web: chain output lacks 1"),
        ({"listening": [15001, 15008, 15053]}, "nobody listens on 15006"),
        (
            {"foreign": ["IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT"]},
            "beside its capture, IPv4 legacy table",
        ),
        ({"error": "gone"}, "its namespace cannot be looked at: gone"),
        ({"uid": "u2"}, "pod shop/web is not served by the tunnel"),
    ],
)
def test_what_is_wrong_with_a_pod_is_a_sentence(change, sentence):
    found = said(findings.of_pods([{**POD, "listening": LISTENING, **change}], ["u1"]))
    assert sentence in found[0][1]


def test_every_finding_that_is_not_good_news_says_what_to_do():
    broken = {"pending": ["xds"], "xds": {}, "zds": {"waiting": {"u": "w"}}, "certificates": {"troubles": {"i": "w"}}}
    metrics = {"process_open_fds": 9, "process_max_fds": 10, "nodemesh_accept_failures_total": 1}
    found = [
        *findings.of_tunnel(broken, NOW),
        *findings.of_metrics({**metrics, "nodemesh_log_lines_dropped_total": 3}),
        *findings.of_controlplane({"findings": [{"level": "error", "file": "f", "line": 1, "why": "w"}]}),
    ]
    assert len(found) == 9
    assert all(finding.do for finding in found)


def test_a_saved_dump_is_checked_without_a_process(tmp_path):
    dump = {
        "workloads": [{"uid": "u", "authorizationPolicies": ["shop/p", "shop/q"]}],
        "policies": [{"namespace": "shop", "name": "q"}],
        "certificates": [{"identity": "i", "state": "Unavailable: CA says no", "certChain": []}],
    }
    (tmp_path / "dump").write_text(json.dumps(dump))
    result = CliRunner().invoke(cli, ["check", "-f", str(tmp_path / "dump"), "-o", "json"])
    assert result.exit_code == 1
    levels = [(item["level"], item["what"]) for item in json.loads(result.output)["items"]]
    assert levels == [
        ("fail", "workload u names policy shop/p, which is not known: it denies everybody"),
        ("fail", "i: Unavailable: CA says no"),
        ("ok", "1 policies, 1 certificates in the dump"),
    ]


METRICS = """\
# TYPE istio_tcp_connections_opened_total counter
istio_tcp_connections_opened_total{reporter="source",source_workload="web",source_workload_namespace="shop",destination_workload="unknown",destination_workload_namespace="unknown",destination_service="db.\\"x\\""} 7
istio_tcp_connections_closed_total{reporter="source",source_workload="web",source_workload_namespace="shop",destination_workload="unknown",destination_workload_namespace="unknown",destination_service="db.\\"x\\""} 5
istio_tcp_received_bytes_total{reporter="source",source_workload="web",source_workload_namespace="shop",destination_workload="unknown",destination_workload_namespace="unknown",destination_service="db.\\"x\\""} 300
process_open_fds 12
"""  # noqa: E501


def test_metrics_become_traffic_per_pair_and_rates():
    found = traffic(METRICS)
    (pair,) = found
    assert pair == ("source", "shop/web", 'db.\\"x\\"')
    assert found[pair] == Totals(opened=7, closed=5, received=300)
    assert gauges(METRICS) == {"process_open_fds": 12.0}
    (row,) = rates({pair: Totals(opened=5, received=100)}, found, 2.0)
    assert (row["open"], row["new_per_s"], row["request_bytes_per_s"], row["failed_per_s"]) == (2, 1.0, 100, 0)
    assert rates(found, {pair: Totals(opened=5, closed=5)}, 2.0) == [], "without news, without connections"


def test_a_guard_in_force_is_good_news_and_what_remains_is_named():
    found = list(findings.of_guard({"capture": {"guard": "in force"}}))
    assert [finding.level for finding in found] == ["ok", *["note"] * len(findings.RESIDUAL)]
    assert "NET_ADMIN" in found[1].what


def test_a_tunnel_known_by_its_mark_only_is_a_warning_that_says_why():
    warning = next(findings.of_guard({"capture": {"guard": "process 7 is in the root control group"}}))
    assert (warning.level, "root control group" in warning.what) == ("warn", True)


def test_legacy_tables_that_are_read_the_other_way_are_a_note_that_says_why():
    assert list(findings.of_legacy({"capture": {"legacy": ""}})) == []
    ((level, what),) = said(findings.of_legacy({"capture": {"legacy": "libip4tc is not installed"}}))
    assert (level, what.endswith("iptables-legacy-save does: libip4tc is not installed")) == ("note", True)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("GET /api/v1/pods: no answer in time", "the Kubernetes API cannot be followed: GET /api/v1/pods: no answer"),
        ({"Pod": "no", "Node": "never"}, "the Kubernetes API cannot be followed: Pod: no; Node: never"),
    ],
)
def test_an_api_server_that_is_away_is_a_warning(trouble, sentence):
    ((level, what),) = said(findings.of_kubernetes({"kubernetes": {"trouble": trouble}}))
    assert (level, what[: len(sentence)]) == ("warn", sentence)


@pytest.mark.parametrize(("status", "levels"), [({"kubernetes": {"trouble": {}}}, ["ok"]), ({"kubernetes": None}, [])])
def test_where_there_is_no_trouble_or_no_api_server_nothing_is_wrong(status, levels):
    assert [each.level for each in findings.of_kubernetes(status)] == levels
