"""What stands in legacy tables beside a pod's capture and takes TCP from it. Pure.

nftables, BPF and legacy tables do not know of each other: at the same hook each has its turn, and the one that
translates a connection first wins. Says what a rule would do to TCP that matches it, not whether any does.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from nodeagent.redirect.iptables import IN, OUT
from nodeagent.redirect.plan import MARK_MASK

_HOOKS: Final = ("PREROUTING", "OUTPUT")
_ELSEWHERE: Final = {"nat": ("REDIRECT", "DNAT", "NETMAP"), "mangle": ("TPROXY",)}
_LOOPBACK: Final = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_MASKS: Final = ("--set-xmark", "--nfmask", "--ctmask")

Chains = Mapping[str, Sequence[Sequence[str]]]


def find(listing: str, version: int, backend: str) -> list[str]:
    """`listing`: of `iptables-legacy-save`. `backend`: what captures the pod. One phrase for each rule."""
    found = []
    for table, chains in _tables(listing).items():
        for chain in _reached(chains, (IN, OUT) if backend == "iptables" else ()):
            for words in chains[chain]:
                if (effect := _effect(table, words, backend)) and _may_be_tcp(words, version):
                    found.append(f"IPv{version} legacy table {table} {effect}: {_shown(chain, words)}")
    return found


def _shown(chain: str, words: Sequence[str]) -> str:
    """As iptables-save has it. What a rule says of itself is anybody's."""
    return " ".join(["-A", chain, *(w if w.isprintable() and w and " " not in w else repr(w) for w in words)])


def _tables(listing: str) -> dict[str, dict[str, list[list[str]]]]:
    """table -> chain -> its rules, in words."""
    tables: dict[str, dict[str, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    table = ""
    for line in listing.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            _, chain, *words = shlex.split(line)
            tables[table][chain].append(words)
    return tables


def _reached(chains: Chains, ours: tuple[str, ...]) -> Iterator[str]:
    """What the pod's packets come through; without ours, whose rules are compared with the plan."""
    seen, open_ = set(ours), list(_HOOKS)
    while open_:
        chain = open_.pop(0)
        if chain in seen or chain not in chains:
            continue
        seen.add(chain)
        yield chain
        open_ += [_target(words) for words in chains[chain]]


def _target(words: Sequence[str]) -> str:
    return next((_after(words, option) for option in ("-j", "-g") if option in words), "")


def _after(words: Sequence[str], option: str) -> str:
    at = words.index(option) + 1
    return words[at] if at < len(words) else ""


def _effect(table: str, words: Sequence[str], backend: str) -> str:
    """BPF goes by sockets: neither marks nor connection tracking matter to it."""
    target = _target(words)
    if target in _ELSEWHERE.get(table, ()):
        return "sends TCP elsewhere"
    if backend == "bpf":
        return ""
    if target == "NOTRACK" or (target == "CT" and "--notrack" in words):
        return "takes TCP out of connection tracking, without which nothing is captured"
    if target in ("MARK", "CONNMARK") and any(_touches(_after(words, m)) for m in _MASKS if m in words):
        return f"changes marks under {MARK_MASK:#x}, by which capture tells the tunnel"
    return ""


def _touches(text: str) -> bool:
    """VALUE/MASK or MASK, as iptables lists them."""
    mask = text.rpartition("/")[2]
    try:
        return bool(int(mask, 16) & MARK_MASK)
    except ValueError:
        return True


def _may_be_tcp(words: Sequence[str], version: int) -> bool:
    """A server on another address of the loopback network, as Docker's for names, is the pod's own affair."""
    if "-p" in words:
        is_tcp = _after(words, "-p") in ("tcp", "6")
        return is_tcp != _negated(words, "-p") and not _is_other_loopback(words, version)
    return not _is_other_loopback(words, version)


def _is_other_loopback(words: Sequence[str], version: int) -> bool:
    if "-d" not in words or _negated(words, "-d"):
        return False
    try:
        network = ip_network(_after(words, "-d"), strict=False)
    except ValueError:
        return False
    return network.is_loopback and _LOOPBACK[version] not in network


def _negated(words: Sequence[str], option: str) -> bool:
    at = words.index(option)
    return at > 0 and words[at - 1] == "!"
