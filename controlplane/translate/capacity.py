"""What one proxy cannot do: ask more external authorizers or rate-limit services than its listeners have places for.

Policies of an authorizer that is not asked refuse what they match; limits of another service than the first one are
left out, and not asked of the wrong one. Either is said on the object. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.l7.model import Proxy, Rules
from controlplane.l7.routes import Limit
from controlplane.l7.security import Authorizer
from controlplane.translate.envoy import tokens
from controlplane.translate.notices import WAYPOINT, Notice

REFUSED = "LimitExceeded"


def fitted(proxy: Proxy) -> Proxy:
    """Without the limits that nobody is asked about."""
    if not any(_beyond(proxy)):
        return proxy
    first = _first(proxy)
    services = tuple(replace(each, rules=_left(each.rules, first)) for each in proxy.services)
    return replace(proxy, rules=_left(proxy.rules, first), services=services)


def refused(proxy: Proxy, authorizers: Mapping[str, Authorizer]) -> Iterator[Notice]:
    """Of a proxy as its documents want it."""
    first = _first(proxy)
    for limit in dict.fromkeys(_beyond(proxy)):
        namespace, name, inner = limit.name.split("/", 2)
        asked = f"{first.service.service.partition('/')[2]} (domain {first.domain})" if first and first.service else ""
        why = f"{inner!r} is not enforced: proxy {proxy.key} asks one rate-limit service, {asked}"
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


def _first(proxy: Proxy) -> Limit | None:
    return next((limit for rules in _rules(proxy) for limit in rules.limits if limit.service), None)


def _beyond(proxy: Proxy) -> Iterator[Limit]:
    first = _first(proxy)
    for rules in _rules(proxy) if first else ():
        yield from (limit for limit in rules.limits if not _is_asked(limit, first))


def _is_asked(limit: Limit, first: Limit | None) -> bool:
    return not limit.service or not first or (limit.service, limit.domain) == (first.service, first.domain)


def _left(rules: Rules, first: Limit | None) -> Rules:
    kept = tuple(limit for limit in rules.limits if _is_asked(limit, first))
    return rules if len(kept) == len(rules.limits) else replace(rules, limits=kept)
