"""Localities: which endpoints are near, in Envoy's terms of groups, priorities and weights. Pure.

Istio's rules: `distribute` gives shares to localities; without it, failover by distance, which needs outlier detection
to ever take effect; `failoverPriority` compares labels instead of distance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.l7.traffic import LocalityRules
from controlplane.translate.envoy.world import Serving

Parts = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy is. `labels`: of its workload."""

    region: str = ""
    zone: str = ""
    subzone: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def parts(self) -> Parts:
        return self.region, self.zone, self.subzone


@dataclass(frozen=True, slots=True)
class Group:
    place: Parts
    members: tuple[Serving, ...]
    priority: int = 0
    weight: int = 0


def grouped(
    endpoints: Iterable[Serving], here: Place, failover: LocalityRules | None, rules: LocalityRules | None
) -> list[Group]:
    """`failover`: the rules, if there is outlier detection."""
    by_place: dict[tuple[int, Parts], list[Serving]] = defaultdict(list)
    active = rules if rules and rules.enabled else None
    for each in endpoints:
        found = each.workload.locality
        parts = (found.region, found.zone, found.subzone) if found else ("", "", "")
        rank = 0
        if active and failover and not active.distribute:
            rank = _by_labels(each, here, active.priority) if active.priority else _distance(parts, here, active)
        by_place[rank, parts].append(each)
    ranks = sorted({rank for rank, _ in by_place})
    groups = [
        Group(parts, tuple(all_), ranks.index(rank)) for (rank, parts), all_ in sorted(by_place.items(), key=_key)
    ]
    shares = _shares(here, active)
    return _distributed(groups, shares) if shares else groups


def _key(item: tuple[tuple[int, Parts], list[Serving]]) -> tuple[int, Parts]:
    return item[0]


def _distance(parts: Parts, here: Place, rules: LocalityRules) -> int:
    """0: same subzone, then zone, then region, then the region named for failover, then the rest."""
    if not here.region and not here.zone:
        return 0
    if parts[0] == here.region:
        if parts[1] == here.zone:
            return 0 if parts[2] == here.subzone else 1
        return 2
    wanted = dict(rules.failover).get(here.region)
    return 3 if wanted == parts[0] else 4


def _by_labels(each: Serving, here: Place, names: tuple[str, ...]) -> int:
    """Labels from the first on that agree count; `name=value` asks for that value."""
    labels = {**each.workload.labels, **_topology(each)}
    own = {**dict(here.labels), **_topology_of(here.parts)}
    for number, name in enumerate(names):
        key, equals, value = name.partition("=")
        wanted = value if equals else own.get(key)
        if labels.get(key) != wanted:
            return len(names) - number
    return 0


def _topology(each: Serving) -> dict[str, str]:
    found = each.workload.locality
    return _topology_of((found.region, found.zone, found.subzone)) if found else {}


def _topology_of(parts: Parts) -> dict[str, str]:
    names = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
    return {name: part for name, part in zip(names, parts, strict=True) if part}


def _shares(here: Place, rules: LocalityRules | None) -> tuple[tuple[str, int], ...]:
    for origin, shares in rules.distribute if rules else ():
        if _covers(origin, here.parts):
            return shares
    return ()


def _covers(pattern: str, parts: Parts) -> bool:
    for wanted, part in zip(pattern.split("/"), parts, strict=False):
        if wanted == "*":
            return True
        if wanted != part:
            return False
    return True


def _distributed(groups: list[Group], shares: tuple[tuple[str, int], ...]) -> list[Group]:
    """A share is divided among the localities that its pattern covers, by their endpoints; the others get nothing."""
    found: list[Group] = []
    left = list(groups)
    for pattern, share in shares:
        covered = [group for group in left if _covers(pattern, group.place)]
        left = [group for group in left if group not in covered]
        total = sum(len(group.members) for group in covered)
        for group in covered:
            weight = max(round(share * 1000 * len(group.members) / total), 1) if share else 0
            if weight:
                found.append(Group(group.place, group.members, 0, weight))
    return found
