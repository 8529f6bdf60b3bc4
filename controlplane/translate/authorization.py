"""AuthorizationPolicy to layer-4 rules, as istiod compiles it for a node tunnel, and fail-closed where that is not.

An attribute that needs HTTP cannot be judged here. In an ALLOW policy its rule is left out (it can never match); in a
DENY policy the attribute is left out, so that the rule denies more. istiod then sends an empty match, which never
matches when a rule has nothing else: here such a rule denies everything. Either way the object carries a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from controlplane.objects import AuthorizationPolicy
from controlplane.translate.istio import selector, spec_of
from controlplane.translate.kubernetes import meta
from controlplane.validate import Field
from mesh.model import AccountMatch, Action, Clause, Comparison, IPNetwork, Match, Rule, StringMatch

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


# Document field -> (attribute of Match, reader). "not" + Field -> "not_" + attribute.
_SOURCE: Final[dict[str, tuple[str, Reader]]] = {
    "principals": ("principals", _principal),
    "namespaces": ("namespaces", _string),
    "serviceAccounts": ("service_accounts", _account),
    "ipBlocks": ("source_ips", _network),
}
_OPERATION: Final[dict[str, tuple[str, Reader]]] = {"ports": ("destination_ports", _port)}
_WHEN: Final[dict[str, tuple[str, Reader]]] = {
    "source.ip": ("source_ips", _network),
    "source.namespace": ("namespaces", _string),
    "source.principal": ("principals", _principal),
    "source.serviceAccount": ("service_accounts", _account),
    "destination.ip": ("destination_ips", _network),
    "destination.port": ("destination_ports", _port),
}
# A trust domain is in the identity, but no attribute of the wire's Match carries it alone.
_HTTP_SOURCE: Final = ("requestPrincipals", "remoteIpBlocks", "trustDomains")
_HTTP_OPERATION: Final = ("hosts", "methods", "paths")
_HTTP_WHEN: Final = re.compile(
    r"request\.(headers\[.+\]|auth\.(principal|audiences|presenter|claims(\[.+\])+))"
    r"|remote\.ip|connection\.sni|source\.trustDomain|experimental\.envoy\.filters\..+\[.+\]"
)


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def authorization_policy(document: Field) -> AuthorizationPolicy:
    spec = spec_of(document, "selector", "targetRef", "targetRefs", "action", "provider", "rules")
    about = meta(document)
    chosen = selector(spec)
    action = _action(spec, bool(chosen))
    rules = [_rule(rule, action or Action.DENY, about.namespace) for rule in spec.get("rules").items()]
    if not rules and action is Action.DENY:
        spec.warn("DENY without rules never matches")
    dry_run = document.get("metadata").get("annotations").get(DRY_RUN).one_of(("true", "false"), "false")
    return AuthorizationPolicy(about, chosen, action, tuple(r for r in rules if r is not None), dry_run == "true")


def _action(spec: Field, selects: bool) -> Action | None:
    """None: not for the tunnel."""
    action = spec.get("action").one_of(("ALLOW", "DENY", "AUDIT", "CUSTOM"), "ALLOW")
    if _attached(spec, selects):
        return None
    if action in ("AUDIT", "CUSTOM"):
        spec.get("action").warn(f"{action} is not enforced: a node tunnel only knows ALLOW and DENY")
        return None
    return Action(action)


def _attached(spec: Field, selects: bool) -> bool:
    references = [ref for ref in (spec.get("targetRef"), *spec.get("targetRefs").items()) if ref.present]
    for reference in references:
        reference.only("group", "kind", "name", "namespace")
        reference.get("kind").required().one_of(_TARGET_KINDS, "Service")
        reference.get("name").required().string()
        if selects:
            reference.fail("selector and targetRefs exclude each other")
    if references:
        references[0].warn("is not enforced: a policy attached to a service or gateway needs a waypoint")
    return bool(references)


def _rule(rule: Field, action: Action, namespace: str) -> Rule | None:
    """None: a rule of an ALLOW policy that cannot match."""
    if not rule.present:
        rule.fail("is empty; a rule that always matches is written {}")
    rule.only("from", "to", "when")
    http: set[str] = set()
    sources = [_source(item, namespace, http) for item in rule.get("from").items()]
    operations = [_operation(item, namespace, http) for item in rule.get("to").items()]
    conditions = [(_when(item, namespace, http),) for item in rule.get("when").items()]
    _warn(rule, action, sorted(http))
    if http and action is Action.ALLOW:
        return None
    clauses: list[Clause] = [tuple(operations), tuple(sources), *conditions]
    # A match from which everything was left out is true, and so is then its clause; an absent clause is true too.
    return tuple(clause for clause in clauses if clause and Match() not in clause)


def _warn(rule: Field, action: Action, http: list[str]) -> None:
    if not http:
        return
    effect = "this rule never allows anything" if action is Action.ALLOW else "this rule denies without regard to it"
    rule.warn(f"{', '.join(http)} cannot be judged at layer 4: {effect}")


def _source(item: Field, namespace: str, http: set[str]) -> Match:
    source = item.only("source").get("source").required()
    match = _match(source, _SOURCE, _HTTP_SOURCE, namespace, http)
    accounts = [source.get(name) for name in ("serviceAccounts", "notServiceAccounts")]
    others = ("principals", "notPrincipals", "namespaces", "notNamespaces")
    for field in accounts:
        if len(field.items()) > MAX_ACCOUNTS:
            field.fail(f"at most {MAX_ACCOUNTS} service accounts")
        if field.present and any(source.get(name).present for name in others):
            field.fail("serviceAccounts excludes principals and namespaces")
    return match


def _operation(item: Field, namespace: str, http: set[str]) -> Match:
    operation = item.only("operation").get("operation").required()
    return _match(operation, _OPERATION, _HTTP_OPERATION, namespace, http)


def _match(
    spec: Field,
    attributes: dict[str, tuple[str, Reader]],
    needs_http: tuple[str, ...],
    namespace: str,
    http: set[str],
) -> Match:
    names = [*attributes, *needs_http]
    spec.only(*names, *map(_negated, names))
    for name in (*needs_http, *map(_negated, needs_http)):
        if spec.get(name).strings():
            http.add(name)
    values: dict[str, Any] = {}
    for name, (attribute, read) in attributes.items():
        values[attribute] = _values(spec.get(name), read, namespace)
        values[f"not_{attribute}"] = _values(spec.get(_negated(name)), read, namespace)
    if spec.present and not any(spec.get(name).items() for name in (*names, *map(_negated, names))):
        spec.fail("is empty; leave it out, or name at least one value")
    return Match(**values)


def _values(listed: Field, read: Reader, namespace: str) -> tuple[Any, ...]:
    found = (read(item, namespace) for item in listed.items())
    return tuple(value for value in found if value is not None)


def _when(item: Field, namespace: str, http: set[str]) -> Match:
    item.only("key", "values", "notValues")
    key = item.get("key").required()
    positive, negative = item.get("values"), item.get("notValues")
    if not positive.items() and not negative.items():
        item.fail("needs values or notValues")
    if key.string() not in _WHEN:
        if key.present and not _HTTP_WHEN.fullmatch(key.string()):
            key.fail(f"{key.string()!r} is not a known attribute; at layer 4: {', '.join(_WHEN)}")
        http.add(key.string())
        return Match()
    attribute, read = _WHEN[key.string()]
    values = {
        attribute: _values(positive, read, namespace),
        f"not_{attribute}": _values(negative, read, namespace),
    }
    return Match(**values)
