"""What became of an object, on the object: Istio's and the Gateway API's condition types, with their reasons or ours.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

from controlplane.documents import Document
from controlplane.objects import AuthorizationPolicy, Object
from controlplane.translate.backends import GROUP
from controlplane.translate.listeners import Facts
from controlplane.translate.notices import ACCEPTED, RECONCILED, WAYPOINT, Notice
from controlplane.validate import Level, Problem

TUNNEL: Final = "ZtunnelAccepted"
# What the tunnels judge; the rest is for waypoints and gateways.
_FOR_TUNNELS: Final = ("AuthorizationPolicy", "PeerAuthentication")
_GATEWAY_API: Final = ("GatewayClass", "Gateway", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "BackendTLSPolicy")
ATTACHED: Final = ("RequestAuthentication", "RateLimit", "EnvoyFilter")
_ISTIO: Final = ("VirtualService", "DestinationRule", "Gateway.networking.istio.io", "ServiceEntry", "Telemetry")
KINDS: Final = frozenset((*_FOR_TUNNELS, *_GATEWAY_API, *ATTACHED, *_ISTIO))
_INVALID: Final = "Invalid"
_DUPLICATE: Final = "Duplicate"


class InForce(Protocol):
    """What stands for the object now. `closed`: it refuses everything, because the document never was valid."""

    @property
    def file(self) -> str: ...
    @property
    def object(self) -> Object: ...
    @property
    def closed(self) -> bool: ...


def of(
    document: Document, force: InForce | None, notices: Iterable[Notice] = (), listeners: Iterable[Facts] = ()
) -> dict[str, Any]:
    """One entry of `policies` in the control plane's /status. `notices`: about this object, where it is used.
    `listeners`: a Gateway's."""
    kind = _type(document.key.kind, force)
    status, reason, message = _verdict(document, force, kind)
    told = [
        _condition(each.type, str(each.status), each.reason, each.message, each.parent) for each in _joined(notices)
    ]
    refused = reason in (_INVALID, _DUPLICATE)
    own = [_condition(kind, status, reason, message)] if refused or kind not in {each["type"] for each in told} else []
    found = {
        "kind": document.key.kind,
        "name": document.key.path,
        "file": document.file,
        "line": document.line,
        "conditions": own if refused else [*own, *told],
    }
    facts = [] if refused else [_listener(each) for each in listeners]
    return {**found, "listeners": facts} if facts else found


def _listener(facts: Facts) -> dict[str, Any]:
    kinds = [{"group": GROUP, "kind": kind} for kind in facts.kinds]
    return {"name": facts.name, "supportedKinds": kinds, "attachedRoutes": facts.routes}


def _joined(notices: Iterable[Notice]) -> Iterator[Notice]:
    """Of what is attached to several targets one condition, as in Istio: false when it is for any of them."""
    listed = list(notices)
    attached = [each for each in listed if each.type == WAYPOINT]
    if attached:
        worst = next((each for each in attached if not each.status), attached[0])
        said = "; ".join(dict.fromkeys(each.message for each in attached if each.message))
        yield replace(worst, parent="", message=said)
    yield from (each for each in listed if each.type != WAYPOINT)


def _condition(kind: str, status: str, reason: str, message: str, parent: str = "") -> dict[str, Any]:
    found = {"type": kind, "status": status, "reason": reason, "message": message}
    return {**found, "parent": parent} if parent else found


def _type(kind: str, force: InForce | None) -> str:
    found = force.object if force else None
    if kind in ATTACHED or (isinstance(found, AuthorizationPolicy) and found.targets):
        return WAYPOINT
    if kind in _FOR_TUNNELS:
        return TUNNEL
    return ACCEPTED if kind in _GATEWAY_API else RECONCILED


def _verdict(document: Document, force: InForce | None, kind: str) -> tuple[str, str, str]:
    problems = [_told(problem) for problem in dict.fromkeys(document.root.problems)]
    if any(problem.level is Level.ERROR for problem in document.root.problems):
        return "False", _INVALID, "; ".join([*problems, _instead(force)])
    if force is None or force.file != document.file:
        return "False", _DUPLICATE, "another document with this name is in force"
    if kind == TUNNEL and isinstance(force.object, AuthorizationPolicy) and force.object.action is None:
        return "False", "NotForTunnel", "; ".join(problems)
    if problems and kind == TUNNEL:
        return "False", "UnsupportedValue", "; ".join(problems)
    return "True", "Accepted", "; ".join(problems) or "in force as written"


def _told(problem: Problem) -> str:
    """An object of the API has no lines."""
    return f"line {problem.line}: {problem.why}" if problem.line else problem.why


def _instead(force: InForce | None) -> str:
    if force is None:
        return "nothing of it is in force"
    return "it refuses every connection that it could govern" if force.closed else "its last good state is in force"
