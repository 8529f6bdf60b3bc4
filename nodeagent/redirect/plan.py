"""Which of a pod's TCP and DNS goes to the tunnel, as one value: `nft.py` writes it, `verify.py` reads it back. Door 5.

Istio ambient's in-pod rules, rule for rule (istio/istio cni/pkg/iptables, cni/pkg/nftables), so that either agent can
take the other's pods over. Four deliberate differences: all of 127.0.0.0/8 counts as loopback; every rule that names
an address stands twice, for IPv4 and IPv6, in one table, so that no family is ever captured without the other; a pod
that asks its own address for a name reaches itself, as with every other port; and what a pod opens towards the address
that probes come from is captured: answers to probes need no rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network
from typing import Final

OUTBOUND_PORT: Final = 15001
INBOUND_PLAIN_PORT: Final = 15006
HBONE_PORT: Final = 15008
DNS_CAPTURE_PORT: Final = 15053
DNS_PORT: Final = 53

MARK_MASK: Final = 0xFFF
TUNNEL_MARK: Final = 0x539
"""On every packet of the tunnel's own sockets; without this exemption the tunnel would capture itself."""
CONNECTION_MARK: Final = 0x111
"""Remembers connections that the tunnel opened towards the application with the client's source address."""

QUERY_ZONE: Final = 1
"""Conntrack zone of the tunnel's own questions to name servers (Istio's number)."""

DIRECT_MARK: Final = 0x222
"""On sockets that are direct to another pod of the node. Nobody in a pod can set it (bpf/direct.h)."""

ROUTE_TABLE: Final = 100
RULE_PREFERENCE: Final = 32764

TABLE: Final = "nodemesh"

PROBE_SOURCES: Final = ("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
"""Where the kubelet's probes come from, IPv4 and IPv6; Istio's values. In force only where they are the host's own."""


class Chain(Enum):
    """A base chain: name, type, hook, priority. Output marks need type `route`: the packet is routed again."""

    RAW_IN = ("raw-prerouting", "filter", "prerouting", -300)
    RAW_OUT = ("raw-output", "filter", "output", -300)
    MANGLE_IN = ("mangle-prerouting", "filter", "prerouting", -150)
    MANGLE_OUT = ("mangle-output", "route", "output", -150)
    NAT_IN = ("nat-prerouting", "nat", "prerouting", -100)
    NAT_OUT = ("nat-output", "nat", "output", -100)

    def __init__(self, label: str, kind: str, hook: str, priority: int) -> None:
        self.label, self.kind, self.hook, self.priority = label, kind, hook, priority


class Field(Enum):
    """What a rule looks at. Marks are compared under MARK_MASK; a DPORT implies TCP, UDP_ ports imply UDP."""

    PROTOCOL = "meta l4proto"
    IN_INTERFACE = "iifname"
    OUT_INTERFACE = "oifname"
    SOURCE_4 = "ip saddr"
    SOURCE_6 = "ip6 saddr"
    DESTINATION_4 = "ip daddr"
    DESTINATION_6 = "ip6 daddr"
    DPORT = "tcp dport"
    UDP_DPORT = "udp dport"
    UDP_SPORT = "udp sport"
    MARK = "meta mark"
    CONNECTION_MARK = "ct mark"


@dataclass(frozen=True, slots=True)
class Match:
    field: Field
    value: str | int
    equal: bool = True


class Verb(Enum):
    ACCEPT = "accept"
    REDIRECT = "redirect"
    REMEMBER = "connection mark := CONNECTION_MARK"
    RESTORE = "packet mark := connection mark"
    SEPARATE = "conntrack zone := QUERY_ZONE"


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    port: int = 0
    """Only of REDIRECT."""


@dataclass(frozen=True, slots=True)
class Rule:
    chain: Chain
    when: tuple[Match, ...]
    then: Action


@dataclass(frozen=True, slots=True)
class Options:
    """A pod's variant. `ingress_mode`: plaintext that comes in is not captured, HBONE is (a gateway's pod).
    `exempt_probes`: connections from PROBE_SOURCES pass by; only where nobody but the kubelet can have them.
    `dns_capture`: the tunnel answers what the pod asks on port 53. `excluded_`: TCP that passes by the tunnel, ranges
    as CIDR. `virtual_interfaces`: what comes in there (from a virtual machine, a nested container) is outbound."""

    ingress_mode: bool = False
    exempt_probes: bool = False
    dns_capture: bool = True
    excluded_inbound_ports: tuple[int, ...] = ()
    excluded_outbound_ports: tuple[int, ...] = ()
    excluded_outbound_ranges: tuple[str, ...] = ()
    virtual_interfaces: tuple[str, ...] = ()
    keep_connections: bool = False
    """It ran before: what is open is left alone, which for conntrack has to be said."""
    direct: bool = False
    """It may talk to other pods of its node without the tunnel between, where the tunnel grants it (BPF only)."""
    captures: bool = True
    """False: it is leaving; nothing new is captured, what is open goes on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`rules` in order, per chain the first that decides wins. With them belongs, for each family that the namespace
    has: packets marked CONNECTION_MARK are looked up in ROUTE_TABLE, where every destination is local."""

    rules: tuple[Rule, ...]


_ACCEPT: Final = Action(Verb.ACCEPT)
_TCP: Final = Match(Field.PROTOCOL, "tcp")
_NOT_TUNNEL: Final = Match(Field.MARK, TUNNEL_MARK, equal=False)
_NOT_LOOPBACK: Final = (
    Match(Field.DESTINATION_4, "127.0.0.0/8", equal=False),
    Match(Field.DESTINATION_6, "::1", equal=False),
)


def make_plan(options: Options) -> Plan:
    if not options.captures:
        return Plan((*(_separate_queries() if options.dns_capture else ()), *_keep_replies()))
    captured = () if options.ingress_mode else (*_probes(options), *_capture_inbound(options))
    inbound = (*_capture_virtual(options), *captured)
    dns = _capture_dns() if options.dns_capture else ()
    left = (*_leave_outbound(), *_exclude_outbound(options))
    queries = _separate_queries() if options.dns_capture else ()
    return Plan((*queries, *_keep_replies(), *inbound, *left, *dns, *_capture_outbound()))


def _separate_queries() -> tuple[Rule, ...]:
    """The tunnel asks the very server that the pod asked. When its port is one that the pod used a moment ago, the
    kernel would take its packet for one more of the pod's redirected ones and send it back to the tunnel."""
    ours = (Match(Field.UDP_DPORT, DNS_PORT), Match(Field.MARK, TUNNEL_MARK))
    answers = (Match(Field.UDP_SPORT, DNS_PORT), _NOT_TUNNEL)
    return (
        Rule(Chain.RAW_IN, answers, Action(Verb.SEPARATE)),
        Rule(Chain.RAW_OUT, ours, Action(Verb.SEPARATE)),
    )


def _capture_dns() -> tuple[Rule, ...]:
    """Before everything else goes to 15001. A server on a loopback address is the pod's own affair."""
    catch = Action(Verb.REDIRECT, DNS_CAPTURE_PORT)
    ports = (Match(Field.UDP_DPORT, DNS_PORT), Match(Field.DPORT, DNS_PORT))
    return tuple(Rule(Chain.NAT_OUT, (here, port, _NOT_TUNNEL), catch) for port in ports for here in _NOT_LOOPBACK)


def _keep_replies() -> tuple[Rule, ...]:
    """The application answers to the client's address; its packets must reach the tunnel over lo, not the wire.

    The tunnel's connection arrives over lo with its mark: the connection remembers. The reply gets the mark back and
    the policy route delivers it locally. Also in ingress mode: HBONE needs it (istio/istio#58577).
    """
    arrives = (Match(Field.MARK, TUNNEL_MARK),)
    belongs = (Match(Field.CONNECTION_MARK, CONNECTION_MARK),)
    return (
        Rule(Chain.MANGLE_IN, arrives, Action(Verb.REMEMBER)),
        Rule(Chain.MANGLE_OUT, belongs, Action(Verb.RESTORE)),
    )


def _probes(options: Options) -> tuple[Rule, ...]:
    if not options.exempt_probes:
        return ()
    fields = zip((Field.SOURCE_4, Field.SOURCE_6), PROBE_SOURCES, strict=True)
    return tuple(Rule(Chain.NAT_IN, (Match(field, source), _TCP), _ACCEPT) for field, source in fields)


def _capture_virtual(options: Options) -> tuple[Rule, ...]:
    """Before everything else that comes in. TCP only, as in Istio."""
    catch = Action(Verb.REDIRECT, OUTBOUND_PORT)
    names = options.virtual_interfaces
    return tuple(Rule(Chain.NAT_IN, (Match(Field.IN_INTERFACE, n), _TCP, _NOT_TUNNEL), catch) for n in names)


def _exclude_outbound(options: Options) -> tuple[Rule, ...]:
    ports = [(Match(Field.DPORT, port),) for port in options.excluded_outbound_ports]
    ranges = [(_TCP, _destination(text)) for text in options.excluded_outbound_ranges]
    return tuple(Rule(Chain.NAT_OUT, when, _ACCEPT) for when in (*ports, *ranges))


def _destination(text: str) -> Match:
    """A single address stands without its prefix length, as the kernel's tools list it."""
    network = ip_network(text, strict=False)
    field = Field.DESTINATION_4 if network.version == 4 else Field.DESTINATION_6
    whole = network.prefixlen == network.max_prefixlen
    return Match(field, str(network.network_address if whole else network))


def _capture_inbound(options: Options) -> tuple[Rule, ...]:
    """All but HBONE, which the tunnel accepts itself, and all but the tunnel's own connections over lo."""
    left = [Rule(Chain.NAT_IN, (Match(Field.DPORT, port),), _ACCEPT) for port in options.excluded_inbound_ports]
    return (*left, *_catch_inbound())


def _catch_inbound() -> tuple[Rule, ...]:
    not_hbone = Match(Field.DPORT, HBONE_PORT, equal=False)
    catch = Action(Verb.REDIRECT, INBOUND_PLAIN_PORT)
    return tuple(Rule(Chain.NAT_IN, (here, not_hbone, _NOT_TUNNEL), catch) for here in _NOT_LOOPBACK)


def _leave_outbound() -> tuple[Rule, ...]:
    """First packets of connections already judged, and the pod calling its own address over lo."""
    judged = Rule(Chain.NAT_OUT, (_TCP, Match(Field.MARK, CONNECTION_MARK)), _ACCEPT)
    over_lo = Match(Field.OUT_INTERFACE, "lo")
    return (judged, *(Rule(Chain.NAT_OUT, (over_lo, here), _ACCEPT) for here in _NOT_LOOPBACK))


def _capture_outbound() -> tuple[Rule, ...]:
    catch = Action(Verb.REDIRECT, OUTBOUND_PORT)
    return tuple(Rule(Chain.NAT_OUT, (_TCP, here, _NOT_TUNNEL), catch) for here in _NOT_LOOPBACK)
