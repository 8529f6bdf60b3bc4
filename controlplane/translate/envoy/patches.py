"""EnvoyFilters put into resources that are already made. Pure.

What is inserted comes after the filters that say who asks and whether he may (`schema/envoy_filter.py` has judged it).
What does not fit into a resource there, as a timeout into a redirect, is left out of that one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from controlplane.l7.model import Role
from controlplane.l7.patches import Operation, Part, Patch
from controlplane.l7.routes import Target
from controlplane.schema.envoy_filter import AUTHORIZED, MESSAGES, NETWORK_FILTERS
from controlplane.translate.envoy import rbac
from controlplane.translate.envoy.common import Json
from mesh import envoy

_MANAGER: Final = "envoy.filters.network.http_connection_manager"
_ACTIONS: Final = {"ROUTE": "route", "REDIRECT": "redirect", "DIRECT_RESPONSE": "direct_response"}


def listener(found: Json, patches: Iterable[Patch], role: Role, port: int) -> Json:
    """`port`: a service's at a waypoint, the server's at a gateway."""
    here = [each for each in patches if _is_for(each, role, port, Part.HTTP_FILTER, Part.NETWORK_FILTER)]
    if not here:
        return found
    chains = [
        {**chain, "filters": [_filter(each, here) for each in chain["filters"]]} for chain in found["filter_chains"]
    ]
    return {**found, "filter_chains": chains}


def _filter(found: Json, patches: list[Patch]) -> Json:
    if found["name"] not in NETWORK_FILTERS:
        return found
    for patch in patches:
        if patch.part is Part.NETWORK_FILTER and patch.filter == found["name"]:
            found = _merged(Part.NETWORK_FILTER, found, {**json.loads(patch.value), "name": found["name"]})
        elif patch.part is Part.HTTP_FILTER and found["name"] == _MANAGER:
            config = found["typed_config"]
            found = {**found, "typed_config": {**config, "http_filters": _inserted(config["http_filters"], patch)}}
    return found


def _inserted(filters: list[Json], patch: Patch) -> list[Json]:
    names = [each["name"] for each in filters]
    first = names.index(rbac.ALLOW) + 1
    where = first
    if patch.operation is not Operation.FIRST and patch.filter and patch.filter != AUTHORIZED:
        if patch.filter not in names[first:]:
            return filters
        where = names.index(patch.filter) + (patch.operation is Operation.AFTER)
    elif patch.operation is Operation.AFTER and not patch.filter:
        where = len(filters) - 1
    return [*filters[:where], json.loads(patch.value), *filters[where:]]


def table(found: Json, patches: Iterable[Patch], role: Role, port: int) -> Json:
    here = [each for each in patches if _is_for(each, role, port, Part.HTTP_ROUTE, Part.VIRTUAL_HOST)]
    if not here:
        return found
    return {**found, "virtual_hosts": [_host(each, here, port) for each in found["virtual_hosts"]]}


def _host(found: Json, patches: list[Patch], port: int) -> Json:
    for patch in patches:
        if patch.host and patch.host not in _names(found, port):
            continue
        if patch.part is Part.VIRTUAL_HOST:
            found = _merged(Part.VIRTUAL_HOST, found, json.loads(patch.value))
        else:
            found = {**found, "routes": [_route(each, patch) for each in found["routes"]]}
    return found


def _names(host: Json, port: int) -> set[str]:
    """As EnvoyFilters call a virtual host: our name, a domain, and that with the port."""
    domains = {*host["domains"], host["name"].partition("|")[0].rpartition("/")[2]}
    return {host["name"], *domains, *(f"{each}:{port}" for each in domains)}


def _route(found: Json, patch: Patch) -> Json:
    named = not patch.route or found.get("name") == patch.route
    if not named or (patch.action and _ACTIONS[patch.action] not in found):
        return found
    return _merged(Part.HTTP_ROUTE, found, json.loads(patch.value))


def of_cluster(patches: Iterable[Patch], role: Role, target: Target) -> tuple[Patch, ...]:
    """Those that change what the cluster of a target is."""
    host = target.service.partition("/")[2]
    return tuple(
        each
        for each in patches
        if _is_for(each, role, target.port, Part.CLUSTER)
        and each.host in ("", host)
        and each.subset in ("", target.subset)
    )


def cluster(found: Json, patches: Iterable[Patch]) -> Json:
    for patch in patches:
        found = _merged(Part.CLUSTER, found, json.loads(patch.value))
    return found


def _is_for(patch: Patch, role: Role, port: int, *parts: Part) -> bool:
    return patch.part in parts and patch.role in ("", role) and patch.port in (0, port)


def _merged(part: Part, found: Json, change: Mapping[str, Any]) -> Json:
    """As Envoy's merge: values replace, lists grow. The resource as it was, if the two cannot be one."""
    merged = _deep(found, change)
    try:
        envoy.normal(MESSAGES[part], merged)
    except ValueError:
        return found
    return merged


def _deep(found: Mapping[str, Any], change: Mapping[str, Any]) -> Json:
    made = dict(found)
    for name, value in change.items():
        before = made.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            made[name] = _deep(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            made[name] = [*before, *value]
        else:
            made[name] = value
    return made
