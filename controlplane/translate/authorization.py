"""AuthorizationPolicy to layer-4 rules, as istiod compiles it for a node tunnel, and fail-closed where that is not.

An attribute that needs HTTP cannot be judged here. In an ALLOW policy its rule never matches, and keeps its place, so
that a rule's number is the same everywhere. In a DENY policy the attribute is left out, so that the rule denies more;
istiod then sends an empty match, which never matches when a rule has nothing else: here such a rule denies everything.
Either way the object carries a warning.

With the annotation `nodemesh/direction: egress` a policy is about whom the selected workloads may call (our own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from controlplane.objects import AuthorizationPolicy, TargetRef
from controlplane.translate import requests
from controlplane.translate.istio import selector, spec_of
from controlplane.translate.kubernetes import meta
from controlplane.validate import Field
from mesh.model import AccountMatch, Action, Clause, Comparison, IPNetwork, Match, Rule, StringMatch

DIRECTION: Final = "nodemesh/direction"
DRY_RUN: Final = "istio.io/dry-run"
MAX_ACCOUNTS: Final = 16
_TARGET_KINDS: Final = ("Service", "ServiceEntry", "Gateway", "GatewayClass")
Reader = Callable[[Field, str], Any]


def _string(value: Field, _: str) -> StringMatch | None:
    text = value.string()
    bare = text.removeprefix("*") if text.startswith("*") else text.removesuffix("*")
    if not text or ("*" in bare):
        value.fail(f"{text!r}: a value is exact, 'abc*', '*abc' or '*' alone")
        return None
    if text == "*":
        return StringMatch(Comparison.PRESENCE)
    if text.startswith("*"):
        return StringMatch(Comparison.SUFFIX, bare)
    return StringMatch(Comparison.PREFIX if text.endswith("*") else Comparison.EXACT, bare)


def _principal(value: Field, namespace: str) -> StringMatch | None:
    if value.string().startswith("spiffe://"):
        value.fail("a principal is written without spiffe://, as TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")
    return _string(value, namespace)


def _account(value: Field, namespace: str) -> AccountMatch | None:
    where, slash, name = value.string().rpartition("/")
    if "*" in value.string() or not name or (slash and not where) or "/" in where:
        value.fail(f"{value.string()!r} is neither NAMESPACE/SERVICE-ACCOUNT nor SERVICE-ACCOUNT (no wildcards)")
        return None
    return AccountMatch(where or namespace, name)


def _network(value: Field, _: str) -> IPNetwork | None:
    if value.string() == "":
        value.fail("is empty: an IP address or a CIDR range is expected")
    return value.network()


def _port(value: Field, _: str) -> int | None:
    text = value.string()
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65535:
        value.fail(f"{text!r} is not a port from 1 to 65535, in quotes")
        return None
    return int(text)


def _host(value: Field, namespace: str) -> StringMatch | None:
    match = _string(value, namespace)
    return StringMatch(match.comparison, match.value.lower()) if match else None


# A match that asks for nothing is false.
NEVER: Final[Rule] = ((Match(),),)
Attributes = Mapping[str, tuple[str, Reader]]
# Document field -> (attribute of Match, reader). "not" + Field -> "not_" + attribute.
_SOURCE: Final[Attributes] = {
    "principals": ("principals", _principal),
    "namespaces": ("namespaces", _string),
    "serviceAccounts": ("service_accounts", _account),
    "ipBlocks": ("source_ips", _network),
}
_OPERATION: Final[Attributes] = {"ports": ("destination_ports", _port)}
_WHEN: Final[Attributes] = {
    "source.ip": ("source_ips", _network),
    "source.namespace": ("namespaces", _string),
    "source.principal": ("principals", _principal),
    "source.serviceAccount": ("service_accounts", _account),
    "destination.ip": ("destination_ips", _network),
    "destination.port": ("destination_ports", _port),
}
# Where the other end is the server: its identity is matched by what otherwise is the client's.
_OUTWARD_OPERATION: Final[Attributes] = {**_OPERATION, "hosts": ("services", _host)}
_OUTWARD_WHEN: Final[Attributes] = {
    "destination.ip": ("destination_ips", _network),
    "destination.port": ("destination_ports", _port),
    "destination.namespace": ("namespaces", _string),
    "destination.principal": ("principals", _principal),
    "destination.serviceAccount": ("service_accounts", _account),
}
_HTTP_SOURCE: Final = ("requestPrincipals", "remoteIpBlocks")
_HTTP_OPERATION: Final = ("hosts", "methods", "paths")
_HTTP_WHEN: Final = re.compile(
    r"request\.(headers\[.+\]|auth\.(principal|audiences|presenter|claims(\[.+\])+))"
    r"|remote\.ip|connection\.sni|experimental\.envoy\.filters\..+\[.+\]"
)
_TRUST_DOMAIN_KEY: Final = "source.trustDomain"
_EFFECT: Final = {
    Action.ALLOW: "this rule never allows anything",
    Action.DENY: "this rule denies without regard to it",
    Action.AUDIT: "this rule reports without regard to it",
}


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a rule is read by. `unjudged` gathers the attributes that cannot be judged here."""

    namespace: str
    operation: Attributes
    when: Attributes
    unjudged: set[str] = field(default_factory=set)


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def authorization_policy(document: Field) -> AuthorizationPolicy:
    spec = spec_of(document, "selector", "targetRef", "targetRefs", "action", "provider", "rules")
    spec.get("provider").only("name")
    about = meta(document)
    chosen = selector(spec)
    targets = _targets(spec, bool(chosen))
    action = _action(spec, bool(targets))
    notes = document.get("metadata").get("annotations")
    egress = notes.get(DIRECTION).one_of(("ingress", "egress"), "ingress") == "egress"
    dry_run = notes.get(DRY_RUN).one_of(("true", "false"), "false") == "true"
    rules = [_rule(rule, action, about.namespace, egress) for rule in spec.get("rules").items()]
    if not rules and action in (Action.DENY, Action.AUDIT):
        spec.warn(f"{action} without rules never matches")
    if dry_run and action is Action.AUDIT:
        notes.get(DRY_RUN).warn("has no effect: AUDIT enforces nothing anyway")
    return AuthorizationPolicy(
        meta=about,
        selector=chosen,
        action=action,
        rules=tuple(rules),
        dry_run=dry_run and action is not Action.AUDIT,
        egress=egress,
        targets=targets,
        l7=None if egress else requests.authorization(spec, about, dry_run),
    )


def _action(spec: Field, attached: bool) -> Action | None:
    """None: not for the tunnel."""
    action = spec.get("action").one_of(("ALLOW", "DENY", "AUDIT", "CUSTOM"), "ALLOW")
    if attached:
        return None
    if action == "CUSTOM":
        spec.get("action").warn(
            "CUSTOM is not enforced by node tunnels: they ask no external authorizer; attach it with targetRefs"
        )
        return None
    return Action(action)


def _targets(spec: Field, selects: bool) -> tuple[TargetRef, ...]:
    found: list[TargetRef] = []
    for reference in (spec.get("targetRef"), *spec.get("targetRefs").items()):
        if not reference.present:
            continue
        reference.only("group", "kind", "name", "namespace")
        kind = reference.get("kind").required().one_of(_TARGET_KINDS, "Service")
        found.append(TargetRef(reference.get("group").string(), kind, reference.get("name").required().string()))
        if selects:
            reference.fail("selector and targetRefs exclude each other")
        if reference.get("namespace").string():
            reference.get("namespace").fail("is not allowed: what is attached to lies in the same namespace")
    return tuple(found)


def _rule(rule: Field, action: Action | None, namespace: str, egress: bool) -> Rule:
    """`action` None: it is not for the tunnel and only checked."""
    if not rule.present:
        rule.fail("is empty; a rule that always matches is written {}")
    rule.only("from", "to", "when")
    tables = (_OUTWARD_OPERATION, _OUTWARD_WHEN) if egress else (_OPERATION, _WHEN)
    reading = _Reading(namespace, *tables)
    if egress and rule.get("from").present:
        rule.get("from").fail("the clients of an egress policy are those that it selects; say with to and when whom")
    sources = [_source(item, reading) for item in rule.get("from").items()]
    operations = [_operation(item, reading) for item in rule.get("to").items()]
    conditions = [(_when(item, reading),) for item in rule.get("when").items()]
    if reading.unjudged and action:
        named = ", ".join(sorted(reading.unjudged))
        rule.warn(f"{named} cannot be judged at layer 4: {_EFFECT[action]}")
    if reading.unjudged and action is Action.ALLOW:
        return NEVER
    clauses: list[Clause] = [tuple(operations), tuple(sources), *conditions]
    # A match from which everything was left out is true, and so is then its clause; an absent clause is true too.
    return tuple(clause for clause in clauses if clause and Match() not in clause)


def _source(item: Field, reading: _Reading) -> Match:
    source = item.only("source").get("source").required()
    match = _match(source, _SOURCE, _HTTP_SOURCE, reading, ("trustDomains",))
    accounts = [source.get(name) for name in ("serviceAccounts", "notServiceAccounts")]
    others = ("principals", "notPrincipals", "namespaces", "notNamespaces")
    for each in accounts:
        if len(each.items()) > MAX_ACCOUNTS:
            each.fail(f"at most {MAX_ACCOUNTS} service accounts")
        if each.present and any(source.get(name).present for name in others):
            each.fail("serviceAccounts excludes principals and namespaces")
    domains = _trust_domains(source.get("trustDomains"), reading)
    not_domains = _trust_domains(source.get(_negated("trustDomains")), reading)
    if domains and match.principals:
        # The principal tells both, and of one attribute's values any is enough: they would widen each other.
        reading.unjudged.add("trustDomains")
        domains = ()
    return replace(match, principals=match.principals + domains, not_principals=match.not_principals + not_domains)


def _trust_domains(listed: Field, reading: _Reading) -> tuple[StringMatch, ...]:
    """As what a principal begins with. How it ends says nothing of its trust domain: then the attribute is left out."""
    found: list[StringMatch] = []
    for item in listed.items():
        match = _string(item, reading.namespace)
        if "/" in item.string():
            item.fail(f"{item.string()!r} is not a trust domain: it has no '/'")
        elif match and match.comparison is Comparison.SUFFIX:
            reading.unjudged.add(listed.path.rpartition(".")[2])
        elif match:
            whole = match.comparison is Comparison.EXACT
            found.append(StringMatch(Comparison.PREFIX, f"{match.value}/") if whole else match)
    return tuple(found) if len(found) == len(listed.items()) else ()


def _operation(item: Field, reading: _Reading) -> Match:
    operation = item.only("operation").get("operation").required()
    needs_http = tuple(name for name in _HTTP_OPERATION if name not in reading.operation)
    return _match(operation, reading.operation, needs_http, reading)


def _match(
    spec: Field, attributes: Attributes, needs_http: tuple[str, ...], reading: _Reading, more: tuple[str, ...] = ()
) -> Match:
    """`more`: fields that the caller reads."""
    names = [each for name in (*attributes, *needs_http, *more) for each in (name, _negated(name))]
    spec.only(*names)
    for name in needs_http:
        reading.unjudged.update(each for each in (name, _negated(name)) if spec.get(each).strings())
    values: dict[str, Any] = {}
    for name, (attribute, read) in attributes.items():
        values[attribute] = _values(spec.get(name), read, reading)
        values[f"not_{attribute}"] = _values(spec.get(_negated(name)), read, reading)
    if spec.present and not any(spec.get(name).items() for name in names):
        spec.fail("is empty; leave it out, or name at least one value")
    return Match(**values)


def _values(listed: Field, read: Reader, reading: _Reading) -> tuple[Any, ...]:
    found = (read(item, reading.namespace) for item in listed.items())
    return tuple(value for value in found if value is not None)


def _when(item: Field, reading: _Reading) -> Match:
    item.only("key", "values", "notValues")
    key = item.get("key").required()
    positive, negative = item.get("values"), item.get("notValues")
    if not positive.items() and not negative.items():
        item.fail("needs values or notValues")
    if key.string() == _TRUST_DOMAIN_KEY and reading.when is _WHEN:
        return Match(
            principals=_trust_domains(positive, reading),
            not_principals=_trust_domains(negative, reading),
        )
    if key.string() not in reading.when:
        if key.present and not _HTTP_WHEN.fullmatch(key.string()):
            key.fail(f"{key.string()!r} is not a known attribute; at layer 4: {', '.join(reading.when)}")
        reading.unjudged.add(key.string())
        return Match()
    attribute, read = reading.when[key.string()]
    values = {
        attribute: _values(positive, read, reading),
        f"not_{attribute}": _values(negative, read, reading),
    }
    return Match(**values)
