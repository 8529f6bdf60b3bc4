"""The tunnel's verdicts are those of `mesh/policy.py`, in more than a hundred thousand generated questions.

Worlds go the way of real ones: model, the control plane's messages, the core's own decoding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from controlplane.translate.tunnel import translate
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.model import AccountMatch, Action, Comparison, Match, Policy, Scope, StringMatch, Workload, World
from mesh.policy import Asked, Verdict, judge

pytestmark = pytest.mark.lab
SEED = 20_040
WORLDS, QUESTIONS = 4_200, 25

NAMESPACES = ("shop", "shops", "bank")
ACCOUNTS = ("web", "web2", "db.x")
DOMAINS = ("cluster.local", "cluster.local2", "td")
ADDRESSES = ("10.0.0.1", "10.1.2.3", "::ffff:10.0.0.1", "fd00::1", "fd00:1::1", "192.0.2.1", "::ffff:192.0.2.1")
RANGES = (
    *("10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "192.0.2.0/31", "::/0", "fd00::/16", "fd00::1/128"),
    *("::ffff:10.0.0.0/104", "::ffff:0:0/96", "::ffff:10.0.0.1/128", "::fffe:0:0/95"),
)
PORTS = (80, 443, 8080, 65535)
HOSTS = ("web.shop.svc", "db.bank.svc", "svc")
IDENTITIES = ("", *(f"spiffe://{td}/ns/{ns}/sa/{sa}" for td in DOMAINS for ns in NAMESPACES for sa in ACCOUNTS))
TEXTS = (
    *("", *NAMESPACES, *HOSTS, "cluster.local", "cluster.local/ns/shop", "/sa/web", "sa/db.x", "Shop", "web"),
    *(identity.removeprefix("spiffe://") for identity in IDENTITIES[1:6]),
)
NETWORKS = tuple(ip_network(text) for text in RANGES)


def any_text(dice):
    comparison = dice.choice(list(Comparison))
    return StringMatch(comparison, "" if comparison is Comparison.PRESENCE else dice.choice(TEXTS))


def any_account(dice):
    return AccountMatch(dice.choice(NAMESPACES), dice.choice(ACCOUNTS))


ATTRIBUTES = {
    "namespaces": any_text,
    "principals": any_text,
    "service_accounts": any_account,
    "source_ips": lambda dice: dice.choice(NETWORKS),
    "destination_ips": lambda dice: dice.choice(NETWORKS),
    "destination_ports": lambda dice: dice.choice(PORTS),
    "services": any_text,
}


def any_match(dice):
    """Mostly one or two attributes; sometimes none at all."""
    values = {}
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3))):
        name = dice.choice(tuple(ATTRIBUTES))
        negation = dice.choice(("", "", "not_"))
        values[negation + name] = tuple(ATTRIBUTES[name](dice) for _ in range(dice.choice((1, 1, 2, 3))))
    return Match(**values)


def any_rule(dice):
    def clause():
        return tuple(any_match(dice) for _ in range(dice.choice((0, 1, 1, 2, 2))))

    return tuple(clause() for _ in range(dice.choice((0, 1, 1, 1, 2, 3))))


def any_policy(dice, number):
    return Policy(
        name=f"p{number}",
        namespace=dice.choice(("shop", "shop", "shop", "bank")),
        scope=dice.choice(list(Scope)),
        action=dice.choice((Action.ALLOW, Action.ALLOW, Action.DENY, Action.DENY, Action.AUDIT)),
        rules=tuple(any_rule(dice) for _ in range(dice.choice((0, 1, 1, 2, 3)))),
        dry_run=dice.random() < 0.2,
    )


def any_world(dice):
    policies = {policy.key: policy for policy in (any_policy(dice, n) for n in range(dice.randrange(6)))}
    policies = {
        key: replace(policy, dry_run=False) if policy.action is Action.AUDIT else policy
        for key, policy in policies.items()
    }
    named = [key for key, policy in policies.items() if policy.scope is Scope.WORKLOAD_SELECTOR]
    late = ["shop/late"] if dice.random() < 0.1 else []
    chosen = [key for key in [*named, *late] if dice.random() < 0.8]
    outward = [key for key in [*named, *late] if dice.random() < 0.8]
    web = Workload(
        uid="Kubernetes//Pod/shop/web",
        name="web",
        namespace="shop",
        addresses=(ip_address("10.0.0.1"),),
        policies=tuple(chosen),
        egress_policies=tuple(outward),
    )
    return World(workloads={web.uid: web}, policies=policies), web


def any_question(dice):
    outbound = dice.random() < 0.3
    return outbound, Asked(
        source=ip_address(dice.choice(ADDRESSES)),
        destination=ip_address(dice.choice(ADDRESSES)),
        port=dice.choice(PORTS),
        identity=dice.choice(IDENTITIES),
        service=dice.choice(("", *HOSTS)) if outbound else "",
    )


def from_core(said):
    allowed, policy, rule = said
    return Verdict(allowed, policy, None if rule < 0 else rule)


def as_core_takes_it(outbound, asked):
    return str(asked.source), asked.identity, str(asked.destination), asked.port, outbound, asked.service


def answers(core_judge, world, web, questions):
    resources = translate(world).by_type
    named = [(name, item.data) for name, item in resources[AUTHORIZATION_TYPE].items()]
    asked = [as_core_takes_it(*question) for question in questions]
    found = core_judge(named, (web.uid, resources[ADDRESS_TYPE][web.uid].data), asked)
    for verdict, rehearsed, observed in found:
        yield from_core(verdict), from_core(rehearsed) if rehearsed else None, tuple(observed)


def test_the_tunnel_decides_as_the_readable_policy_does(capsys):
    core = pytest.importorskip("ztunnel._core", reason="the native core is not built")
    dice, seen = Random(SEED), Counter()
    for number in range(WORLDS):
        world, web = any_world(dice)
        questions = [any_question(dice) for _ in range(QUESTIONS)]
        for (outbound, asked), said in zip(questions, answers(core.judge, world, web, questions), strict=True):
            expected = judge(world.policies, web, asked, outbound=outbound)
            meant = (expected.verdict, expected.rehearsed, expected.observed)
            assert said == meant, f"world {number}, outbound {outbound}: {asked}\n{web}\n{world.policies}"
            count(seen, world, outbound, expected)
    with capsys.disabled():
        print(f"\npolicy oracle: {seen['cases']} cases in {WORLDS} worlds, all alike (seed {SEED})")
    assert seen["cases"] >= 100_000
    assert all(seen[kind] > 500 for kind in WANTED), f"the dice are loaded: {seen}"


WANTED = (
    *("allowed by a rule", "allowed without a policy", "denied by a rule", "denied: none matched", "denied: missing"),
    *("inbound", "outbound", "rehearsed otherwise", "audited"),
    *(f"decided with {each.name}" for each in fields(Match)),
)


def count(seen, world, outbound, judgement):
    seen["cases"] += 1
    seen["outbound" if outbound else "inbound"] += 1
    verdict = judgement.verdict
    if verdict.rule is not None:
        seen["allowed by a rule" if verdict.allowed else "denied by a rule"] += 1
        rule = world.policies[verdict.policy].rules[verdict.rule]
        for name in {each.name for clause in rule for match in clause for each in fields(match)}:
            seen[f"decided with {name}"] += any(getattr(match, name) for clause in rule for match in clause)
    elif verdict.allowed:
        seen["allowed without a policy"] += 1
    else:
        seen["denied: missing" if verdict.policy else "denied: none matched"] += 1
    seen["rehearsed otherwise"] += judgement.rehearsed not in (None, verdict)
    seen["audited"] += any(world.policies[key].action is Action.AUDIT for key, _ in judgement.observed)
