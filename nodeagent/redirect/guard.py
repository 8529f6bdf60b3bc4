"""What stands behind capture, whichever backend does it: no TCP leaves a pod but the tunnel's. Pure text.

Capture turns a pod's connections round by what their packets look like, and a container's root may make packets look
like the tunnel's: since Linux 5.17 a mark needs only CAP_NET_RAW, as raw and packet sockets do. Whose socket a packet
comes from nobody can forge: `socket cgroupv2` is the control group of the process that made it. So a chain gives the
tunnel's mark to what the tunnel's group sends and takes it from everybody else, and a last one, where the device is
final, lets nothing else out. Before both, fragments of a pod's own making are dropped: they hide what they are. What a
packet socket sends passes none of these, but the device's egress hook (Linux 5.16), where it is known by having no
route.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.redirect.plan import (
    CONNECTION_MARK,
    DIRECT_MARK,
    HBONE_PORT,
    MARK_MASK,
    PROBE_SOURCES,
    TUNNEL_MARK,
    Options,
)

TABLE: Final = "nodemesh-guard"
_KEEP: Final = f"meta mark & {0xFFFFFFFF & ~MARK_MASK:#x}"
_HERE: Final = 'oif "lo" accept'
"""First of all: each packet to and from the tunnel within the pod comes by. lo is device 1 of every namespace."""
_OUT: Final = 'oifname != "lo"'
_AWAY: Final = f"{_OUT} meta l4proto tcp"
_OURS: Final = f"meta mark & {MARK_MASK:#x} == {TUNNEL_MARK:#x}"
_ANSWERS: Final = "tcp flags & (syn | ack) != syn"
"""Nobody is called, without asking conntrack: one rule that asks it has every packet of the namespace tracked."""
_HAS_ROUTE: Final = "meta rtclassid 0-4294967295"
"""True of every packet that was routed, whatever its class; a packet socket's frame was not, and breaks off here."""

REMOVAL: Final = "".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in ("inet", "netdev"))
REMOVAL_WITHOUT_FRAMES: Final = f"table inet {TABLE}\ndelete table inet {TABLE}\n"


@dataclass(frozen=True, slots=True)
class Group:
    """A control group as nft names it: `path` from /sys/fs/cgroup, `level` from the root of the unified hierarchy.
    `number` is its inode: a group that is made again under the same name is another one."""

    path: str
    level: int
    number: int


_NO_EXCEPTIONS: Final = Options()


@dataclass(frozen=True, slots=True)
class Guard:
    """`root`: the unified hierarchy's. `tunnels`: whose TCP may leave. `devices`: the pod's but lo, whose
    egress is watched; none where the kernel cannot. `replies`: the pod itself answers plaintext (ingress mode).
    `options`: what else passes by the tunnel."""

    root: Group
    tunnels: tuple[Group, ...]
    devices: tuple[str, ...] = ()
    replies: bool = False
    options: Options = _NO_EXCEPTIONS

    @property
    def fingerprint(self) -> str:
        """Also of the rules themselves: an agent that writes others takes those of an older one for a difference."""
        return hashlib.sha256(f"{self!r}{_rules_of(self)!r}".encode()).hexdigest()[:16]


def render(guard: Guard) -> str:
    """For one `nft -f -`. Replaces what was there. Kernel 5.13 without devices, 5.16 with."""
    return f"{REMOVAL if guard.devices else REMOVAL_WITHOUT_FRAMES}{_tables(guard)}"


def render_first(guard: Guard) -> str:
    """The same for a namespace that holds none of it; refused by one that does."""
    families = ("inet", "netdev") if guard.devices else ("inet",)
    # By itself: nft 1.0.6 creates a table with a body as an empty one.
    return "".join(f"create table {family} {TABLE}\n" for family in families) + _tables(guard)


def _tables(guard: Guard) -> str:
    inet = "".join(_chain(*chain) for chain in _signed(guard, _chains(guard)))
    frames = "".join(_chain(*chain) for chain in _signed(guard, _frames(guard)))
    text = f"table inet {TABLE} {{\n{inet}}}\n"
    return f"{text}table netdev {TABLE} {{\n{frames}}}\n" if guard.devices else text


def differences(guard: Guard, listing: Sequence[dict[str, Any]]) -> list[str]:
    """`nft -j list` of both tables, against what `render` wrote: it signed every chain's first rule."""
    found: dict[str, list[str]] = {}
    for rule in (entry["rule"] for entry in listing if "rule" in entry and entry["rule"].get("table") == TABLE):
        found.setdefault(rule["chain"], []).append(rule.get("comment", ""))
    wanted = {name: len(rules) for name, _, rules in _rules_of(guard)}
    if {name: len(rules) for name, rules in found.items()} != wanted:
        return [f"the rules of table {TABLE} are not ours"]
    if any(rules[0] != guard.fingerprint for rules in found.values()):
        return [f"table {TABLE} is of another tunnel, device or version"]
    return []


_Chain = tuple[str, str, list[str]]
"""Name, hook, rules."""


def _rules_of(guard: Guard) -> list[_Chain]:
    return [*_chains(guard), *_frames(guard)]


def _signed(guard: Guard, chains: Iterable[_Chain]) -> Iterator[_Chain]:
    sign = f'comment "{guard.fingerprint}"'
    return ((name, hook, [f"{rules[0]} {sign}", *rules[1:]]) for name, hook, rules in chains)


def _chains(guard: Guard) -> list[_Chain]:
    is_pod = (
        f'socket cgroupv2 level 1 != "{guard.root.path}"'  # every socket but the kernel's own, which are of the root
    )
    forged = f"meta mark & {MARK_MASK:#x} {{ {CONNECTION_MARK:#x}, {TUNNEL_MARK:#x} }}"
    bless = f"meta mark set {_KEEP} | {TUNNEL_MARK:#x}"
    is_direct = f"meta mark & {MARK_MASK:#x} == {DIRECT_MARK:#x}"
    judge = [
        _HERE,
        *(f'{_AWAY} socket cgroupv2 level {g.level} "{g.path}" {bless} accept' for g in guard.tunnels),
        # The socket's mark, not the packet's: what is sent on a raw socket may have any.
        *(
            [f"{_AWAY} {is_pod} socket {is_direct.removeprefix('meta ')} {bless} accept"]
            if guard.options.direct
            else ()
        ),
        f"{_AWAY} {is_pod} {forged} meta mark set {_KEEP}",
        f"{_AWAY} {is_pod} accept",
        f"{_AWAY} {bless}",  # resets, SYN+ACKs, TIME_WAIT: they carry nothing
    ]
    leave = [_HERE, f"{_AWAY} {_OURS} accept", *_replies(guard), f"{_AWAY} counter drop"]
    # A socket that is accepted inherits its SYN's mark, and a raw packet over lo has any.
    arrive = [f"{is_direct} meta mark set {_KEEP}"] if guard.options.direct else []
    # Whoever takes his packets apart himself hides what they are: the kernel's own are whole here. Before anybody puts
    # them together (-400), which takes their socket from them (until Linux 6.9).
    whole = [_HERE, f"{_OUT} ip frag-off & 0x3fff != 0 counter drop", f"{_OUT} exthdr frag exists counter drop"]
    return [
        ("whole", "type filter hook output priority -450", whole),
        *([("arrive", "type filter hook prerouting priority -310", arrive)] if arrive else []),
        ("judge", "type filter hook output priority -310", judge),
        ("leave", "type filter hook postrouting priority 300", leave),
    ]


def _replies(guard: Guard) -> Iterator[str]:
    if guard.replies:
        yield f"{_AWAY} tcp sport != {HBONE_PORT} ct direction reply ct state established accept"
    for port in guard.options.excluded_inbound_ports:
        yield f"{_AWAY} tcp sport {port} ct direction reply ct state established accept"
    for port in guard.options.excluded_outbound_ports:
        yield f"{_AWAY} tcp dport {port} accept"
    for text in guard.options.excluded_outbound_ranges:
        yield f"{_AWAY} {'ip6' if ':' in text else 'ip'} daddr {text} accept"
    if guard.options.exempt_probes:
        for source in PROBE_SOURCES:
            # Plain headers: one with a route of its own may end anywhere.
            to = f"ip6 daddr {source} exthdr rt missing" if ":" in source else f"ip daddr {source} ip hdrlength 5"
            yield f"{_AWAY} {to} {_ANSWERS} accept"


def _frames(guard: Guard) -> Iterator[_Chain]:
    """Only what no TCP can be in: else a frame in a tag or a tunnel of its own would carry it."""
    for number, device in enumerate(guard.devices):
        rules = [
            f"{_HAS_ROUTE} accept",
            "meta protocol arp accept",
            "meta l4proto { icmp, udp, ipv6-icmp } accept",
            "counter drop",
        ]
        yield f"egress{number}", f'type filter hook egress device "{device}" priority 0', rules


def _chain(name: str, hook: str, rules: Sequence[str]) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n\t\t{hook}; policy accept;\n{lines}\t}}\n"
