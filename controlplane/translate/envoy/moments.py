"""What is not the same at this round as at the last one: whatever leans on nothing of it is not looked at. Pure.

Compared is by identity, which is a glance at each service: what is made of the same is the same object. Too much in a
difference costs work, too little would be a stale resource.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from controlplane.l7.model import L7
from controlplane.translate.envoy.world import View, is_same_endpoint
from controlplane.translate.identical import differing
from mesh.model import Workload

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One world and model. `mark`, `earlier`: this one and the one that `changed` is counted from; what was right then
    still is, if it leans on no key in there: services and workloads by key, endpoints by their service's."""

    mark: object = field(default_factory=object)
    earlier: object | None = None
    changed: frozenset[str] = NOTHING


def after(before: tuple[Moment, View, L7] | None, view: View, l7: L7) -> Moment:
    if before is None:
        return Moment()
    moment, seen, known = before
    if seen is view and known is l7:
        return moment
    return Moment(earlier=moment.mark, changed=frozenset(_changed(seen, view, known, l7)))


def _changed(seen: View, view: View, known: L7, l7: L7) -> Iterator[str]:
    old, new = seen.world, view.world
    yield from differing(old.services, new.services)
    yield from differing(known.destinations, l7.destinations)
    for uid in differing(old.workloads, new.workloads):
        yield uid
        yield from _served(old.workloads.get(uid), new.workloads.get(uid))


def _served(old: Workload | None, new: Workload | None) -> Iterator[str]:
    """The services of which this is another endpoint than before."""
    before, now = (each.services if each else {} for each in (old, new))
    same = old and new and is_same_endpoint(old, new)
    for key in before.keys() | now.keys():
        if not same or before.get(key) != now.get(key):
            yield key
