"""Rate limits: token buckets in each Envoy, or a rate-limit service that all of them ask. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from controlplane.l7.routes import Compare, Dimension, HttpMatch, Limit, NamedText, Per, Text
from controlplane.translate.envoy.common import (
    SOURCE,
    Json,
    extension,
    fraction,
    header_match,
    outbound,
    seconds,
    typed,
)

LOCAL: Final = "envoy.filters.http.local_ratelimit"
GLOBAL: Final = "envoy.filters.http.ratelimit"
_LOCAL_TYPE: Final = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_TIMEOUT_S: Final = 0.25
_MATCHED: Final = "matched"


def per_route(limits: Iterable[Limit]) -> Json:
    """The filters' configuration for a route or a virtual host."""
    local = [each for each in limits if each.service is None]
    if not local:
        return {}
    return {LOCAL: typed(_LOCAL_TYPE, **_local(local))}


def _local(limits: list[Limit]) -> Json:
    """One bucket for all is the filter's own; each with dimensions is a descriptor's."""
    general = [each for each in limits if not each.dimensions and not each.matches]
    special = [each for each in limits if each.dimensions or each.matches]
    tightest = min(general, key=lambda each: each.tokens / each.every_s) if general else None
    whole = bucket(tightest) if tightest else {"max_tokens": 4294967295, "fill_interval": "1s"}
    found: Json = {
        "stat_prefix": "local",
        "token_bucket": whole,
        "filter_enabled": fraction(100),
        "filter_enforced": fraction(100),
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    }
    if special:
        found["descriptors"] = [
            {
                "entries": [
                    *([{"key": _MATCHED, "value": limit.name}] if limit.matches else []),
                    *({"key": each.key, **({"value": each.value} if each.value else {})} for each in limit.dimensions),
                ],
                "token_bucket": bucket(limit),
            }
            for limit in special
        ]
    return found


def bucket(limit: Limit) -> Json:
    return {
        "max_tokens": limit.tokens,
        "tokens_per_fill": limit.tokens,
        "fill_interval": seconds(max(limit.every_s, 0.05)),
    }


def actions(limits: Iterable[Limit]) -> list[Json]:
    """A route's `rate_limits`: what is told of a request."""
    found = []
    for limit in limits:
        dimensions = [_action(each) for each in limit.dimensions]
        who = {"stage": _stage(limit)} if limit.service else {}
        if limit.service and not dimensions:
            dimensions = [{"generic_key": {"descriptor_value": limit.name}}]
        if limit.matches:
            found += [{**who, "actions": [_matched(limit.name, match), *dimensions]} for match in limit.matches]
        elif dimensions:
            found.append({**who, "actions": dimensions})
    return found


def _stage(limit: Limit) -> int:
    """By which a filter knows what is meant for it; 0 are the local ones."""
    return 1 + limit.place


def _matched(name: str, match: HttpMatch) -> Json:
    """One entry more when a request fits; when it does not, nothing is told of it. A path without its query."""
    headers = [header_match(each) for each in match.headers]
    if match.method:
        headers.append(header_match(NamedText(":method", match.method)))
    if match.path:
        headers.append({"name": ":path", "string_match": {"safe_regex": {"regex": _path(match.path)}}})
    headers = headers or [{"name": ":method", "present_match": True}]
    return {"header_value_match": {"descriptor_key": _MATCHED, "descriptor_value": name, "headers": headers}}


def _path(path: Text) -> str:
    value = path.value if path.how is Compare.REGEX else re.escape(path.value)
    tail = {Compare.EXACT: "", Compare.REGEX: "", Compare.SEGMENTS: "(/[^?]*)?"}.get(path.how, "[^?]*")
    head = "[^?]*" if path.how is Compare.SUFFIX else ""
    flags = "(?i)" if path.ignore_case else ""
    return f"{flags}{head}(?:{value}){'' if path.how is Compare.SUFFIX else tail}(\\?.*)?"


def _action(each: Dimension) -> Json:
    match each.per:
        case Per.PRINCIPAL:
            return _expression(each.key, f"filter_state['{SOURCE}']")
        case Per.CLIENT_ADDRESS:
            return {"remote_address": {}}
        case Per.PATH:
            return _header(each.key, ":path")
        case Per.METHOD:
            return _header(each.key, ":method")
        case Per.HEADER:
            return _header(each.key, each.header)


def _header(key: str, name: str) -> Json:
    return {"request_headers": {"header_name": name, "descriptor_key": key}}


def _expression(key: str, text: str) -> Json:
    kind = "extensions.rate_limit_descriptors.expr.v3.Descriptor"
    return {"extension": extension("envoy.rate_limit_descriptors.expr", kind, descriptor_key=key, text=text)}


def global_filter(limit: Limit) -> Json:
    """The filter that asks this limit's service."""
    assert limit.service
    return typed(
        "extensions.filters.http.ratelimit.v3.RateLimit",
        domain=limit.domain,
        stage=_stage(limit),
        failure_mode_deny=not limit.fail_open,
        timeout=seconds(_TIMEOUT_S),
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        rate_limit_service=_service(limit),
    )


def _service(limit: Limit) -> Json:
    assert limit.service
    grpc = {"envoy_grpc": {"cluster_name": outbound(limit.service)}}
    return {"transport_api_version": "V3", "grpc_service": grpc}


def tcp_filters(limits: Iterable[Limit]) -> list[Json]:
    """For connections; the client is refused before anything is forwarded."""
    found = []
    for limit in limits:
        if limit.service:
            entries = [{"key": "generic_key", "value": limit.name}]
            kind = "extensions.filters.network.ratelimit.v3.RateLimit"
            found.append(
                extension(
                    "envoy.filters.network.ratelimit",
                    kind,
                    stat_prefix="global",
                    domain=limit.domain,
                    descriptors=[{"entries": entries}],
                    failure_mode_deny=not limit.fail_open,
                    timeout=seconds(_TIMEOUT_S),
                    rate_limit_service=_service(limit),
                )
            )
        else:
            kind = "extensions.filters.network.local_ratelimit.v3.LocalRateLimit"
            found.append(
                extension(
                    "envoy.filters.network.local_ratelimit", kind, stat_prefix="local", token_bucket=bucket(limit)
                )
            )
    return found
