"""Kernel → plan: reads back what `nft.py` wrote and names every difference. Owns no system call.

Reading is strict: a statement that no plan contains makes its rule a foreign one, never one that looks like ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.redirect.plan import (
    CONNECTION_MARK,
    MARK_MASK,
    QUERY_ZONE,
    ROUTE_TABLE,
    RULE_PREFERENCE,
    TABLE,
    Action,
    Chain,
    Field,
    Match,
    Plan,
    Rule,
    Verb,
)

FAMILIES: Final = ("IPv4", "IPv6")

_FIELDS: Final[dict[str, Field]] = {
    '{"meta": {"key": "l4proto"}}': Field.PROTOCOL,
    '{"meta": {"key": "iifname"}}': Field.IN_INTERFACE,
    '{"meta": {"key": "oifname"}}': Field.OUT_INTERFACE,
    '{"payload": {"field": "saddr", "protocol": "ip"}}': Field.SOURCE_4,
    '{"payload": {"field": "saddr", "protocol": "ip6"}}': Field.SOURCE_6,
    '{"payload": {"field": "daddr", "protocol": "ip"}}': Field.DESTINATION_4,
    '{"payload": {"field": "daddr", "protocol": "ip6"}}': Field.DESTINATION_6,
    '{"payload": {"field": "dport", "protocol": "tcp"}}': Field.DPORT,
    '{"payload": {"field": "dport", "protocol": "udp"}}': Field.UDP_DPORT,
    '{"payload": {"field": "sport", "protocol": "udp"}}': Field.UDP_SPORT,
    f'{{"&": [{{"meta": {{"key": "mark"}}}}, {MARK_MASK}]}}': Field.MARK,
    f'{{"&": [{{"ct": {{"key": "mark"}}}}, {MARK_MASK}]}}': Field.CONNECTION_MARK,
}
_CT_MARK: Final = {"ct": {"key": "mark"}}
_META_MARK: Final = {"meta": {"key": "mark"}}
_CT_ZONE: Final = {"ct": {"key": "zone"}}


@dataclass(frozen=True, slots=True)
class Foreign:
    """A rule that is none of ours, as nft's JSON."""

    chain: str
    text: str


@dataclass(frozen=True, slots=True)
class Ways:
    """The routing of marked packets. `families`: those that the namespace has; `fwmark_rules` and `local_routes`: those
    for which ours is in place."""

    families: frozenset[str]
    fwmark_rules: frozenset[str]
    local_routes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a namespace holds. `chains`: name, type, hook, priority, policy."""

    rules: tuple[Rule | Foreign, ...]
    chains: frozenset[tuple[Any, ...]]
    ways: Ways


def read_table(listing: str) -> tuple[tuple[Rule | Foreign, ...], frozenset[tuple[Any, ...]]]:
    """`nft -j list table inet nodemesh` as rules in order and chains; "" (no such table) is empty."""
    objects = json.loads(listing)["nftables"] if listing else []
    rules = tuple(_read_rule(entry["rule"]) for entry in objects if "rule" in entry)
    chains = frozenset(_read_chain(entry["chain"]) for entry in objects if "chain" in entry)
    return rules, chains


def differences(plan: Plan, seen: Observed) -> list[str]:
    """One phrase per difference; none means that the namespace does what the plan says. Order of rules counts."""
    found = []
    if seen.chains != frozenset((c.label, c.kind, c.hook, c.priority, "accept") for c in Chain):
        found.append(f"the chains of table inet {TABLE} are not ours")
    for chain in Chain:
        found.extend(_compare_chain(chain, plan, seen))
    return found + missing_ways(seen.ways)


def missing_ways(ways: Ways) -> list[str]:
    """Without them the application's answers leave by the wire."""
    found = []
    for family in FAMILIES:
        if family in ways.families - ways.fwmark_rules:
            found.append(f"the {family} rule {RULE_PREFERENCE} for mark {CONNECTION_MARK:#x} is missing")
        if family in ways.families - ways.local_routes:
            found.append(f"the {family} route of table {ROUTE_TABLE} is missing")
    return found


def _compare_chain(chain: Chain, plan: Plan, seen: Observed) -> list[str]:
    wanted = [rule for rule in plan.rules if rule.chain is chain]
    there = [rule for rule in seen.rules if rule.chain in (chain, chain.label)]
    return compare_rules(chain.label, wanted, there)


def compare_rules(name: str, wanted: Sequence[object], there: Sequence[object]) -> list[str]:
    """Order counts."""
    if wanted == there:
        return []
    if missing := sum(rule not in there for rule in wanted):
        return [f"chain {name} lacks {missing} of its {len(wanted)} rules"]
    return [f"chain {name} has foreign rules or another order"]


def _read_chain(chain: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(chain.get(key) for key in ("name", "type", "hook", "prio", "policy"))


def _read_rule(rule: dict[str, Any]) -> Rule | Foreign:
    chain = next((c for c in Chain if c.label == rule["chain"]), None)
    *conditions, verdict = [statement for statement in rule["expr"] if "counter" not in statement] or [{}]
    when = tuple(map(_read_match, conditions))
    then = _read_action(verdict)
    if chain is None or then is None or None in when:
        return Foreign(rule["chain"], json.dumps(rule["expr"]))
    return Rule(chain, tuple(m for m in when if m is not None), then)


def _read_match(statement: dict[str, Any]) -> Match | None:
    match = statement.get("match", {})
    field = _FIELDS.get(json.dumps(match.get("left"), sort_keys=True))
    if field is None or match.get("op") not in ("==", "!="):
        return None
    return Match(field, _read_value(match["right"]), equal=match["op"] == "==")


def _read_value(value: Any) -> str | int:
    if isinstance(value, dict) and "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    return value if isinstance(value, int) else str(value)


def _read_action(statement: dict[str, Any]) -> Action | None:
    match statement:
        case {"accept": _}:
            return Action(Verb.ACCEPT)
        case {"redirect": {"port": int(port)}}:
            return Action(Verb.REDIRECT, port)
        case {"mangle": {"key": key, "value": value}} if key == _META_MARK and value == _CT_MARK:
            return Action(Verb.RESTORE)
        case {"mangle": {"key": key, "value": zone}} if key == _CT_ZONE and zone == QUERY_ZONE:
            return Action(Verb.SEPARATE)
        case {"mangle": {"key": key, "value": {"|": [{"&": [field, int(mask)]}, bits]}}} if (
            key == field == _CT_MARK and bits == CONNECTION_MARK and mask & ~bits == 0xFFFFFFFF & ~MARK_MASK
        ):
            return Action(Verb.REMEMBER)  # nft 1.0.6 lists `& 0xfffff000 | 0x111` as `& 0xfffff111 | 0x111`
    return None
