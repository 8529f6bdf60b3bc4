"""AuthorizationPolicy as something that reads HTTP judges it: all of it, where the tunnel takes only layer 4. Pure.

The layer-4 reading (`authorization.py`) has checked names and forms; here only what it leaves out is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import Final

from controlplane.l7.routes import Compare, Text
from controlplane.l7.security import (
    Authorization,
    AuthorizationRule,
    Condition,
    Networks,
    Operation,
    Source,
    Values,
)
from controlplane.objects import Meta
from controlplane.validate import Field
from mesh.model import Action, IPNetwork

_TEMPLATE: Final = re.compile(r"\{\*{1,2}\}")
_NETWORK_KEYS: Final = ("source.ip", "remote.ip", "destination.ip")
Read = Callable[[Field], Text | None]


def authorization(spec: Field, about: Meta, dry_run: bool) -> Authorization:
    """Of a policy's spec. `provider` is there when, and only when, the action is CUSTOM."""
    action = spec.get("action").string("ALLOW")
    custom = action == "CUSTOM"
    provider = spec.get("provider").get("name")
    if custom and not provider.string():
        provider.fail("is required for CUSTOM: one of the mesh's extensionProviders")
    if not custom and spec.get("provider").present:
        spec.get("provider").fail(f"is only for CUSTOM, not {action}")
    return Authorization(
        name=about.name,
        namespace=about.namespace,
        action=None if custom or action not in Action.__members__ else Action(action),
        rules=tuple(_rule(rule, about.namespace, action) for rule in spec.get("rules").items()),
        provider=provider.string() if custom else "",
        dry_run=dry_run,
    )


def deny_all(about: Meta) -> Authorization:
    """What stands for a policy that cannot be read."""
    return Authorization(about.name, about.namespace, Action.DENY, (AuthorizationRule(),))


def _rule(rule: Field, namespace: str, action: str) -> AuthorizationRule:
    if action == "CUSTOM":
        _refuse_tokens(rule)
    return AuthorizationRule(
        sources=tuple(_source(item.get("source"), namespace) for item in rule.get("from").items()),
        operations=tuple(_operation(item.get("operation")) for item in rule.get("to").items()),
        conditions=tuple(_condition(item, namespace) for item in rule.get("when").items()),
    )


def _refuse_tokens(rule: Field) -> None:
    """An authorizer is asked before tokens are looked at, as in Istio."""
    for item in rule.get("from").items():
        for name in ("requestPrincipals", "notRequestPrincipals"):
            if item.get("source").get(name).present:
                item.get("source").get(name).fail("is not allowed for CUSTOM: tokens are checked after it")
    for item in rule.get("when").items():
        if item.get("key").string().startswith("request.auth."):
            item.get("key").fail("is not allowed for CUSTOM: tokens are checked after it")


def _source(source: Field, namespace: str) -> Source:
    return Source(
        principals=_values(source, "principals"),
        request_principals=_values(source, "requestPrincipals"),
        namespaces=_values(source, "namespaces"),
        service_accounts=_values(source, "serviceAccounts", lambda item: _account(item, namespace)),
        trust_domains=_values(source, "trustDomains"),
        ips=_networks(source.get("ipBlocks"), source.get("notIpBlocks")),
        remote_ips=_networks(source.get("remoteIpBlocks"), source.get("notRemoteIpBlocks")),
    )


def _operation(operation: Field) -> Operation:
    return Operation(
        hosts=_values(operation, "hosts", lambda item: value(item, ignore_case=True)),
        methods=_values(operation, "methods"),
        paths=_values(operation, "paths", path),
        ports=_values(operation, "ports"),
    )


def _condition(item: Field, namespace: str) -> Condition:
    key = item.get("key").string()
    if key in _NETWORK_KEYS:
        return Condition(key, networks=_networks(item.get("values"), item.get("notValues")))

    def read(each: Field) -> Text | None:
        return _account(each, namespace) if key == "source.serviceAccount" else value(each)

    return Condition(key, Values(_all(item.get("values"), read), _all(item.get("notValues"), read)))


def _values(parent: Field, name: str, read: Read | None = None) -> Values:
    negated = parent.get(f"not{name[0].upper()}{name[1:]}")
    return Values(_all(parent.get(name), read or value), _all(negated, read or value))


def _all(listed: Field, read: Read) -> tuple[Text, ...]:
    return tuple(found for item in listed.items() if (found := read(item)))


def value(item: Field, ignore_case: bool = False) -> Text | None:
    """Exact, `abc*`, `*abc`, or `*`: present."""
    text = item.string()
    bare = text.removeprefix("*") if text.startswith("*") else text.removesuffix("*")
    if not text or "*" in bare:
        item.fail(f"{text!r}: a value is exact, 'abc*', '*abc' or '*' alone")
        return None
    if text == "*":
        return Text(Compare.PRESENT)
    how = Compare.SUFFIX if text.startswith("*") else Compare.PREFIX if text.endswith("*") else Compare.EXACT
    return Text(how, bare, ignore_case)


def path(item: Field) -> Text | None:
    """Also a template, where a segment may be `{*}`, and `{**}` stands for any number of them."""
    text = item.string()
    if "{" not in text and "}" not in text:
        return value(item)
    segments = text.split("/")
    good = text.startswith("/") and all(
        _TEMPLATE.fullmatch(each) or not any(mark in each for mark in "{}*") for each in segments
    )
    if not good or segments.count("{**}") > 1:
        item.fail(
            f"{text!r}: in a template a segment is {{*}}, one may be {{**}}, and nothing else holds '*' or braces"
        )
        return None
    return Text(Compare.TEMPLATE, text)


def _account(item: Field, namespace: str) -> Text | None:
    where, _, name = item.string().rpartition("/")
    return Text(Compare.EXACT, f"{where or namespace}/{name}")


def _networks(positive: Field, negative: Field) -> Networks:
    return Networks(_parsed(positive), _parsed(negative))


def _parsed(listed: Field) -> tuple[IPNetwork, ...]:
    found = []
    for item in listed.items():
        if item.network():
            found.append(ip_network(item.string(), strict=False))
    return tuple(found)
