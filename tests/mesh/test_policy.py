"""The oracle itself, sentence by sentence; that the tunnel agrees is `tests/ztunnel/test_policy_oracle.py`."""

from ipaddress import ip_address, ip_network

import pytest

from mesh.model import AccountMatch, Action, Comparison, Match, Policy, Scope, StringMatch, Workload
from mesh.policy import Asked, Verdict, judge, match_matches

DB = "spiffe://cluster.local/ns/bank/sa/db"
WEB = Workload(uid="web", name="web", namespace="shop")


def exact(text):
    return StringMatch(Comparison.EXACT, text)


def asked(identity=DB, source="10.0.0.9", destination="10.0.0.1", port=80, service=""):
    return Asked(ip_address(source), ip_address(destination), port, identity, service)


def policy(name, action, *rules, **more):
    return Policy(name, "shop", Scope.NAMESPACE, action, rules, **more)


def said(*policies, workload=WEB, **question):
    return judge({each.key: each for each in policies}, workload, asked(**question))


EVERYBODY = ()
NOBODY_S = ((Match(not_principals=(StringMatch(Comparison.PRESENCE),)),),)


@pytest.mark.parametrize(
    ("match", "question", "expected"),
    [
        (Match(), {}, False),
        (Match(namespaces=(exact("bank"),)), {}, True),
        (Match(namespaces=(exact("bank"),), not_namespaces=(exact("bank"),)), {}, False),
        (Match(namespaces=(exact("bank"),), destination_ports=(81,)), {}, False),
        (Match(not_destination_ports=(81, 82)), {}, True),
        (Match(principals=(exact("cluster.local/ns/bank/sa/db"),)), {}, True),
        (Match(principals=(exact("cluster.local/ns/bank/sa/d"),)), {}, False),
        (Match(principals=(StringMatch(Comparison.PREFIX, "cluster.local/"),)), {}, True),
        (Match(principals=(StringMatch(Comparison.SUFFIX, "/sa/db"),)), {}, True),
        (Match(principals=(StringMatch(Comparison.PREFIX),)), {"identity": ""}, False),
        (Match(service_accounts=(AccountMatch("bank", "db"),)), {"identity": DB.replace("cluster", "other")}, True),
        (Match(source_ips=(ip_network("10.0.0.0/8"),)), {"source": "::ffff:10.1.1.1"}, True),
        (Match(source_ips=(ip_network("::ffff:10.0.0.0/104"),)), {"source": "10.1.1.1"}, True),
        (Match(source_ips=(ip_network("::/0"),)), {"source": "10.1.1.1"}, False),
        (Match(services=(exact("db"),)), {"service": "db"}, True),
        (Match(services=(StringMatch(Comparison.PREFIX),)), {}, False),
    ],
)
def test_what_a_match_matches(match, question, expected):
    assert match_matches(match, asked(**question)) is expected


def test_the_order_is_deny_then_missing_then_allow():
    allow, deny = policy("allow", Action.ALLOW, EVERYBODY), policy("deny", Action.DENY, EVERYBODY)
    late = Workload(uid="web", name="web", namespace="shop", policies=("shop/late",))
    assert said().verdict == Verdict(True)
    assert said(allow).verdict == Verdict(True, "shop/allow", 0)
    assert said(policy("none", Action.ALLOW)).verdict == Verdict(False)
    assert said(allow, deny).verdict == Verdict(False, "shop/deny", 0)
    assert said(allow, workload=late).verdict == Verdict(False, "shop/late")
    assert said(deny, workload=late).verdict == Verdict(False, "shop/deny", 0)


def test_the_first_rule_that_matches_is_named():
    two = policy("p", Action.DENY, ((Match(destination_ports=(81,)),),), EVERYBODY)
    assert said(two).verdict == Verdict(False, "shop/p", 1)


def test_strict_denies_whom_nobody_proved():
    strict = policy("strict", Action.DENY, NOBODY_S)
    assert said(strict).verdict.allowed
    assert not said(strict, identity="").verdict.allowed


def test_dry_runs_and_audits_decide_nothing_and_are_told():
    dry, audit = policy("dry", Action.DENY, EVERYBODY, dry_run=True), policy("audit", Action.AUDIT, EVERYBODY)
    judgement = said(dry, audit)
    assert (judgement.verdict, judgement.rehearsed) == (Verdict(True), Verdict(False, "shop/dry", 0))
    assert judgement.observed == (("shop/audit", 0), ("shop/dry", 0))
    assert said(audit).rehearsed is None


def test_egress_asks_only_the_policies_that_the_client_names():
    out = Policy("out", "shop", Scope.WORKLOAD_SELECTOR, Action.ALLOW)
    client = Workload(uid="web", name="web", namespace="shop", egress_policies=("shop/out",))
    known = {out.key: out, "shop/in": policy("in", Action.DENY, EVERYBODY)}
    assert judge(known, client, asked(), outbound=True).verdict == Verdict(False)
    assert judge(known, WEB, asked(), outbound=True).verdict == Verdict(True)
    assert judge({}, client, asked(), outbound=True).verdict == Verdict(False, "shop/out")
