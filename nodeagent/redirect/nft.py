"""The plan as text for one `nft -f -`: the kernel takes all of it or nothing. Syntax of nft 1.0.6 (Debian 12)."""

from __future__ import annotations

from itertools import chain as concatenated
from typing import Final

from nodeagent.redirect.plan import (
    CONNECTION_MARK,
    MARK_MASK,
    QUERY_ZONE,
    TABLE,
    Action,
    Chain,
    Field,
    Match,
    Plan,
    Rule,
    Verb,
)

# `table` creates it if it is missing, so that `delete table` cannot fail: together, whatever was there is gone.
REMOVAL: Final = f"table inet {TABLE}\ndelete table inet {TABLE}\n"

_KEEP_OTHER_BITS: Final = 0xFFFFFFFF & ~MARK_MASK


def render(plan: Plan) -> str:
    """Replaces whatever the table held. Open connections are untouched: NAT is decided by their first packet."""
    return REMOVAL + _table(plan)


def render_first(plan: Plan) -> str:
    """The same for a namespace that holds none of it; refused by one that does."""
    # By itself: nft 1.0.6 creates a table with a body as an empty one.
    return f"create table inet {TABLE}\n{_table(plan)}"


def _table(plan: Plan) -> str:
    chains = (_render_chain(chain, plan) for chain in Chain)
    return "\n".join([f"table inet {TABLE} {{", *concatenated.from_iterable(chains), "}", ""])


def _render_chain(chain: Chain, plan: Plan) -> list[str]:
    head = f"type {chain.kind} hook {chain.hook} priority {chain.priority}; policy accept;"
    rules = [_render_rule(rule) for rule in plan.rules if rule.chain is chain]
    return [f"\tchain {chain.label} {{", f"\t\t{head}", *(f"\t\t{rule}" for rule in rules), "\t}"]


def _render_rule(rule: Rule) -> str:
    return " ".join([*map(_render_match, rule.when), _render_action(rule.then)])


def _render_match(match: Match) -> str:
    if match.field in (Field.MARK, Field.CONNECTION_MARK):
        return f"{match.field.value} & {MARK_MASK:#x} {'==' if match.equal else '!='} {match.value:#x}"
    return f"{match.field.value} {'' if match.equal else '!= '}{match.value}"


def _render_action(action: Action) -> str:
    match action.verb:
        case Verb.REDIRECT:
            return f"redirect to :{action.port}"
        case Verb.REMEMBER:
            return f"ct mark set ct mark & {_KEEP_OTHER_BITS:#x} | {CONNECTION_MARK:#x}"
        case Verb.RESTORE:
            return "meta mark set ct mark"
        case Verb.SEPARATE:
            return f"ct zone set {QUERY_ZONE}"
        case Verb.ACCEPT:
            return "accept"
