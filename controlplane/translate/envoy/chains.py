"""Which way a connection takes at a waypoint: filter chains, and the matcher that chooses one. Pure.

The first route with a true match, as written, then the service itself. A match is never wider than it says: what cannot
be seen of a connection (a server name at a port of plain TCP, an address when it came by name) is not true of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controlplane.l7.routes import L4Match, L4Route, Share, Target
from controlplane.translate.envoy.common import SOURCE, Json, extension, of_namespace, typed
from mesh.model import AppProtocol, IPNetwork

_INPUTS: Final = "extensions.matching.common_inputs.network.v3"
_SNIFFED: Final = ("http/1.0", "http/1.1", "h2c")
# Elsewhere a server may speak first, and would wait for a client that waits for it.
_SHOWS_NAMES: Final = (AppProtocol.TLS, AppProtocol.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Way:
    """`matches`: any of them; none is always."""

    shares: tuple[Share, ...]
    matches: tuple[L4Match, ...] = ()


def ways(l4: Sequence[L4Route], target: Target, protocol: AppProtocol) -> tuple[Way, ...]:
    """In order, of one port; the last one, and no other, takes every connection."""
    found: list[Way] = []
    for route in l4:
        fitting = [each for each in route.matches if _can_be(each, target.port, protocol)]
        if route.matches and not fitting:
            continue
        matches = tuple(replace(each, port=0) for each in fitting)
        if not matches or L4Match() in matches:
            return (*found, Way(route.shares))
        found.append(Way(route.shares, matches))
    return (*found, Way((Share(target),)))


def _can_be(match: L4Match, port: int, protocol: AppProtocol) -> bool:
    return match.port in (0, port) and (not match.sni or protocol in _SHOWS_NAMES)


def by_name(listed: Iterable[Way]) -> bool:
    return any(match.sni for way in listed for match in way.matches)


def chosen(web: Json | None, plain: Sequence[tuple[Way, Json]]) -> Json:
    """A listener's chains, several of them. `web`: for what was recognised as HTTP; `plain`: in order, last for all."""
    chains, matchers = [], []
    if web:
        chains.append({"name": "http", **web})
        sniffed = [_single("ApplicationProtocolInput", {"exact": f"'{word}'"}) for word in _SNIFFED]
        matchers.append({"predicate": _any(sniffed), "on_match": _goes_to("http")})
    for number, (way, chain) in enumerate(plain):
        name = f"tcp-{number}"
        chains.append({"name": name, **chain})
        if way.matches:
            matchers.append({"predicate": _any([_match(each) for each in way.matches]), "on_match": _goes_to(name)})
    matcher = {"matcher_list": {"matchers": matchers}, "on_no_match": _goes_to(chains[-1]["name"])}
    return {"filter_chains": chains, "filter_chain_matcher": matcher}


def _goes_to(name: str) -> Json:
    value = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}
    return {"action": {"name": name, "typed_config": value}}


def _match(match: L4Match) -> Json:
    parts: list[Json] = []
    if match.sni:
        parts.append(_any([_server_name(each) for each in match.sni]))
    if match.networks:
        parts.append(_within("DestinationIPInput", match.networks))
    if match.sources:
        parts.append(_within("SourceIPInput", match.sources))
    if match.source_namespace:
        regex = {"google_re2": {}, "regex": of_namespace(match.source_namespace)}
        parts.append(_single("FilterStateInput", {"safe_regex": regex}, key=SOURCE))
    return parts[0] if len(parts) == 1 else {"and_matcher": {"predicate": parts}}


def _any(parts: list[Json]) -> Json:
    return parts[0] if len(parts) == 1 else {"or_matcher": {"predicate": parts}}


def _server_name(name: str) -> Json:
    return _single("ServerNameInput", {"suffix": name[1:]} if name.startswith("*") else {"exact": name})


def _single(kind: str, value: Json, **fields: str) -> Json:
    return {"single_predicate": {"input": _input(kind, **fields), "value_match": value}}


def _within(kind: str, networks: Iterable[IPNetwork]) -> Json:
    name, what = "envoy.matching.matchers.ip", "extensions.matching.input_matchers.ip.v3.Ip"
    within = extension(name, what, stat_prefix="networks", cidr_ranges=[cidr(each) for each in networks])
    return {"single_predicate": {"input": _input(kind), "custom_match": within}}


def _input(kind: str, **fields: str) -> Json:
    return {"name": kind, "typed_config": typed(f"{_INPUTS}.{kind}", **fields)}


def cidr(network: IPNetwork) -> Json:
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}
