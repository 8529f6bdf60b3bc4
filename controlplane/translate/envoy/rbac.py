"""Authorization of the model to Envoy's RBAC. Pure.

Delivered with the routes (never with the listener): an open connection is judged by the policy of now. Whatever cannot
be expressed never matches in an ALLOW and always matches in a DENY.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from controlplane.l7.routes import ClaimText, Compare, Text
from controlplane.l7.security import Authorization, AuthorizationRule, Condition, Networks, Operation, Source, Values
from controlplane.translate.envoy.common import ORIGINAL_DST, SOURCE, Json, matcher, typed
from controlplane.translate.envoy.routes import JWT_METADATA, JWT_PAYLOAD, claim
from mesh.model import Action, IPNetwork

CUSTOM, AUDIT, DENY, ALLOW = "rbac.custom", "rbac.audit", "rbac.deny", "rbac.allow"
# What an ext_authz filter looks for: policy names that begin with its provider's.
CUSTOM_PREFIX: Final = "custom_"
_ANY: Final[Json] = {"any": True}
_NEVER: Final[Json] = {"not_rule": {"any": True}}
_NOBODY: Final[Json] = {"not_id": {"any": True}}
_SPIFFE: Final = "spiffe://"
_ONE_OF: Final = re.compile(r"request\.headers\[(.+)\]")
_CLAIM: Final = re.compile(r"\[([^\]]+)\]")


class Unknown(Exception):
    """A key of a condition that no proxy can judge."""


def http_filters(policies: Sequence[Authorization], port: int, providers: Iterable[str]) -> Json:
    """`typed_per_filter_config`: for each of the four filters what it has to say, if anything."""
    found: Json = {}
    known = set(providers)
    # An authorizer that is not there cannot be asked, so it refuses.
    denied = [each for each in policies if each.action is None and each.provider not in known]
    by_filter: tuple[tuple[str, str, list[Authorization]], ...] = (
        (AUDIT, "LOG", _of(policies, Action.AUDIT)),
        (DENY, "DENY", [*_of(policies, Action.DENY), *denied]),
        (ALLOW, "ALLOW", _of(policies, Action.ALLOW)),
    )
    for name, action, all_ in by_filter:
        if rules := _rbac(all_, action, port):
            found[name] = _per_route(rules)
    asked = [each for each in policies if each.action is None and each.provider in known]
    if asked:
        shadow = {"action": "DENY", "policies": _policies(asked, "DENY", port, lambda each: f"custom|{each.provider}|")}
        found[CUSTOM] = _per_route({"shadow_rules": shadow, "shadow_rules_stat_prefix": CUSTOM_PREFIX})
    return found


def network_rules(policies: Sequence[Authorization], port: int) -> list[tuple[str, Json]]:
    """The same for TCP: (name, RBAC without a type). HTTP's attributes are not there: see `_layer4`."""
    found = []
    for action, word in ((Action.AUDIT, "LOG"), (Action.DENY, "DENY"), (Action.ALLOW, "ALLOW")):
        chosen = [_layer4(each) for each in _of(policies, action)]
        if action is Action.DENY:
            chosen += [_layer4(each) for each in policies if each.action is None]
        if rules := _rbac(chosen, word, port):
            found.append((f"rbac.{word.lower()}", rules))
    return found


def _layer4(policy: Authorization) -> Authorization:
    """Istio's rule: an ALLOW with attributes of HTTP grants nothing, a DENY with them goes without them."""
    rules = []
    for rule in policy.rules:
        if policy.action is Action.ALLOW and _is_http(rule):
            continue
        sources = tuple(
            Source(s.principals, Values(), s.namespaces, s.service_accounts, s.trust_domains, s.ips, s.remote_ips)
            for s in rule.sources
        )
        operations = tuple(Operation(ports=operation.ports) for operation in rule.operations)
        conditions = tuple(each for each in rule.conditions if not each.key.startswith("request."))
        rules.append(AuthorizationRule(sources, operations, conditions))
    return Authorization(policy.name, policy.namespace, policy.action, tuple(rules), policy.provider, policy.dry_run)


def _is_http(rule: AuthorizationRule) -> bool:
    nothing = Values()
    return (
        any(source.request_principals != nothing for source in rule.sources)
        or any(o.hosts != nothing or o.methods != nothing or o.paths != nothing for o in rule.operations)
        or any(each.key.startswith("request.") for each in rule.conditions)
    )


def _of(policies: Iterable[Authorization], action: Action) -> list[Authorization]:
    return [each for each in policies if each.action is action]


def _per_route(rbac: Json) -> Json:
    return typed("extensions.filters.http.rbac.v3.RBACPerRoute", rbac=rbac)


def _rbac(policies: Sequence[Authorization], action: str, port: int) -> Json:
    """Dry runs are counted, not enforced. An ALLOW policy without rules makes a list that nobody is on."""
    found: Json = {}
    live = [each for each in policies if not each.dry_run]
    tried = [each for each in policies if each.dry_run]
    if live:
        found["rules"] = {"action": action, "policies": _policies(live, action, port)}
    if tried:
        found["shadow_rules"] = {"action": action, "policies": _policies(tried, action, port)}
        found["shadow_rules_stat_prefix"] = f"istio_dry_run_{action.lower()}_"
    return found


def _no_prefix(_: Authorization) -> str:
    return ""


def _policies(
    policies: Sequence[Authorization],
    action: str,
    port: int,
    prefix: Callable[[Authorization], str] = _no_prefix,
) -> Json:
    found: Json = {}
    for each in policies:
        for number, rule in enumerate(each.rules):
            name = f"{prefix(each)}ns[{each.namespace}]-policy[{each.name}]-rule[{number}]"
            found[name] = _rule(rule, port, widen=action != "ALLOW")
        if not each.rules and action == "ALLOW":
            found[f"ns[{each.namespace}]-policy[{each.name}]-rule[none]"] = {
                "permissions": [_NEVER],
                "principals": [_NOBODY],
            }
    return found


def _rule(rule: AuthorizationRule, port: int, widen: bool) -> Json:
    """`widen`: what to do about what cannot be judged: leave it out (DENY), or match nobody (ALLOW)."""
    permissions: list[Json] = []
    principals: list[Json] = []
    for each in rule.conditions:
        try:
            permissions_of, principals_of = _condition(each, port)
        except Unknown:
            if widen:
                continue
            permissions_of, principals_of = [_NEVER], []
        permissions += permissions_of
        principals += principals_of
    operations = [_operation(each, port) for each in rule.operations] or [[]]
    sources = [_source(each) for each in rule.sources] or [[]]
    return {
        "permissions": [_all("and_rules", "rules", [*operation, *permissions]) for operation in operations],
        "principals": [_all("and_ids", "ids", [*source, *principals]) for source in sources],
    }


def _all(word: str, inner: str, parts: list[Json]) -> Json:
    return {word: {inner: parts}} if parts else _ANY


# Who ------------------------------------------------------------------------------------------------------------------


def _source(source: Source) -> list[Json]:
    found = _ids(source.principals, principal)
    found += _ids(source.request_principals, _request_principal)
    found += _ids(source.namespaces, _namespace)
    found += _ids(source.service_accounts, _account)
    found += _ids(source.trust_domains, _trust_domain)
    found += _networks(source.ips, _direct)
    found += _networks(source.remote_ips, _remote)
    return found


def _ids(values: Values, one: Callable[[Text], Json]) -> list[Json]:
    found: list[Json] = []
    if values.any:
        found.append({"or_ids": {"ids": [one(text) for text in values.any]}})
    if values.none:
        found.append({"not_id": {"or_ids": {"ids": [one(text) for text in values.none]}}})
    return found


def _networks(networks: Networks, one: Callable[[Sequence[IPNetwork]], Json]) -> list[Json]:
    found: list[Json] = []
    if networks.any:
        found.append(one(networks.any))
    if networks.none:
        found.append({"not_id": one(networks.none)})
    return found


def _direct(networks: Sequence[IPNetwork]) -> Json:
    """Who opened the connection: at a gateway its socket says so, behind a tunnel the filter state does."""
    ranges = {"ranges": [cidr(each) for each in networks]}
    inside = {"filter_state": {"key": f"{ORIGINAL_DST}.remote_ip", "address_match": ranges}}
    return {"or_ids": {"ids": [inside, *({"direct_remote_ip": cidr(each)} for each in networks)]}}


def _remote(networks: Sequence[IPNetwork]) -> Json:
    return {"or_ids": {"ids": [{"remote_ip": cidr(each)} for each in networks]}}


def cidr(network: IPNetwork) -> Json:
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}


def _by_identity(text_matcher: Json) -> Json:
    return {"filter_state": {"key": SOURCE, "string_match": text_matcher}}


def principal(text: Text) -> Json:
    """Written without `spiffe://`. The peer's name in filter state: its certificate is on the tunnel, not here."""
    return _by_identity(matcher(text, before=_SPIFFE))


def _namespace(text: Text) -> Json:
    return _by_identity({"safe_regex": {"regex": f"{_SPIFFE}[^/]+/ns/{_part(text)}/sa/.+"}})


def _account(text: Text) -> Json:
    namespace, _, account = text.value.partition("/")
    return _by_identity({"safe_regex": {"regex": f"{_SPIFFE}[^/]+/ns/{re.escape(namespace)}/sa/{re.escape(account)}"}})


def _trust_domain(text: Text) -> Json:
    return _by_identity({"safe_regex": {"regex": f"{_SPIFFE}{_part(text)}/.+"}})


def _part(text: Text) -> str:
    """As a regular expression, within one part of an identity."""
    value = re.escape(text.value)
    match text.how:
        case Compare.EXACT:
            return value
        case Compare.PREFIX:
            return f"{value}[^/]*"
        case Compare.SUFFIX:
            return f"[^/]*{value}"
        case Compare.PRESENT:
            return "[^/]+"
        case _:
            return text.value


def _request_principal(text: Text) -> Json:
    """`issuer/subject`: two claims. The subject is what follows the last slash."""
    issuer, _, subject = text.value.rpartition("/")
    present = Text(Compare.PRESENT)
    match text.how:
        case Compare.EXACT:
            wanted = Text(Compare.EXACT, issuer), Text(Compare.EXACT, subject)
        case Compare.PREFIX if issuer:
            wanted = Text(Compare.EXACT, issuer), Text(Compare.PREFIX, subject) if subject else present
        case Compare.PREFIX:
            wanted = Text(Compare.PREFIX, text.value), present
        case Compare.SUFFIX if "/" in text.value:
            wanted = Text(Compare.SUFFIX, issuer) if issuer else present, Text(Compare.EXACT, subject)
        case Compare.SUFFIX:
            wanted = present, Text(Compare.SUFFIX, text.value)
        case Compare.PRESENT:
            wanted = present, present
        case _:
            wanted = Text(Compare.REGEX, issuer or ".+"), Text(Compare.REGEX, subject)
    return {"and_ids": {"ids": [_metadata(("iss",), wanted[0]), _metadata(("sub",), wanted[1])]}}


def _metadata(path: tuple[str, ...], text: Text) -> Json:
    return {"sourced_metadata": {"metadata_matcher": claim(ClaimText(path, text))}}


# What -----------------------------------------------------------------------------------------------------------------


def _operation(operation: Operation, port: int) -> list[Json]:
    found = _rules(operation.hosts, _host)
    found += _rules(operation.methods, lambda text: {"header": _header(":method", text)})
    found += _rules(operation.paths, _path)
    found += _port(operation.ports, port)
    return found


def _rules(values: Values, one: Callable[[Text], Json]) -> list[Json]:
    found: list[Json] = []
    if values.any:
        found.append({"or_rules": {"rules": [one(text) for text in values.any]}})
    if values.none:
        found.append({"not_rule": {"or_rules": {"rules": [one(text) for text in values.none]}}})
    return found


def _host(text: Text) -> Json:
    """Case does not count, and neither does a port: `Host: shop:80` must not get round a DENY of `shop`."""
    value = re.escape(text.value)
    patterns = {
        Compare.EXACT: value,
        Compare.PREFIX: f"{value}.*",
        Compare.SUFFIX: f".*{value}",
        Compare.PRESENT: ".+",
    }
    pattern = patterns.get(text.how, text.value)
    port = "" if ":" in text.value else r"(:\d+)?"
    return {"header": {"name": ":authority", "string_match": {"safe_regex": {"regex": f"(?i){pattern}{port}"}}}}


def _header(name: str, text: Text) -> Json:
    if text.how is Compare.PRESENT:
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": matcher(text)}


def _path(text: Text) -> Json:
    if text.how is Compare.TEMPLATE:
        kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        config = {"@type": kind, "path_template": _template(text.value)}
        return {"uri_template": {"name": "uri-template", "typed_config": config}}
    return {"url_path": {"path": matcher(text)}}


def _template(text: str) -> str:
    """Istio's `{*}` and `{**}` are Envoy's `*` and `**`."""
    return text.replace("{**}", "**").replace("{*}", "*")


def _port(values: Values, port: int) -> list[Json]:
    """Each listener is one port's: the answer is known here. 0: it is every port's, and the connection says which."""
    if not port:
        return _rules(values, lambda text: {"destination_port": int(text.value)})
    listed = {text.value for text in values.any}
    excluded = {text.value for text in values.none}
    fits = (not listed or str(port) in listed) and str(port) not in excluded
    return [] if fits else [_NEVER]


# When -----------------------------------------------------------------------------------------------------------------

_IDENTITIES: Final[dict[str, Callable[[Text], Json]]] = {
    "source.principal": principal,
    "source.namespace": _namespace,
    "source.serviceAccount": _account,
    "source.trustDomain": _trust_domain,
    "request.auth.principal": _request_principal,
    "request.auth.audiences": lambda text: _metadata(("aud",), text),
    "request.auth.presenter": lambda text: _metadata(("azp",), text),
}
_ADDRESSES: Final = {"source.ip": _direct, "remote.ip": _remote}


def _condition(condition: Condition, port: int) -> tuple[list[Json], list[Json]]:
    """Permissions and principals. Raises Unknown."""
    key, values = condition.key, condition.values
    if one := _IDENTITIES.get(key):
        return [], _ids(values, one)
    if by_address := _ADDRESSES.get(key):
        return [], _networks(condition.networks, by_address)
    if key.startswith("request.auth.claims["):
        path = tuple(_CLAIM.findall(key))
        return [], _ids(values, lambda text: _metadata(path, text))
    if found := _ONE_OF.fullmatch(key):
        name = found[1]
        return [], _ids(values, lambda text: {"header": _header(name, text)})
    if key == "destination.port":
        return _port(values, port), []
    if key == "connection.sni":
        return _rules(values, lambda text: {"requested_server_name": matcher(text)}), []
    if key == "destination.ip":
        return _destinations(condition.networks), []
    raise Unknown(key)


def _destinations(networks: Networks) -> list[Json]:
    found: list[Json] = []
    if networks.any:
        found.append({"or_rules": {"rules": [{"destination_ip": cidr(each)} for each in networks.any]}})
    if networks.none:
        found.append({"not_rule": {"or_rules": {"rules": [{"destination_ip": cidr(each)} for each in networks.none]}}})
    return found


Rules = dict[str, Any]
__all__ = ["ALLOW", "AUDIT", "CUSTOM", "DENY", "JWT_METADATA", "JWT_PAYLOAD", "http_filters", "network_rules"]
