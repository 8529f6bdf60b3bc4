"""Parts of a VirtualService's routes to the model's: matches, actions, faults, retries, headers. Pure.

What is written as in the first versions of the API is read as it was meant then. Hosts are resolved by whoever calls.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from controlplane.l7.routes import (
    Abort,
    ClaimText,
    Compare,
    Cors,
    Delay,
    DirectResponse,
    HeaderChanges,
    HttpMatch,
    Mirror,
    NamedText,
    Redirect,
    Retries,
    Rewrite,
    Share,
    Target,
    Text,
)

Tree = Mapping[str, Any]
# A `destination` to what it names.
Resolve = Callable[[Tree], Target]
CLAIMS: Final = "@request.auth.claims"
_NOT_HEADERS: Final = ("uri", "scheme", "method", "authority")
_AUTHORITY: Final = ("host", ":authority")
GRPC_CODES: Final = {
    name: code
    for code, name in enumerate(
        (
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        )
    )
}


def text(match: Tree, ignore_case: bool = False) -> Text:
    """A StringMatch; one that asks for nothing, or for `*`, asks for presence."""
    if "exact" in match:
        return Text(Compare.EXACT, match["exact"], ignore_case)
    if "prefix" in match:
        return Text(Compare.PREFIX, match["prefix"], ignore_case)
    if match.get("regex", "*") != "*":
        return Text(Compare.REGEX, match["regex"])
    return Text(Compare.PRESENT)


def match(given: Tree) -> HttpMatch:
    """Without what asks for the source's labels: no match of that kind comes here."""
    headers: list[NamedText] = []
    claims: list[ClaimText] = []
    for part, absent in (("headers", False), ("withoutHeaders", True)):
        for name, wanted in given.get(part, {}).items():
            if name.startswith(CLAIMS):
                claims.append(ClaimText(claim_path(name), text(wanted), absent))
            elif name not in _NOT_HEADERS:
                headers.append(NamedText(name.lower(), text(wanted), absent))
    uri = given.get("uri")
    return HttpMatch(
        path=text(uri, given.get("ignoreUriCase", False)) if uri else None,
        method=_if(given, "method"),
        authority=_if(given, "authority"),
        scheme=_if(given, "scheme"),
        headers=tuple(headers),
        query=tuple(NamedText(name, text(wanted)) for name, wanted in given.get("queryParams", {}).items()),
        claims=tuple(claims),
        port=given.get("port", 0),
        source_namespace=given.get("sourceNamespace", ""),
    )


def claim_path(key: str) -> tuple[str, ...]:
    """`[a][b]`, or `.a.b` as it was written once."""
    rest = key.removeprefix(CLAIMS)
    return tuple(re.findall(r"\[([^\]]+)\]", rest)) or tuple(part for part in rest.split(".") if part)


def _if(given: Tree, name: str) -> Text | None:
    return text(given[name]) if given.get(name) else None


def changes(given: Tree) -> HeaderChanges:
    """HeaderOperations, without the authority: that is a rewrite."""
    return HeaderChanges(
        set={name: value for name, value in given.get("set", {}).items() if name.lower() not in _AUTHORITY},
        add=dict(given.get("add", {})),
        remove=tuple(given.get("remove", ())),
    )


def _early(given: Tree, add: tuple[str, ...], remove: str) -> HeaderChanges:
    """The names of fields before there was `headers`; what to remove was a mapping once."""
    added: dict[str, str] = {}
    for name in add:
        added |= given.get(name, {})
    return HeaderChanges(add=added, remove=tuple(given.get(remove, ())))


def _and(one: HeaderChanges, other: HeaderChanges) -> HeaderChanges:
    return HeaderChanges({**one.set, **other.set}, {**one.add, **other.add}, one.remove + other.remove)


def request_changes(given: Tree) -> HeaderChanges:
    early = _early(given, ("appendHeaders", "appendRequestHeaders"), "removeRequestHeaders")
    return _and(early, changes(given.get("headers", {}).get("request", {})))


def response_changes(given: Tree) -> HeaderChanges:
    early = _early(given, ("appendResponseHeaders",), "removeResponseHeaders")
    return _and(early, changes(given.get("headers", {}).get("response", {})))


def shares(given: list[Tree], resolve: Resolve) -> tuple[Share, ...]:
    """A single one needs no weight; of several, those without one get nothing."""
    if len(given) == 1:
        return (_share(given[0], 1, resolve),)
    return tuple(_share(each, each["weight"], resolve) for each in given if each.get("weight"))


def _share(given: Tree, weight: int, resolve: Resolve) -> Share:
    return Share(resolve(given["destination"]), weight, request_changes(given), response_changes(given))


def redirect(given: Tree, asked: int) -> Redirect:
    """`asked`: the port that the client asked for, 0 if it is not known. Without one the scheme's own is meant."""
    port = asked if given.get("derivePort") == "FROM_REQUEST_PORT" else given.get("port", 0)
    return Redirect(
        status=given.get("redirectCode") or 301,
        scheme=given.get("scheme", ""),
        authority=given.get("authority", ""),
        port=port,
        path=given.get("uri", ""),
        prefix=given.get("prefixRewrite"),
    )


def direct_response(given: Tree) -> DirectResponse:
    body: Tree = given.get("body", {})
    raw = base64.b64decode(body.get("bytes", "")).decode(errors="replace")
    return DirectResponse(given["status"], body.get("string", raw))


def rewrite(given: Tree) -> Rewrite | None:
    """Of a route: its `rewrite`, and the authority that its headers set."""
    asked: Tree = given.get("rewrite", {})
    setting: Tree = given.get("headers", {}).get("request", {}).get("set", {})
    authority = next((value for name, value in setting.items() if name.lower() in _AUTHORITY), "")
    regex: Tree = asked.get("uriRegexRewrite", {})
    found = Rewrite(
        prefix=asked.get("uri"),
        regex=(regex["match"], regex.get("rewrite", "")) if regex else None,
        authority=asked.get("authority", authority),
    )
    return found if found != Rewrite() else None


def retries(given: Tree | None, default: Tree | None) -> Retries | None:
    """`default`: the mesh's, else Istio's own."""
    policy = default if given is None else given
    if policy is None:
        return Retries()
    if policy.get("attempts", 2) == 0:
        return None
    conditions, statuses = retry_on(policy.get("retryOn", ""))
    standard = Retries()
    return Retries(
        attempts=policy.get("attempts", standard.attempts),
        conditions=conditions or ((standard.conditions) if not statuses else ()),
        statuses=statuses or (standard.statuses if not conditions else ()),
        per_try_timeout_s=policy.get("perTryTimeout"),
        backoff_s=policy.get("backoff"),
        other_hosts=policy.get("retryIgnorePreviousHosts", True),
        other_localities=policy.get("retryRemoteLocalities", False),
    )


def retry_on(words: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Envoy's conditions, and the numbers among them."""
    listed = [word.strip() for word in words.split(",") if word.strip()]
    statuses = tuple(int(word) for word in listed if word.isdecimal())
    return tuple(word for word in listed if not word.isdecimal() and word != "retriable-status-codes"), statuses


def percent(given: Tree, early: str = "percent") -> float:
    """All, if nothing is said."""
    return float(given.get("percentage", {}).get("value", given.get(early, 100.0)))


def delay(fault: Tree) -> Delay | None:
    given: Tree = fault.get("delay", {})
    return Delay(percent(given), given["fixedDelay"]) if given else None


def abort(fault: Tree) -> Abort | None:
    given: Tree = fault.get("abort", {})
    if not given:
        return None
    if "httpStatus" in given:
        return Abort(percent(given), http_status=given["httpStatus"])
    status = given["grpcStatus"]
    return Abort(percent(given), grpc_status=GRPC_CODES[status] if status in GRPC_CODES else int(status))


def mirrors(route: Tree, resolve: Resolve) -> tuple[Mirror, ...]:
    """None for a share of nothing."""
    listed = [(each["destination"], percent(each)) for each in route.get("mirrors", ())]
    if "mirror" in route:
        share = route.get("mirrorPercentage", {}).get("value", route.get("mirrorPercent", 100))
        listed.append((route["mirror"], float(share)))
    return tuple(Mirror(resolve(destination), share) for destination, share in listed if share > 0)


def cors(given: Tree | None) -> Cors | None:
    if given is None:
        return None
    early = tuple(
        Text(Compare.PRESENT) if each == "*" else Text(Compare.EXACT, each) for each in given.get("allowOrigin", ())
    )
    age = given.get("maxAge")
    return Cors(
        origins=(*early, *(text(each) for each in given.get("allowOrigins", ()))),
        methods=tuple(given.get("allowMethods", ())),
        headers=tuple(given.get("allowHeaders", ())),
        exposed=tuple(given.get("exposeHeaders", ())),
        max_age_s=int(age) if age is not None else None,
        credentials=given.get("allowCredentials"),
        forward_unmatched_preflights=given.get("unmatchedPreflights") != "IGNORE",
    )
