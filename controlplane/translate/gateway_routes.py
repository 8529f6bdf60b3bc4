"""HTTPRoute, GRPCRoute, TCPRoute and TLSRoute to the model's routes. Pure; who is their parent is `parents.py`.

A rule's matches are routes of their own, so that those of all documents can be put in the order that the Gateway API
demands: by how closely they match, not as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

from controlplane.l7.routes import (
    Compare,
    Cors,
    DirectResponse,
    Forward,
    HeaderChanges,
    HttpMatch,
    HttpRoute,
    L4Match,
    L4Route,
    Mirror,
    NamedText,
    Redirect,
    Retries,
    Rewrite,
    Session,
    Share,
    Target,
    Text,
)
from controlplane.objects import Resource
from controlplane.translate.backends import Backends
from controlplane.translate.http_routes import retries as default_retries

Tree = Mapping[str, Any]
NOWHERE: Final = Target("")
_REGEX_SEGMENT: Final = "[^/]+"
_UNSUPPORTED: Final = ("ExtensionRef", "ExternalAuth")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A route with its place among those of one host: the least first."""

    rank: tuple[Any, ...]
    route: HttpRoute


def ordered(routes: Iterable[Ranked]) -> tuple[HttpRoute, ...]:
    """Exact path, longest prefix, method, most headers, most query parameters, oldest document, first rule. The same
    one that came here by two ways counts once."""
    once = {each.rank: each.route for each in routes}
    return tuple(once[rank] for rank in sorted(once))


def http(each: Resource, backends: Backends, mesh: Tree, port: int = 0) -> Iterator[Ranked]:
    """`port`: of the parent, if it names one; only requests for it match."""
    for number, rule in enumerate(each.spec.get("rules", [{}])):
        name = rule.get("name") or f"{each.key}/{number}"
        base = _rule(each, rule, name, backends, mesh)
        matches = rule.get("matches") or [{}]
        for index, given in enumerate(matches):
            grpc = each.kind == "GRPCRoute"
            match = replace(_grpc_match(given) if grpc else _http_match(given), port=port)
            close = _grpc_closeness(given) if grpc else _closeness(match)
            rank = (*close, *each.meta.age_order, each.kind, number, index)
            yield Ranked(rank, replace(base, matches=() if match == HttpMatch() else (match,)))


def _closeness(match: HttpMatch) -> tuple[int, ...]:
    """An expression ranks with prefixes, by its length; that is left to the implementation."""
    path = match.path
    exact = path is not None and path.how is Compare.EXACT
    length = len(path.value) if path else 0
    return (not exact, -length, match.method is None, -len(match.headers), -len(match.query))


def _grpc_closeness(given: Tree) -> tuple[int, ...]:
    """The longest service, the longest method, most headers."""
    method: Tree = given.get("method", {})
    lengths = -len(method.get("service", "")), -len(method.get("method", ""))
    return (True, *lengths, -len(given.get("headers", ())), 0)


def _http_match(given: Tree) -> HttpMatch:
    path: Tree = given.get("path", {})
    method = given.get("method")
    return HttpMatch(
        path=_path(path.get("type", "PathPrefix"), path.get("value", "/")),
        method=Text(Compare.EXACT, method) if method else None,
        headers=_named(given.get("headers", ()), lower=True),
        query=_named(given.get("queryParams", ()), lower=False),
    )


def _path(kind: str, value: str) -> Text | None:
    if kind == "Exact":
        return Text(Compare.EXACT, value)
    if kind == "RegularExpression":
        return Text(Compare.REGEX, value)
    return Text(Compare.SEGMENTS, value.rstrip("/")) if value != "/" else None


def _named(listed: Iterable[Tree], lower: bool) -> tuple[NamedText, ...]:
    """Of several for one name the first counts."""
    found: dict[str, NamedText] = {}
    for each in listed:
        name = each["name"].lower() if lower else each["name"]
        how = Compare.REGEX if each.get("type") == "RegularExpression" else Compare.EXACT
        found.setdefault(name, NamedText(name, Text(how, each["value"])))
    return tuple(found.values())


def _grpc_match(given: Tree) -> HttpMatch:
    method: Tree = given.get("method", {})
    return HttpMatch(path=_rpc(method) if method else None, headers=_named(given.get("headers", ()), lower=True))


def _rpc(method: Tree) -> Text:
    service, name = method.get("service", ""), method.get("method", "")
    if method.get("type") == "RegularExpression":
        return Text(Compare.REGEX, f"/{service or _REGEX_SEGMENT}/{name or _REGEX_SEGMENT}")
    if service and name:
        return Text(Compare.EXACT, f"/{service}/{name}")
    if service:
        return Text(Compare.SEGMENTS, f"/{service}")
    return Text(Compare.REGEX, f"/{_REGEX_SEGMENT}/{re.escape(name)}")


def _rule(each: Resource, rule: Tree, name: str, backends: Backends, mesh: Tree) -> HttpRoute:
    filters: list[Tree] = rule.get("filters", [])
    timeouts: Tree = rule.get("timeouts", {})
    whole, once = timeouts.get("request", 0.0), timeouts.get("backendRequest", 0.0)
    retry = _retries(rule.get("retry"), once, mesh)
    return HttpRoute(
        name=name,
        action=_action(each, rule, backends),
        rewrite=_rewrite(filters),
        request=_changes(filters, "requestHeaderModifier"),
        response=_changes(filters, "responseHeaderModifier"),
        timeout_s=whole or (once if "retry" not in rule else 0.0) or None,
        retries=retry,
        mirrors=tuple(_mirrors(each, filters, backends)),
        cors=next((_cors(f["cors"]) for f in filters if "cors" in f), None),
        session=_session(rule["sessionPersistence"], f"{each.key}/{name}") if "sessionPersistence" in rule else None,
    )


def _session(given: Tree, route: str) -> Session:
    """Without a name one that stays, and is another one for another route."""
    name = given.get("sessionName") or f"session-{blake2b(route.encode(), digest_size=6).hexdigest()}"
    lasts = given.get("cookieConfig", {}).get("lifetimeType") == "Permanent"
    header = given.get("type", "Cookie") == "Header"
    return Session(name.lower() if header else name, header, given.get("absoluteTimeout", 0.0) if lasts else 0.0)


def _action(each: Resource, rule: Tree, backends: Backends) -> Forward | Redirect | DirectResponse:
    """What cannot be done as it is written is refused: 500."""
    filters: list[Tree] = rule.get("filters", [])
    if any(f.get("type") in _UNSUPPORTED for f in filters):
        return DirectResponse(500)
    for f in filters:
        if "requestRedirect" in f:
            return _redirect(f["requestRedirect"])
    shares = tuple(_shares(each, rule.get("backendRefs", ()), backends))
    return Forward(shares) if shares else DirectResponse(500)


def _shares(each: Resource, listed: Iterable[Tree], backends: Backends) -> Iterator[Share]:
    for ref in listed:
        weight = ref.get("weight", 1)
        filters = ref.get("filters", [])
        if weight:
            usable = all("requestHeaderModifier" in f or "responseHeaderModifier" in f for f in filters)
            target = backends.target(ref, each) if usable else NOWHERE
            request, response = (
                _changes(filters, part) for part in ("requestHeaderModifier", "responseHeaderModifier")
            )
            yield Share(target, weight, request, response)


def l4(each: Resource, backends: Backends, port: int = 0) -> Iterator[L4Route]:
    """`port`: of the parent, if it names one; only connections to it match."""
    match = L4Match(port=port, sni=tuple(name.lower() for name in each.spec.get("hostnames", ())))
    matches = () if match == L4Match() else (match,)
    for number, rule in enumerate(each.spec.get("rules", ())):
        shares = tuple(_shares(each, rule.get("backendRefs", ()), backends))
        yield L4Route(rule.get("name") or f"{each.key}/{number}", shares or (Share(NOWHERE),), matches)


def _changes(filters: Iterable[Tree], part: str) -> HeaderChanges:
    for f in filters:
        if part in f:
            given: Tree = f[part]
            return HeaderChanges(
                set={h["name"]: h["value"] for h in reversed(given.get("set", []))},
                add={h["name"]: h["value"] for h in reversed(given.get("add", []))},
                remove=tuple(given.get("remove", ())),
            )
    return HeaderChanges()


def _rewrite(filters: Iterable[Tree]) -> Rewrite | None:
    for f in filters:
        if "urlRewrite" in f:
            given: Tree = f["urlRewrite"]
            path: Tree = given.get("path", {})
            return Rewrite(
                prefix=path.get("replacePrefixMatch"),
                path=path.get("replaceFullPath", ""),
                authority=given.get("hostname", ""),
            )
    return None


def _redirect(given: Tree) -> Redirect:
    path: Tree = given.get("path", {})
    return Redirect(
        status=given.get("statusCode", 302),
        scheme=given.get("scheme", ""),
        authority=given.get("hostname", ""),
        port=given.get("port", 0),
        path=path.get("replaceFullPath", ""),
        prefix=path.get("replacePrefixMatch"),
    )


def _mirrors(each: Resource, filters: Iterable[Tree], backends: Backends) -> Iterator[Mirror]:
    """One that goes nowhere is left out: a copy is not worth an error."""
    for f in filters:
        if "requestMirror" in f:
            given: Tree = f["requestMirror"]
            fraction: Tree = given.get("fraction", {})
            share = 100.0 * fraction.get("numerator", 100) / fraction.get("denominator", 100)
            target = backends.target(given["backendRef"], each)
            if target.service and (percent := float(given.get("percent", share))):
                yield Mirror(target, percent)


def _retries(given: Tree | None, once: float, mesh: Tree) -> Retries | None:
    """`once`: how long one attempt may take; without a retry that is the whole."""
    if given is None:
        return default_retries(None, mesh.get("defaultHttpRetryPolicy"))
    standard = Retries()
    return Retries(
        attempts=given.get("attempts", 1),
        conditions=standard.conditions,
        statuses=tuple(given.get("codes", ())),
        per_try_timeout_s=once or None,
        backoff_s=given.get("backoff"),
    )


def _cors(given: Tree) -> Cors:
    return Cors(
        origins=tuple(map(_origin, given.get("allowOrigins", ()))),
        methods=tuple(given.get("allowMethods", ())),
        headers=tuple(given.get("allowHeaders", ())),
        exposed=tuple(given.get("exposeHeaders", ())),
        max_age_s=given.get("maxAge", 5),
        credentials=given.get("allowCredentials"),
    )


def _origin(text: str) -> Text:
    if text == "*":
        return Text(Compare.PRESENT)
    if "*" not in text:
        return Text(Compare.EXACT, text)
    return Text(Compare.REGEX, re.escape(text).replace(r"\*", ".*"))
