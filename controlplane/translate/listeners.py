"""What is to be said of a Gateway's listeners: which are served, which routes they take, what is wrong. Pure.

Of listeners that nothing tells apart none is served (the Gateway API forbids to pick a winner).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from controlplane.objects import KubernetesGateway
from controlplane.translate.backends import GROUP, Grants
from controlplane.translate.gateways import WAYPOINT
from controlplane.translate.notices import ACCEPTED, CONFLICTED, PROGRAMMED, RESOLVED, Notice
from controlplane.translate.parents import KINDS_OF, Parents

Tree = Mapping[str, Any]
_HBONE: Final = "HBONE"
# What can share a port: told apart by the Host, or by the name that TLS asks for.
_FAMILIES: Final = {"HTTP": "HTTP", "HTTPS": "TLS", "TLS": "TLS", "TCP": "TCP"}


@dataclass(frozen=True, slots=True)
class Facts:
    """`routes`: how many are attached. `kinds`: of routes that it takes."""

    name: str
    routes: int
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Flaw:
    """`type`: of the condition that tells it. `serves`: the rest of the listener is in force."""

    type: str
    reason: str
    why: str
    serves: bool = False


class Listeners:
    """`credentials`: the names of those that exist, see `secrets.names`."""

    def __init__(self, parents: Parents, grants: Grants, credentials: set[str]) -> None:
        self._parents, self._grants, self._credentials = parents, grants, credentials
        self.notices: list[Notice] = []
        self.facts: dict[tuple[str, str], tuple[Facts, ...]] = {}

    def served(self, gateway: KubernetesGateway) -> list[Tree]:
        """Those that can be served; about all of them it is told what became of them."""
        listed: list[Tree] = gateway.spec.get("listeners", [])
        conflicts = dict(_conflicts(listed))
        flaws = [self._flaw(gateway, each, conflicts.get(each["name"])) for each in listed]
        where = gateway.meta.namespace, gateway.meta.name
        self.facts[where] = tuple(self._facts(gateway, each) for each in listed)
        for each, flaw in zip(listed, flaws, strict=True):
            self.notices += _of_listener(gateway, each["name"], flaw)
        self.notices += _of_gateway(gateway, flaws)
        return [each for each, flaw in zip(listed, flaws, strict=True) if not flaw or flaw.serves]

    def _flaw(self, gateway: KubernetesGateway, listener: Tree, conflict: str | None) -> _Flaw | None:
        protocols = (_HBONE,) if gateway.gateway_class == WAYPOINT else tuple(KINDS_OF)
        if listener["protocol"] not in protocols:
            return _Flaw(ACCEPTED, "UnsupportedProtocol", f"{listener['protocol']} is not served")
        if conflict:
            why = f"another listener of port {listener['port']} cannot be told from it"
            return _Flaw(CONFLICTED, conflict, why)
        return self._certificate(gateway, listener) or _wrong_kind(listener)

    def _certificate(self, gateway: KubernetesGateway, listener: Tree) -> _Flaw | None:
        for ref in listener.get("tls", {}).get("certificateRefs", ()):
            where = ref.get("namespace", gateway.meta.namespace)
            group, kind = ref.get("group", ""), ref.get("kind", "Secret")
            if (group, kind) != ("", "Secret"):
                return _Flaw(RESOLVED, "InvalidCertificateRef", f"{kind} {ref['name']} is not a Secret")
            if not self._grants.allow("Gateway", gateway.meta.namespace, (where, group, kind, ref["name"])):
                why = f"Secret {where}/{ref['name']} is not granted by a ReferenceGrant"
                return _Flaw(RESOLVED, "RefNotPermitted", why)
            if f"{where}/{ref['name']}" not in self._credentials:
                return _Flaw(RESOLVED, "InvalidCertificateRef", f"Secret {where}/{ref['name']} does not exist")
        return None

    def _facts(self, gateway: KubernetesGateway, listener: Tree) -> Facts:
        """A route that names the listener twice counts once."""
        place = gateway.meta.namespace, gateway.meta.name, listener["name"]
        attached = {(each.kind, each.key) for each, _ in self._parents.of_listener.get(place, ())}
        return Facts(listener["name"], len(attached), tuple(_kinds(listener)))


def _kinds(listener: Tree) -> Iterator[str]:
    served = KINDS_OF.get(listener["protocol"], ())
    wanted: list[Tree] = listener.get("allowedRoutes", {}).get("kinds", [])
    for kind in served:
        if not wanted or any((each.get("group", GROUP), each["kind"]) == (GROUP, kind) for each in wanted):
            yield kind


def _wrong_kind(listener: Tree) -> _Flaw | None:
    wanted: list[Tree] = listener.get("allowedRoutes", {}).get("kinds", [])
    good = tuple(_kinds(listener))
    for each in wanted:
        if each.get("group", GROUP) != GROUP or each["kind"] not in good:
            why = f"routes of kind {each['kind']} cannot be attached to a listener for {listener['protocol']}"
            return _Flaw(RESOLVED, "InvalidRouteKinds", why, serves=bool(good))
    return None


def _conflicts(listed: Iterable[Tree]) -> Iterator[tuple[str, str]]:
    """Name and reason. That names differ for one port and protocol the schema has seen to, but for HTTPS beside TLS."""
    for pair in combinations((each for each in listed if each["protocol"] in _FAMILIES), 2):
        one, other = pair
        if one["port"] != other["port"]:
            continue
        families = {_FAMILIES[each["protocol"]] for each in pair}
        names = {each.get("hostname", "").lower() for each in pair}
        if len(families) > 1 or families == {"TCP"}:
            yield from ((each["name"], "ProtocolConflict") for each in pair)
        elif len(names) == 1:
            yield from ((each["name"], "HostnameConflict") for each in pair)


def _of_listener(gateway: KubernetesGateway, name: str, flaw: _Flaw | None) -> Iterator[Notice]:
    about, kind = gateway.meta, flaw.type if flaw else ""
    wrong, why = (flaw.reason, flaw.why) if flaw else ("", "")
    conflicted = kind == CONFLICTED
    for each, good, reason in (
        (ACCEPTED, kind not in (ACCEPTED, CONFLICTED), wrong),
        (RESOLVED, kind != RESOLVED, wrong),
        (PROGRAMMED, not flaw or flaw.serves, wrong if conflicted else "Invalid"),
    ):
        word, said = (each, "") if good else (reason, why)
        yield Notice("Gateway", about.namespace, about.name, f"listener {name}", each, good, word, said)
    word, said = (wrong, why) if conflicted else ("NoConflicts", "")
    yield Notice("Gateway", about.namespace, about.name, f"listener {name}", CONFLICTED, conflicted, word, said)


def _of_gateway(gateway: KubernetesGateway, flaws: list[_Flaw | None]) -> Iterator[Notice]:
    """It serves what it can."""
    about, broken = gateway.meta, [each for each in flaws if each]
    good = not flaws or any(not each or each.serves for each in flaws)
    why = "; ".join(each.why for each in broken)
    accepted = "ListenersNotValid" if broken else ACCEPTED
    yield Notice("Gateway", about.namespace, about.name, "", ACCEPTED, good, accepted, why)
    yield Notice("Gateway", about.namespace, about.name, "", PROGRAMMED, good, PROGRAMMED if good else "Invalid", why)
