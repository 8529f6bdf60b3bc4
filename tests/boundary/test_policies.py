"""Policies in front of real connections: whom a pod may call, what cuts a live one, what is counted and told."""

import json

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.authorization_pb2 import ALLOW, DENY, Authorization, Clause, Match, Rule, StringMatch
from mesh.gen.workload_pb2 import Extension
from tests.boundary.apps import Echo, exchange, read_all
from tests.boundary.node import uid

pytestmark = pytest.mark.lab
PORT = 8080
HITS = "nodemesh_policy_hits_total"


def policy(name, action, *matches, scope=1, **more):
    rules = [Rule(clauses=[Clause(matches=[match])]) for match in matches]
    return Authorization(name=name, namespace="shop", scope=scope, action=action, rules=rules, **more)


def egress(*keys):
    extensions = []
    for key in keys:
        extensions.append(Extension(name="nodemesh/egress-policy"))
        extensions[-1].config.Pack(StringValue(value=key))
    return extensions


def to_namespace(name):
    return Match(namespaces=[StringMatch(exact=name)])


def error_line(mesh, direction):
    return mesh.line(lambda line: line.get("direction") == direction and "error" in line)


@pytest.fixture
def live(mesh, wire):
    """A connection from `a` to `b` that has carried a byte."""
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        yield connection


def test_a_pod_calls_only_whom_its_egress_policies_allow(mesh, wire):
    a, b, c = wire.pods
    mesh.put_policy(policy("out", ALLOW, to_namespace("shop"), scope=2))
    mesh.tell(a, extensions=egress("shop/out"))
    with Echo(b, PORT), Echo(c, PORT) as outside:
        assert exchange(a.connect(b.ip, PORT), b"x") == b"x"
        with pytest.raises(ConnectionResetError):
            exchange(a.connect(c.ip, PORT), b"x")
        assert outside.seen.empty(), "no packet left"
        assert exchange(c.connect(b.ip, PORT), b"x") == b"x", "who may call `b` is another question"
    line = error_line(mesh, "outbound")
    assert line["error"] == "connection refused before it left: no ALLOW policy matched (shop/out)"
    assert mesh.sample(HITS, reporter="source", policy_name="out", rule="0", action="ALLOW") == 1
    assert mesh.sample(HITS, reporter="source", policy_name="", action="DENY") == 1
    failed = mesh.sample("istio_tcp_connections_failed_total", reporter="source", response_flags="DENY")
    assert failed == 1


def test_an_egress_policy_that_comes_later_cuts_what_is_open(mesh, wire, live):
    a = wire.pods[0]
    port = Match(destination_ips=[{"address": bytes([10, 77, 0, 2]), "length": 32}], destination_ports=[PORT])
    mesh.put_policy(policy("no-b", DENY, port, scope=2))
    mesh.tell(a, extensions=egress("shop/no-b"))
    with pytest.raises(ConnectionResetError):
        read_all(live)
    assert error_line(mesh, "outbound")["error"] == "connection closed: denied by policy shop/no-b"
    assert mesh.sample(HITS, reporter="source", policy_name="no-b", rule="0", action="DENY") == 1


def test_a_pod_whose_record_is_withdrawn_keeps_no_connection(mesh, wire, live):
    assert mesh.core.apply(ADDRESS_TYPE, [], [uid(wire.pods[1])]) == []
    with pytest.raises(ConnectionResetError):
        read_all(live)
    line = error_line(mesh, "inbound")
    assert line["error"] == "connection closed: the control plane has withdrawn the pod's record"


def test_a_client_whose_record_is_withdrawn_keeps_no_connection(mesh, wire, live):
    assert mesh.core.apply(ADDRESS_TYPE, [], [uid(wire.pods[0])]) == []
    with pytest.raises(ConnectionResetError):
        read_all(live)


def test_a_pod_that_gets_another_identity_keeps_no_connection(mesh, wire, live):
    mesh.tell(wire.pods[1], trust_domain="other.domain")
    with pytest.raises(ConnectionResetError):
        read_all(live)
    assert "the pod is no longer spiffe://cluster.local/ns/shop/sa/b" in error_line(mesh, "inbound")["error"]


def test_a_policy_that_a_changed_label_selects_cuts_what_it_denies(mesh, wire, live):
    mesh.put_policy(policy("selected", DENY, Match(destination_ports=[PORT]), scope=2))
    live.sendall(b"2")
    assert live.recv(1) == b"2", "nobody names it yet"
    mesh.tell(wire.pods[1], authorization_policies=["shop/selected"])
    with pytest.raises(ConnectionResetError):
        read_all(live)


def test_a_new_policy_that_is_refused_closes_its_namespace_until_it_is_corrected(mesh, wire, live):
    a, b, _ = wire.pods
    bad = policy("bad", ALLOW, Match(destination_ports=[70_000]))
    [(name, why)] = mesh.core.apply(AUTHORIZATION_TYPE, [("shop/bad", bad.SerializeToString())], [])
    assert (name, why) == ("shop/bad", "rules[0].clauses[0].matches[0].destination_ports[0]: port: 70000 is not a port")
    with pytest.raises(ConnectionResetError):
        read_all(live)
    assert error_line(mesh, "inbound")["error"] == f"connection closed: policy shop/bad was refused: {why}"
    with pytest.raises(ConnectionResetError):
        exchange(a.connect(b.ip, PORT), b"x")
    [refused] = json.loads(mesh.core.dump())["refusedPolicies"]
    assert refused == {"name": "shop/bad", "why": why, "governs": "namespace shop"}
    mesh.put_policy(policy("bad", ALLOW, Match(destination_ports=[PORT])))
    assert exchange(a.connect(b.ip, PORT), b"x") == b"x"


def test_audits_and_dry_runs_are_counted_and_told_and_enforce_nothing(mesh, wire):
    a, b, _ = wire.pods
    mesh.put_policy(
        policy(
            "watch",
            DENY,
            to_namespace("x"),
            to_namespace("shop"),
            dry_run=True,
            extensions=[{"name": "nodemesh/audit"}],
        )
    )
    mesh.put_policy(policy("trial", DENY, to_namespace("shop"), dry_run=True))
    with Echo(b, PORT):
        assert exchange(a.connect(b.ip, PORT), b"x") == b"x"
    line = mesh.line(lambda line: line.get("direction") == "inbound")
    assert (line["audit"], line["dry_run"]) == ("shop/watch[1]", "denied by policy shop/trial")
    assert mesh.sample(HITS, policy_name="watch", rule="1", action="AUDIT", dry_run="false") == 1
    assert mesh.sample(HITS, policy_name="trial", rule="0", action="DENY", dry_run="true") == 1
    shown = {each["name"]: each for each in json.loads(mesh.core.dump())["policies"]}
    assert shown["watch"]["action"] == "Audit"
    assert shown["watch"]["hits"] == [
        {"rule": 1, "action": "AUDIT", "dryRun": False, "reporter": "destination", "count": 1}
    ]


def test_the_counters_of_a_policy_go_with_it(mesh, wire):
    a, b, _ = wire.pods
    mesh.put_policy(policy("all", ALLOW, to_namespace("shop")))
    with Echo(b, PORT):
        assert exchange(a.connect(b.ip, PORT), b"x") == b"x"
    assert mesh.sample(HITS, policy_name="all") == 1
    assert mesh.core.apply(AUTHORIZATION_TYPE, [], ["shop/all"]) == []
    assert HITS + "{" not in mesh.core.metrics().decode()
