"""Capture of this host's workloads, as one nft table of the host's namespace. Pure text.

Several identities share one namespace, so nothing goes by the namespace: what leaves is told by the control group of
its socket, what arrives by its address. Each workload's tunnel listens on the workload's own addresses. The way back of
what the tunnel opens towards an application is as in a pod (`plan.py`): a mark, remembered by the connection.

An application may listen at more than its own addresses. What would reach it at another one has passed no tunnel and
is refused: told by the control group of the listener that the kernel finds for it, so nothing else is concerned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from nodeagent.redirect.guard import Group
from nodeagent.redirect.plan import (
    CONNECTION_MARK,
    DNS_CAPTURE_PORT,
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PLAIN_PORT,
    MARK_MASK,
    OUTBOUND_PORT,
    TUNNEL_MARK,
)

TABLE: Final = "nodemesh-host"
REMOVAL: Final = f"table inet {TABLE}\ndelete table inet {TABLE}\n"

UNTURNED_MARK: Final = 0x222
"""On what a workload sends, until something turns it round: with it nothing leaves the host."""
_KEEP: Final = f"& {0xFFFFFFFF & ~MARK_MASK:#x}"
_UNTURNED: Final = f"meta mark & {MARK_MASK:#x} == {UNTURNED_MARK:#x}"
_NAMES: Final = {4: ("ip", "ipv4", "127.0.0.0/8"), 6: ("ip6", "ipv6", "::1")}


IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Captured:
    """`addresses`: the workload's own, one of each family at most."""

    group: Group
    addresses: tuple[IPAddress, ...]

    def address(self, version: int) -> IPAddress | None:
        return next((each for each in self.addresses if each.version == version), None)

    @property
    def socket(self) -> str:
        return f'socket cgroupv2 level {self.group.level} "{self.group.path}"'


def render(captured: Sequence[Captured], tunnels: Sequence[Group]) -> str:
    """For one `nft -f -`. Replaces what was there; the innermost of nested groups counts."""
    inward = sorted(captured, key=lambda each: -each.group.level)
    chains = [
        _chain("judge", "filter", "output", -310, _judge(inward)),
        _chain("mangle-prerouting", "filter", "prerouting", -150, [_remember()]),
        _chain("mangle-output", "route", "output", -150, [_restore()]),
        _chain("nat-output", "nat", "output", -100, [*_tunnels(tunnels), *_outbound(inward), *_arriving(inward)]),
        _chain("nat-prerouting", "nat", "prerouting", -100, [f'iifname != "lo" {rule}' for rule in _arriving(inward)]),
        _chain("meet", "filter", "input", 0, _meet(inward)),
        _chain("leave", "filter", "postrouting", 300, [f'oifname != "lo" {_UNTURNED} counter drop']),
    ]
    return f"{REMOVAL}table inet {TABLE} {{\n{''.join(chains)}}}\n"


def _judge(captured: Sequence[Captured]) -> Iterator[str]:
    for each in captured:
        away = f'oifname != "lo" meta l4proto tcp {each.socket}'
        for version, (_, family, _) in _NAMES.items():
            if each.address(version) is None:  # refused: it could not be told from whom it is
                yield f"{away} meta nfproto {family} reject with tcp reset"
        yield f"{away} meta mark set meta mark {_KEEP} | {UNTURNED_MARK:#x} accept"


def _meet(captured: Sequence[Captured]) -> Iterator[str]:
    """What comes to its listeners at its own addresses and from this host is the tunnel's, or its own: whoever else
    asked for them has been sent to the tunnel by now. Loopback is everybody's on the host."""
    yield from ("meta l4proto != tcp accept", "tcp flags & (fin | syn | rst | ack) != syn accept")
    yield from (f'iifname "lo" {ip} daddr {loopback} accept' for ip, _, loopback in _NAMES.values())
    for each in captured:
        for own in each.addresses:
            yield f'iifname "lo" {_NAMES[own.version][0]} daddr {own} {each.socket} accept'
        yield f"{each.socket} counter reject with tcp reset"


def _remember() -> str:
    ours = f'iifname "lo" meta mark & {MARK_MASK:#x} == {TUNNEL_MARK:#x}'
    return f"{ours} ct mark set ct mark {_KEEP} | {CONNECTION_MARK:#x}"


def _restore() -> str:
    return f"ct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} meta mark set ct mark"


def _tunnels(tunnels: Sequence[Group]) -> Iterator[str]:
    """Its dials to applications. Where no group tells it from others, it is known by its mark, as in Istio's pods."""
    if not tunnels:
        yield f"meta mark & {MARK_MASK:#x} == {TUNNEL_MARK:#x} accept"
    for group in tunnels:
        yield f'socket cgroupv2 level {group.level} "{group.path}" accept'


def _outbound(captured: Sequence[Captured]) -> Iterator[str]:
    for each in captured:
        for version, (ip, family, loopback) in _NAMES.items():
            own = each.address(version)
            if own is None:
                continue
            yield f"{each.socket} {ip} daddr {{ {loopback}, {own} }} accept"
            of_family = f"{each.socket} meta nfproto {family}"
            for protocol in ("udp", "tcp"):
                yield f"{of_family} {protocol} dport {DNS_PORT} dnat {ip} to {_at(own, DNS_CAPTURE_PORT)}"
            yield f"{of_family} meta l4proto tcp dnat {ip} to {_at(own, OUTBOUND_PORT)}"


def _arriving(captured: Sequence[Captured]) -> Iterator[str]:
    """From the wire, and from whoever else is on this host."""
    for each in captured:
        for own in each.addresses:
            ip = _NAMES[own.version][0]
            yield f"{ip} daddr {own} tcp dport != {HBONE_PORT} dnat {ip} to {_at(own, INBOUND_PLAIN_PORT)}"


def _at(address: object, port: int) -> str:
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def _chain(name: str, kind: str, hook: str, priority: int, rules: Sequence[str] | Iterator[str]) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n{lines}\t}}\n"
