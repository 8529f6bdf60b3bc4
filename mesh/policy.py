"""Who may connect, said as simply as it can be said: the meaning of layer-4 policies, not a fast way to compute it.

The tunnel decides with `ztunnel/crates/core/src/authz.rs`; a property test holds that to what is written here. Pure and
total: every question has an answer, nothing raises. Source: Istio's AuthorizationPolicy reference and its ztunnel,
except that what is missing denies (docs/decisions/0002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeVar

from mesh.model import (
    AccountMatch,
    Action,
    Clause,
    Comparison,
    IPAddress,
    IPNetwork,
    Match,
    Policy,
    Rule,
    Scope,
    StringMatch,
    Workload,
)

T = TypeVar("T")
_MAPPED_BITS = 96


@dataclass(frozen=True, slots=True)
class Asked:
    """One connection, as the side sees it that judges.

    `identity`: the other end's SPIFFE ID, "" when there is none. `destination`, `port`: the server's pod and its
    application. `service`: hostname of the service that the client addressed; "" on the server's side.
    """

    source: IPAddress
    destination: IPAddress
    port: int
    identity: str = ""
    service: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`policy`: the one that decided, "" when none did; `rule`: its first rule that matched, from 0."""

    allowed: bool
    policy: str = ""
    rule: int | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """`rehearsed`: the verdict if the dry runs were in force, None without any. `observed`: (policy, rule) of each that
    decides nothing (dry run, AUDIT) and matches."""

    verdict: Verdict
    rehearsed: Verdict | None
    observed: tuple[tuple[str, int], ...]


def judge(known: Mapping[str, Policy], workload: Workload, asked: Asked, *, outbound: bool = False) -> Judgement:
    """May this be? `known`: policies by key. `workload`: the one whose side judges; `outbound`: it is the client."""
    names = egress(workload) if outbound else ingress(known, workload)
    there = [known[name] for name in names if name in known]
    missing = [name for name in names if name not in known]
    observed = [(each.key, matching_rule(each, asked)) for each in there if each.dry_run or each.action is Action.AUDIT]
    dry = any(policy.dry_run for policy in there)
    return Judgement(
        verdict([policy for policy in there if not policy.dry_run], missing, asked),
        verdict(there, missing, asked) if dry else None,
        tuple((key, rule) for key, rule in observed if rule is not None),
    )


def ingress(known: Mapping[str, Policy], workload: Workload) -> list[str]:
    """The policies about who may call this workload: of the mesh, of its namespace, and those that it names."""
    everywhere = sorted(key for key, policy in known.items() if policy.scope is Scope.GLOBAL)
    here = sorted(
        key
        for key, policy in known.items()
        if policy.scope is Scope.NAMESPACE and policy.namespace == workload.namespace
    )
    return [*everywhere, *here, *workload.policies]


def egress(workload: Workload) -> list[str]:
    """The policies about whom this workload may call."""
    return list(workload.egress_policies)


def verdict(policies: Sequence[Policy], missing: Sequence[str], asked: Asked) -> Verdict:
    """A DENY that matches denies. So does a policy that is missing. Then, if there are ALLOWs, one has to match."""
    for policy in policies:
        rule = matching_rule(policy, asked)
        if policy.action is Action.DENY and rule is not None:
            return Verdict(False, policy.key, rule)
    if missing:
        return Verdict(False, missing[0])
    allows = [policy for policy in policies if policy.action is Action.ALLOW]
    for policy in allows:
        rule = matching_rule(policy, asked)
        if rule is not None:
            return Verdict(True, policy.key, rule)
    return Verdict(allowed=not allows)


def matching_rule(policy: Policy, asked: Asked) -> int | None:
    """The first rule that matches. A policy without rules never does."""
    return next((number for number, rule in enumerate(policy.rules) if rule_matches(rule, asked)), None)


def rule_matches(rule: Rule, asked: Asked) -> bool:
    """All clauses; without one, always."""
    return all(clause_matches(clause, asked) for clause in rule)


def clause_matches(clause: Clause, asked: Asked) -> bool:
    """Any match; without one, always."""
    return not clause or any(match_matches(match, asked) for match in clause)


def match_matches(match: Match, asked: Asked) -> bool:
    """Every attribute; a match that asks for nothing is false."""
    namespace, account = place(asked.identity)
    source, destination = unmapped(asked.source), unmapped(asked.destination)

    def principal(wanted: StringMatch) -> bool:
        return bool(asked.identity) and text_matches(wanted, asked.identity.removeprefix("spiffe://"))

    def in_namespace(wanted: StringMatch) -> bool:
        return text_matches(wanted, namespace)

    def service_account(wanted: AccountMatch) -> bool:
        return bool(asked.identity) and (wanted.namespace, wanted.service_account) == (namespace, account)

    def service(wanted: StringMatch) -> bool:
        return bool(asked.service) and text_matches(wanted, asked.service)

    return match != Match() and (
        holds(match.namespaces, match.not_namespaces, in_namespace)
        and holds(match.principals, match.not_principals, principal)
        and holds(match.service_accounts, match.not_service_accounts, service_account)
        and holds(match.source_ips, match.not_source_ips, lambda wanted: within(source, wanted))
        and holds(match.destination_ips, match.not_destination_ips, lambda wanted: within(destination, wanted))
        and holds(match.destination_ports, match.not_destination_ports, lambda wanted: wanted == asked.port)
        and holds(match.services, match.not_services, service)
    )


def holds(wanted: Iterable[T], unwanted: Iterable[T], fits: Callable[[T], bool]) -> bool:
    """(Nothing is wanted, or something that is fits) and nothing that is unwanted fits."""
    wanted = tuple(wanted)
    return (not wanted or any(map(fits, wanted))) and not any(map(fits, unwanted))


def text_matches(wanted: StringMatch, text: str) -> bool:
    """Never a pattern; letter case counts."""
    return {
        Comparison.EXACT: text == wanted.value,
        Comparison.PREFIX: text.startswith(wanted.value),
        Comparison.SUFFIX: text.endswith(wanted.value),
        Comparison.PRESENCE: bool(text),
    }[wanted.comparison]


def place(identity: str) -> tuple[str, str]:
    """Namespace and service account of spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT; "" and "" without one."""
    parts = identity.split("/")
    return (parts[4], parts[6]) if len(parts) == 7 else ("", "")


def unmapped(address: IPAddress) -> IPAddress:
    """An IPv4-mapped address is its IPv4 self."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def within(address: IPAddress, network: IPNetwork) -> bool:
    """No address of one family is in a range of the other; a range of IPv4-mapped addresses is the IPv4 range."""
    if isinstance(network, IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            network = ip_network((mapped, network.prefixlen - _MAPPED_BITS))
    if isinstance(address, IPv4Address):
        return isinstance(network, IPv4Network) and address in network
    return isinstance(network, IPv6Network) and address in network
