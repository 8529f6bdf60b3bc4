"""The plan as text for `iptables-restore --noflush`, one per family, and `iptables-save` back to rules. Pure.

The rules stand in chains of our own, to which the first rule of a built-in chain jumps: whoever appends or inserts
beside us later is seen. A table is replaced as a whole; nat comes last, because only it makes packets turn.
Reading is strict: an option that no plan contains makes its rule a foreign one. Syntax of iptables 1.8.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from nodeagent.redirect.plan import (
    CONNECTION_MARK,
    MARK_MASK,
    QUERY_ZONE,
    Action,
    Chain,
    Field,
    Match,
    Plan,
    Rule,
    Verb,
)
from nodeagent.redirect.verify import Foreign, compare_rules

IN: Final = "NODEMESH_PRERT"
OUT: Final = "NODEMESH_OUTPUT"
_HOOKS: Final = {IN: "PREROUTING", OUT: "OUTPUT"}

PLACES: Final[dict[Chain, tuple[str, str]]] = {
    Chain.RAW_IN: ("raw", IN),
    Chain.RAW_OUT: ("raw", OUT),
    Chain.MANGLE_IN: ("mangle", IN),
    Chain.MANGLE_OUT: ("mangle", OUT),
    Chain.NAT_IN: ("nat", IN),
    Chain.NAT_OUT: ("nat", OUT),
}
"""Table and chain of ours."""
_CHAINS: Final = {place: chain for chain, place in PLACES.items()}
TABLES: Final = ("raw", "mangle", "nat")

_OPTIONS: Final = {
    Field.PROTOCOL: "-p {}",
    Field.IN_INTERFACE: "-i {}",
    Field.OUT_INTERFACE: "-o {}",
    Field.SOURCE_4: "-s {}",
    Field.SOURCE_6: "-s {}",
    Field.DESTINATION_4: "-d {}",
    Field.DESTINATION_6: "-d {}",
    Field.DPORT: "--dport {}",
    Field.UDP_DPORT: "--dport {}",
    Field.UDP_SPORT: "--sport {}",
}
_MARKS: Final = {Field.MARK: "mark", Field.CONNECTION_MARK: "connmark"}
_PORTS: Final = {Field.DPORT: "tcp", Field.UDP_DPORT: "udp", Field.UDP_SPORT: "udp"}
_OTHER_FAMILY: Final = {4: (Field.SOURCE_6, Field.DESTINATION_6), 6: (Field.SOURCE_4, Field.DESTINATION_4)}

_REMEMBER: Final = f"CONNMARK --set-xmark {CONNECTION_MARK:#x}/{MARK_MASK:#x}"
_RESTORE: Final = "CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
_SEPARATE: Final = f"CT --zone {QUERY_ZONE}"


@dataclass(slots=True)
class Seen:
    """What a family's tables hold of ours. `jumps`: (table, hook) -> positions of the jumps to our chain, from 0."""

    rules: dict[tuple[str, str], list[Rule | Foreign]] = field(default_factory=lambda: defaultdict(list))
    chains: set[tuple[str, str]] = field(default_factory=set)
    jumps: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))


NOTHING: Final = Seen()


def render(plan: Plan, version: int, seen: Seen = NOTHING) -> str:
    """Replaces what is `seen`: one jump per chain, at the first place."""
    return "".join(_render_table(table, plan, version, seen) for table in TABLES)


def removal(seen: Seen) -> str:
    """Takes out what is `seen`; "" when that is nothing. nat first: without it no packet turns."""
    lines = []
    for table in reversed(TABLES):
        chains = [chain for chain in (IN, OUT) if (table, chain) in seen.chains]
        jumps = [line for chain in chains for line in _unjump(table, chain, seen)]
        if chains:
            lines += [f"*{table}", *jumps, *(f"-F {c}" for c in chains), *(f"-X {c}" for c in chains), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def _render_table(table: str, plan: Plan, version: int, seen: Seen) -> str:
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in (IN, OUT))]
    for chain in (IN, OUT):
        lines += [*_unjump(table, chain, seen), f"-I {_HOOKS[chain]} 1 -j {chain}"]
        lines += [f"-A {chain} {_render_rule(rule)}" for rule in _wanted(plan, version, _CHAINS[table, chain])]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def _unjump(table: str, chain: str, seen: Seen) -> list[str]:
    return [f"-D {_HOOKS[chain]} -j {chain}"] * len(seen.jumps.get((table, _HOOKS[chain]), ()))


def _wanted(plan: Plan, version: int, chain: Chain) -> list[Rule]:
    """A rule that names an address of the other family stands in the other family's table."""
    foreign = _OTHER_FAMILY[version]
    return [r for r in plan.rules if r.chain is chain and not any(match.field in foreign for match in r.when)]


def _render_rule(rule: Rule) -> str:
    ported = [f"-p {_PORTS[m.field]} -m {_PORTS[m.field]}" for m in rule.when if m.field in _PORTS]
    return " ".join([*ported, *map(_render_match, rule.when), _render_action(rule.then)])


def _render_match(match: Match) -> str:
    negation = "" if match.equal else "! "
    if match.field in _MARKS:
        return f"-m {_MARKS[match.field]} {negation}--mark {match.value:#x}/{MARK_MASK:#x}"
    return negation + _OPTIONS[match.field].format(match.value)


def _render_action(action: Action) -> str:
    texts = {Verb.ACCEPT: "ACCEPT", Verb.REMEMBER: _REMEMBER, Verb.RESTORE: _RESTORE, Verb.SEPARATE: _SEPARATE}
    return "-j " + texts.get(action.verb, f"REDIRECT --to-ports {action.port}")


def differences(plan: Plan, version: int, seen: Seen) -> list[str]:
    """One phrase per difference. The order of rules counts, and that nobody stands before our jump."""
    found = []
    for chain, (table, ours) in PLACES.items():
        name = f"{ours} of IPv{version} table {table}"
        wanted = [_canonical(rule) for rule in _wanted(plan, version, chain)]
        there = [_canonical(rule) for rule in seen.rules.get((table, ours), [])]
        found += compare_rules(name, wanted, there)
        if seen.jumps.get((table, _HOOKS[ours]), []) != [0]:
            found.append(f"{_HOOKS[ours]} of IPv{version} table {table} does not begin with the jump to {ours}")
    return found


def _canonical(rule: Rule | Foreign) -> object:
    """iptables lists matches in an order of its own."""
    return rule if isinstance(rule, Foreign) else (rule.chain, frozenset(rule.when), rule.then)


def read(listing: str, version: int) -> Seen:
    """What `iptables-save` or `ip6tables-save` printed."""
    seen = Seen()
    table, positions = "", defaultdict[str, int](int)
    for line in listing.splitlines():
        if line.startswith("*"):
            table, positions = line[1:], defaultdict(int)
        elif line.startswith(":") and (name := line[1:].split()[0]) in _HOOKS:
            seen.chains.add((table, name))
        elif line.startswith("-A "):
            _, name, *words = shlex.split(line)
            if name in _HOOKS:
                seen.rules[table, name].append(_read_rule(table, name, words, version))
            elif words == ["-j", next((own for own, hook in _HOOKS.items() if hook == name), "")]:
                seen.jumps[table, name].append(positions[name])
            positions[name] += 1
    return seen


def _read_rule(table: str, name: str, words: list[str], version: int) -> Rule | Foreign:
    try:
        chain = _CHAINS[table, name]
        at = words.index("-j")
        matches = list(_read_matches(iter(words[:at]), version))
        return Rule(chain, tuple(_without_implied(matches)), _action(" ".join(words[at + 1 :])))
    except (KeyError, ValueError, StopIteration):
        return Foreign(name, " ".join(words))


def _without_implied(matches: list[Match]) -> list[Match]:
    """A port's protocol is part of the port's field."""
    ported = any(match.field in _PORTS for match in matches)
    return [match for match in matches if not (ported and match.field is Field.PROTOCOL)]


def _read_matches(words: Iterator[str], version: int) -> Iterator[Match]:
    """Raises KeyError, ValueError: no plan has that."""
    protocol, module, equal = "", "", True
    for word in words:
        if word == "!":
            equal = False
            continue
        value = next(words, "")
        if word == "-m":
            module = value
            continue
        if word == "-p":
            protocol = value
        yield Match(_field(word, protocol, module, version), _value(word, value), equal)
        equal = True


def _field(option: str, protocol: str, module: str, version: int) -> Field:
    if option == "--mark":
        return {name: field for field, name in _MARKS.items()}[module]
    if option in ("--dport", "--sport"):
        return _PORT_FIELDS[option, protocol]
    return (_ADDRESSES[version] | _PLAIN)[option]


def _value(option: str, text: str) -> str | int:
    if option == "--mark":
        mark, _, mask = text.partition("/")
        if int(mask, 16) != MARK_MASK:
            raise ValueError(text)
        return int(mark, 16)
    if option in ("--dport", "--sport"):
        return int(text)
    return text.removesuffix("/32" if "." in text else "/128")


_PLAIN: Final = {"-p": Field.PROTOCOL, "-i": Field.IN_INTERFACE, "-o": Field.OUT_INTERFACE}
_ADDRESSES: Final = {
    4: {"-s": Field.SOURCE_4, "-d": Field.DESTINATION_4},
    6: {"-s": Field.SOURCE_6, "-d": Field.DESTINATION_6},
}
_PORT_FIELDS: Final = {
    ("--dport", "tcp"): Field.DPORT,
    ("--dport", "udp"): Field.UDP_DPORT,
    ("--sport", "udp"): Field.UDP_SPORT,
}


_ACTIONS: Final = {
    "ACCEPT": Action(Verb.ACCEPT),
    _REMEMBER: Action(Verb.REMEMBER),
    _RESTORE: Action(Verb.RESTORE),
    _SEPARATE: Action(Verb.SEPARATE),
}


def _action(text: str) -> Action:
    """What stands behind `-j`. Raises KeyError: no plan does that."""
    if (port := text.removeprefix("REDIRECT --to-ports ")) != text and port.isdecimal():
        return Action(Verb.REDIRECT, int(port))
    return _ACTIONS[text]
