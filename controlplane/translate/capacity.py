"""What one proxy cannot do: ask more external authorizers or rate-limit services than its listeners have places for.

Policies of an authorizer that is not asked refuse what they match; limits of more services than there are places are
left out, and not asked of the wrong one. Either is said on the object. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.l7.model import Proxy, Rules
from controlplane.l7.routes import Limit, Target
from controlplane.l7.security import Authorizer
from controlplane.translate.envoy import tokens
from controlplane.translate.notices import WAYPOINT, Notice

REFUSED = "LimitExceeded"


# What a rate-limit filter asks; the last: whether requests pass when it does not answer.
_Asked = tuple[Target, str, bool]


def fitted(proxy: Proxy) -> Proxy:
    """Each limit with its place, without those that nobody is asked about."""
    asked = _asked(proxy)
    if not asked:
        return proxy
    services = tuple(replace(each, rules=_placed(each.rules, asked)) for each in proxy.services)
    return replace(proxy, rules=_placed(proxy.rules, asked), services=services)


def refused(proxy: Proxy, authorizers: Mapping[str, Authorizer]) -> Iterator[Notice]:
    """Of a proxy as its documents want it."""
    asked = _asked(proxy)
    limits = (limit for rules in _rules(proxy) for limit in rules.limits)
    for limit in dict.fromkeys(each for each in limits if each.service and _key(each) not in asked):
        namespace, name, inner = limit.name.split("/", 2)
        others = ", ".join(f"{where.service.partition('/')[2]} (domain {domain})" for where, domain, _ in asked)
        why = f"{inner!r} is not enforced: proxy {proxy.key} asks {len(asked)} rate-limit services at most, {others}"
        yield Notice("RateLimit", namespace, name, "", WAYPOINT, False, REFUSED, why)
    policies = [each for rules in _rules(proxy) for each in rules.authorizations if each.action is None]
    chosen = [name for name, _ in tokens.slots(authorizers, (each.provider for each in policies)).values()]
    for each in dict.fromkeys(policy.key for policy in policies):
        provider = next(policy.provider for policy in policies if policy.key == each)
        if provider not in chosen:
            reason, why = _not_asked(proxy, provider, authorizers.get(provider), chosen)
            namespace, _, name = each.partition("/")
            why = f"{why}: what it matches is refused"
            yield Notice("AuthorizationPolicy", namespace, name, "", WAYPOINT, False, reason, why)


def _not_asked(proxy: Proxy, provider: str, known: Authorizer | None, chosen: list[str]) -> tuple[str, str]:
    if known is None:
        return "ProviderNotFound", f"{provider!r} is none of the mesh's extensionProviders"
    if not known.target.service:
        return "ProviderNotFound", f"the service of extensionProvider {provider!r} does not exist"
    asked = f"proxy {proxy.key} asks {len(tokens.AUTHORIZERS)} external authorizers at most ({', '.join(chosen)})"
    return REFUSED, f"{asked} and not {provider!r}"


def _rules(proxy: Proxy) -> Iterator[Rules]:
    yield proxy.rules
    yield from (each.rules for each in proxy.services)


def _key(limit: Limit) -> _Asked:
    return limit.service or Target(""), limit.domain, limit.fail_open


def _asked(proxy: Proxy) -> list[_Asked]:
    """By their places: the first ones, in the order in which limits are looked at."""
    limits = (limit for rules in _rules(proxy) for limit in rules.limits)
    return list(dict.fromkeys(_key(each) for each in limits if each.service))[: len(tokens.LIMITERS)]


def _placed(rules: Rules, asked: list[_Asked]) -> Rules:
    """The same object when nothing is asked of anybody."""
    if not any(limit.service for limit in rules.limits):
        return rules
    kept = (each for each in rules.limits if not each.service or _key(each) in asked)
    return replace(
        rules, limits=tuple(replace(each, place=asked.index(_key(each))) if each.service else each for each in kept)
    )
