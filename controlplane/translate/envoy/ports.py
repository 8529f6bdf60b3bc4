"""A destination without a port, of a service with several: the port that was asked for, as in Istio. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from controlplane.l7.model import Served
from controlplane.l7.routes import Forward, HttpRoute, L4Route, Share, Target

NOWHERE: Final = Target("")
Has = Callable[[str, int], bool]
"""Whether a service (by its key) has a port."""


def bound(each: Served, port: int, has: Has) -> Served:
    """What is served at that port; the same object when every destination names its own."""
    if not any(map(_is_open, _shares(each))):
        return each

    def bind(target: Target) -> Target:
        if not _is_open(target):
            return target
        return replace(target, port=port) if has(target.service, port) else NOWHERE

    return replace(
        each, http=tuple(_http(route, bind) for route in each.http), l4=tuple(_l4(route, bind) for route in each.l4)
    )


def asked(each: Served) -> list[str]:
    """The services, by key, whose ports may decide what is served."""
    return [target.service for target in _shares(each)]


def _is_open(target: Target) -> bool:
    return bool(target.service) and not target.port


def _shares(each: Served) -> list[Target]:
    found = [share.target for route in each.l4 for share in route.shares]
    for route in each.http:
        if isinstance(route.action, Forward):
            found += [share.target for share in route.action.shares]
        found += [mirror.target for mirror in route.mirrors]
    return found


def _bind(shares: tuple[Share, ...], bind: Callable[[Target], Target]) -> tuple[Share, ...]:
    return tuple(replace(share, target=bind(share.target)) for share in shares)


def _http(route: HttpRoute, bind: Callable[[Target], Target]) -> HttpRoute:
    action = route.action
    if isinstance(action, Forward):
        action = replace(action, shares=_bind(action.shares, bind))
    # A copy that goes nowhere is left out: it is not worth an error.
    copies = (replace(mirror, target=bind(mirror.target)) for mirror in route.mirrors)
    return replace(route, action=action, mirrors=tuple(each for each in copies if each.target.service))


def _l4(route: L4Route, bind: Callable[[Target], Target]) -> L4Route:
    return replace(route, shares=_bind(route.shares, bind))
