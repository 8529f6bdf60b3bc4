"""HTTP routes of the model to Envoy's. Pure.

A route with several matches becomes several of Envoy's, in order. Whatever decides about a request is here and not in
the listener, so that open connections feel a change with their next request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from controlplane.l7.routes import (
    ClaimText,
    Compare,
    Cors,
    DirectResponse,
    Forward,
    HttpMatch,
    HttpRoute,
    NamedText,
    Redirect,
    Retries,
    Rewrite,
    Session,
    Share,
    Target,
    Text,
)
from controlplane.l7.traffic import Hash, Traffic
from controlplane.translate.envoy import limits
from controlplane.translate.envoy.common import (
    SOURCE,
    Json,
    extension,
    fraction,
    header_fields,
    header_match,
    matcher,
    of_namespace,
    outbound,
    percent,
    seconds,
    typed,
    without_empty,
)

FAULT: Final = "envoy.filters.http.fault"
CORS: Final = "envoy.filters.http.cors"
SESSION: Final = "envoy.filters.http.stateful_session"
JWT_METADATA: Final = "envoy.filters.http.jwt_authn"
JWT_PAYLOAD: Final = "payload"
TrafficOf = Callable[[Target], Traffic]
_MISSING: Final = "out|0||"


def routes(each: HttpRoute, traffic_of: TrafficOf, port: int) -> list[Json]:
    """In order; none when it is about another port. `port`: the service's, or the server's."""
    matches = [match for match in each.matches if match.port in (0, port)] if each.matches else [HttpMatch()]
    return [_route(each, match, traffic_of) for match in matches]


def _route(each: HttpRoute, match: HttpMatch, traffic_of: TrafficOf) -> Json:
    found: Json = {"match": http_match(match), **header_fields(each.request, "request")}
    found |= header_fields(each.response, "response")
    if each.name:
        found["name"] = each.name
    match each.action:
        case Redirect() as redirect:
            found["redirect"] = _redirect(redirect)
        case DirectResponse(status, body):
            found["direct_response"] = {"status": status, **({"body": {"inline_string": body}} if body else {})}
        case Forward(shares):
            found["route"] = _forward(each, match, shares, traffic_of)
    if filters := _filters(each):
        found["typed_per_filter_config"] = filters
    return found


# Matches --------------------------------------------------------------------------------------------------------------


def http_match(match: HttpMatch) -> Json:
    headers = [header_match(each) for each in match.headers]
    for name, text in ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme)):
        if text:
            headers.append(header_match(NamedText(name, text)))
    found: Json = {**_path(match.path), "headers": headers, "query_parameters": [_query(q) for q in match.query]}
    found["dynamic_metadata"] = [claim(each) for each in match.claims]
    if match.source_namespace:
        pattern = of_namespace(match.source_namespace)
        found["filter_state"] = [{"key": SOURCE, "string_match": {"safe_regex": {"regex": pattern}}}]
    return without_empty(found) if found.get("prefix") != "" else {**without_empty(found), "prefix": ""}


def _path(path: Text | None) -> Json:
    if path is None:
        return {"prefix": "/"}
    sensitive: Json = {"case_sensitive": False} if path.ignore_case else {}
    match path.how:
        case Compare.EXACT:
            return {"path": path.value, **sensitive}
        case Compare.PREFIX:
            return {"prefix": path.value, **sensitive}
        case Compare.SEGMENTS:
            bare = path.value.rstrip("/")
            return {"path_separated_prefix": bare, **sensitive} if bare else {"prefix": "/"}
        case Compare.SUFFIX:
            return {"safe_regex": {"regex": f".*{re.escape(path.value)}"}}
        case Compare.PRESENT:
            return {"prefix": "/"}
        case _:
            return {"safe_regex": {"regex": f"(?i){path.value}" if path.ignore_case else path.value}}


def _query(each: NamedText) -> Json:
    if each.text.how is Compare.PRESENT:
        return {"name": each.name, "present_match": True}
    return {"name": each.name, "string_match": matcher(each.text)}


def claim(each: ClaimText) -> Json:
    """A list matches when one of its items does."""
    text = matcher(each.text)
    either = [{"string_match": text}, {"list_match": {"one_of": {"string_match": text}}}]
    found: Json = {
        "filter": JWT_METADATA,
        "path": [{"key": JWT_PAYLOAD}, *({"key": part} for part in each.path)],
        "value": {"or_match": {"value_matchers": either}},
    }
    return {**found, "invert": True} if each.absent else found


# Actions --------------------------------------------------------------------------------------------------------------


def _redirect(redirect: Redirect) -> Json:
    codes = {301: "MOVED_PERMANENTLY", 302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT"}
    found = without_empty(
        {
            "scheme_redirect": redirect.scheme,
            "host_redirect": redirect.authority,
            "port_redirect": redirect.port or None,
            "path_redirect": redirect.path,
        }
    )
    if redirect.prefix is not None:
        found["prefix_rewrite"] = redirect.prefix
    return {**found, "response_code": codes.get(redirect.status, "PERMANENT_REDIRECT")}


def _forward(each: HttpRoute, match: HttpMatch, shares: tuple[Share, ...], traffic_of: TrafficOf) -> Json:
    found: Json = {"timeout": seconds(each.timeout_s or 0), **_clusters(shares), **_rewrite(each.rewrite, match)}
    traffic = traffic_of(shares[0].target)
    if each.retries:
        found["retry_policy"] = _retries(each.retries, hashed=traffic.hash is not None)
    if traffic.hash:
        found["hash_policy"] = [hash_policy(traffic.hash)]
    if each.mirrors:
        found["request_mirror_policies"] = [
            {"cluster": outbound(mirror.target), "runtime_fraction": fraction(mirror.percent)}
            for mirror in each.mirrors
            if mirror.percent
        ]
    if wanted := limits.actions(each.limits):
        found["rate_limits"] = wanted
    return found


def _clusters(shares: tuple[Share, ...]) -> Json:
    """A target that does not exist answers 500 for its share, as the Gateway API wants it."""
    live = tuple(share for share in shares if share.weight) or shares[:1]
    missing: Json = {"cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"}
    if len(live) == 1 and live[0].request == live[0].response == Share(live[0].target).request:
        name = outbound(live[0].target)
        return {"cluster": name, **(missing if name == _MISSING else {})}
    weighted = [
        {
            "name": outbound(share.target),
            "weight": share.weight,
            **header_fields(share.request, "request"),
            **header_fields(share.response, "response"),
        }
        for share in live
    ]
    if any(share.target.service == "" for share in live):
        return {"weighted_clusters": {"clusters": weighted}, **missing}
    return {"weighted_clusters": {"clusters": weighted}}


def _rewrite(rewrite: Rewrite | None, match: HttpMatch) -> Json:
    if rewrite is None:
        return {}
    found: Json = {}
    if rewrite.authority:
        found["host_rewrite_literal"] = rewrite.authority
    if rewrite.regex:
        pattern, substitution = rewrite.regex
        found["regex_rewrite"] = {"pattern": {"regex": pattern}, "substitution": substitution}
    elif rewrite.path:
        found["regex_rewrite"] = {"pattern": {"regex": "^[^?]*"}, "substitution": rewrite.path.replace("\\", "\\\\")}
    elif rewrite.prefix is not None:
        found |= _prefix_rewrite(rewrite.prefix, match.path)
    return found


def _prefix_rewrite(prefix: str, path: Text | None) -> Json:
    """Segments taken away must leave one slash (Gateway API: /foo/bar with / for /foo is /bar)."""
    if path and path.how is Compare.SEGMENTS and path.value.rstrip("/") and prefix in ("", "/"):
        pattern = f"^{re.escape(path.value.rstrip('/'))}/*"
        return {"regex_rewrite": {"pattern": {"regex": pattern}, "substitution": "/"}}
    if path and path.how is Compare.SEGMENTS:
        return {"prefix_rewrite": prefix.rstrip("/") or "/"}
    if path and path.how not in (Compare.PREFIX, Compare.EXACT):
        return {"regex_rewrite": {"pattern": {"regex": "^[^?]*"}, "substitution": prefix}}
    return {"prefix_rewrite": prefix} if prefix else {}


def _retries(retries: Retries, hashed: bool) -> Json:
    """A consistent hash leads to the same host again, so it is not kept from being chosen."""
    conditions = list(retries.conditions)
    if retries.statuses and "retriable-status-codes" not in conditions:
        conditions.append("retriable-status-codes")
    found: Json = {"retry_on": ",".join(conditions), "num_retries": retries.attempts}
    if retries.statuses:
        found["retriable_status_codes"] = list(retries.statuses)
    if retries.per_try_timeout_s:
        found["per_try_timeout"] = seconds(retries.per_try_timeout_s)
    if retries.backoff_s:
        found["retry_back_off"] = {"base_interval": seconds(retries.backoff_s)}
    if retries.other_hosts and not hashed:
        kind = "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        found["retry_host_predicate"] = [extension("envoy.retry_host_predicates.previous_hosts", kind)]
        found["host_selection_retry_max_attempts"] = "5"
    if retries.other_localities:
        kind = "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
        found["retry_priority"] = extension("envoy.retry_priorities.previous_priorities", kind, update_frequency=2)
    return found


def hash_policy(wanted: Hash) -> Json:
    """Only one: several would not be sticky."""
    if wanted.header:
        return {"header": {"header_name": wanted.header}}
    if wanted.query:
        return {"query_parameter": {"name": wanted.query}}
    if wanted.source_ip:
        return {"connection_properties": {"source_ip": True}}
    cookie: Json = {"name": wanted.cookie}
    if wanted.cookie_path:
        cookie["path"] = wanted.cookie_path
    if wanted.cookie_ttl_s is not None:
        cookie["ttl"] = seconds(wanted.cookie_ttl_s)
    if wanted.cookie_attributes:
        cookie["attributes"] = [{"name": name, "value": value} for name, value in wanted.cookie_attributes]
    return {"cookie": cookie}


# What filters are told of a route -------------------------------------------------------------------------------------


def _filters(each: HttpRoute) -> Json:
    found: Json = {}
    if each.delay or each.abort:
        found[FAULT] = typed("extensions.filters.http.fault.v3.HTTPFault", **_fault(each))
    if each.cors:
        found[CORS] = typed("extensions.filters.http.cors.v3.CorsPolicy", **_cors(each.cors))
    if each.session:
        kind = "extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute"
        found[SESSION] = typed(kind, stateful_session={"session_state": _session(each.session)})
    return found | limits.per_route(each.limits)


def _fault(each: HttpRoute) -> Json:
    fault: dict[str, Any] = {}
    if each.delay:
        fault["delay"] = {"fixed_delay": seconds(each.delay.seconds), "percentage": percent(each.delay.percent)}
    if each.abort:
        abort: Json = {"percentage": percent(each.abort.percent)}
        if each.abort.grpc_status is not None:
            abort["grpc_status"] = each.abort.grpc_status
        else:
            abort["http_status"] = each.abort.http_status
        fault["abort"] = abort
    return fault


def _session(session: Session) -> Json:
    if session.header:
        kind = "extensions.http.stateful_session.header.v3.HeaderBasedSessionState"
        return {"name": "envoy.http.stateful_session.header", "typed_config": {**typed(kind), "name": session.name}}
    # Without a time it ends with the browser. Not for scripts: nothing there is meant for them.
    cookie: Json = {"name": session.name, "path": "/", "attributes": [{"name": "HttpOnly"}]}
    if session.ttl_s:
        cookie["ttl"] = seconds(session.ttl_s)
    kind = "extensions.http.stateful_session.cookie.v3.CookieBasedSessionState"
    return extension("envoy.http.stateful_session.cookie", kind, cookie=cookie)


def _cors(cors: Cors) -> Json:
    found = without_empty(
        {
            "allow_origin_string_match": [matcher(origin) for origin in cors.origins],
            "allow_methods": ",".join(cors.methods),
            "allow_headers": ",".join(cors.headers),
            "expose_headers": ",".join(cors.exposed),
            "max_age": str(cors.max_age_s) if cors.max_age_s is not None else "",
            "allow_credentials": cors.credentials,
        }
    )
    found["filter_enabled"] = fraction(100)
    if not cors.forward_unmatched_preflights:
        found["forward_not_matching_preflights"] = False
    return found


def targets_of(each: Iterable[HttpRoute]) -> list[Target]:
    """Everything that these routes may send to or ask."""
    found: list[Target] = []
    for route in each:
        if isinstance(route.action, Forward):
            found += [share.target for share in route.action.shares]
        found += [mirror.target for mirror in route.mirrors]
        found += [limit.service for limit in route.limits if limit.service]
    return found
