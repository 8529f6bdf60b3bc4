"""The plan's text against golden files; what nft lists for it is read back to the same plan."""

import json
from pathlib import Path

import pytest

from nodeagent.redirect import nft
from nodeagent.redirect.plan import Action, Chain, Field, Match, Options, Plan, Rule, Verb, make_plan
from nodeagent.redirect.verify import FAMILIES, Observed, Ways, differences, read_table

HERE = Path(__file__).parent / "golden"
VARIANTS = {
    "default": Options(),
    "no-dns": Options(dns_capture=False),
    "ingress-mode": Options(ingress_mode=True),
    "probes": Options(exempt_probes=True),
    "ingress-mode-probes": Options(ingress_mode=True, exempt_probes=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rendered_transaction_is_the_golden_one(variant):
    assert nft.render(make_plan(VARIANTS[variant])) == (HERE / f"{variant}.nft").read_text()


def test_removal_is_a_transaction_that_cannot_fail():
    assert (HERE / "removal.nft").read_text() == nft.REMOVAL


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_names_an_address_stands_for_both_families(variant):
    rules = make_plan(VARIANTS[variant]).rules
    four = [r for r in rules if any(m.field in (Field.SOURCE_4, Field.DESTINATION_4) for m in r.when)]
    six = [r for r in rules if any(m.field in (Field.SOURCE_6, Field.DESTINATION_6) for m in r.when)]
    assert len(four) == len(six) > 0
    assert [(r.chain, r.then, len(r.when)) for r in four] == [(r.chain, r.then, len(r.when)) for r in six]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_rule_can_send_the_tunnels_own_packets_back_to_it(variant):
    for rule in make_plan(VARIANTS[variant]).rules:
        if rule.then.verb is Verb.REDIRECT:
            assert Match(Field.MARK, 0x539, equal=False) in rule.when


@pytest.mark.parametrize("variant", VARIANTS)
def test_dns_is_captured_over_both_protocols_before_everything_else_is_or_not_at_all(variant):
    catches = [
        r for r in make_plan(VARIANTS[variant]).rules if r.chain is Chain.NAT_OUT and r.then.verb is Verb.REDIRECT
    ]
    ports = [rule.then.port for rule in catches]
    assert ports == ([15001] * 2 if variant == "no-dns" else [15053] * 4 + [15001] * 2)


LISTING = json.loads((HERE / "default.listing.json").read_text())
DEFAULT = make_plan(Options())


def observed(listing=LISTING, families=frozenset(FAMILIES), marked=frozenset(FAMILIES), local=frozenset(FAMILIES)):
    return Observed(*read_table(json.dumps(listing) if listing else ""), Ways(families, marked, local))


def without(index):
    rules = [i for i, entry in enumerate(LISTING["nftables"]) if "rule" in entry]
    return {"nftables": [entry for i, entry in enumerate(LISTING["nftables"]) if i != rules[index]]}


def test_what_nft_lists_for_the_plan_is_the_plan():
    rules, _ = read_table(json.dumps(LISTING))
    assert Plan(rules) == DEFAULT
    assert differences(DEFAULT, observed()) == []


@pytest.mark.parametrize("index", range(len(DEFAULT.rules)))
def test_a_missing_rule_is_seen(index):
    (said,) = differences(DEFAULT, observed(without(index)))
    assert said == f"chain {DEFAULT.rules[index].chain.label} lacks 1 of its {len_of(index)} rules"


def len_of(index):
    return sum(rule.chain is DEFAULT.rules[index].chain for rule in DEFAULT.rules)


def test_an_empty_namespace_differs_in_everything():
    said = differences(DEFAULT, observed(None, marked=frozenset(), local=frozenset()))
    assert len(said) == 1 + len(Chain) + 2 * len(FAMILIES)


def test_a_namespace_without_ipv6_needs_no_ipv6_route():
    only_four = frozenset({"IPv4"})
    assert differences(DEFAULT, observed(families=only_four, marked=only_four, local=only_four)) == []


def test_a_foreign_rule_and_another_order_are_seen():
    foreign = json.loads(json.dumps(LISTING))
    entry = next(e for e in foreign["nftables"] if "rule" in e and e["rule"]["chain"] == Chain.NAT_OUT.label)
    entry["rule"]["expr"].insert(0, {"limit": {"rate": 1, "per": "second"}})
    assert differences(DEFAULT, observed(foreign)) == ["chain nat-output lacks 1 of its 9 rules"]
    swapped = json.loads(json.dumps(LISTING))
    entries = swapped["nftables"]
    entries[-1], entries[-2] = entries[-2], entries[-1]
    assert differences(DEFAULT, observed(swapped)) == ["chain nat-output has foreign rules or another order"]


def test_a_chain_that_drops_by_default_is_not_ours():
    changed = json.loads(json.dumps(LISTING))
    next(e for e in changed["nftables"] if "chain" in e)["chain"]["policy"] = "drop"
    assert differences(DEFAULT, observed(changed)) == ["the chains of table inet nodemesh are not ours"]


def test_counters_that_somebody_added_do_not_matter():
    counted = json.loads(json.dumps(LISTING))
    for entry in counted["nftables"]:
        if "rule" in entry:
            entry["rule"]["expr"].insert(-1, {"counter": {"packets": 7, "bytes": 420}})
    assert differences(DEFAULT, observed(counted)) == []


def test_a_connection_mark_that_keeps_other_bits_wrong_is_foreign():
    rules, _ = read_table(json.dumps(LISTING).replace("4294963473", "4294967295"))
    assert Rule(Chain.MANGLE_IN, (Match(Field.MARK, 0x539),), Action(Verb.REMEMBER)) not in rules
