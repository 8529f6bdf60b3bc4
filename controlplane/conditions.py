"""What became of a policy, on the object: Istio's condition `ZtunnelAccepted`, with our reasons. Pure."""

from __future__ import annotations

from typing import Any, Final, Protocol

from controlplane.documents import Document
from controlplane.objects import AuthorizationPolicy, Object
from controlplane.validate import Level

KINDS: Final = ("AuthorizationPolicy", "PeerAuthentication")


class InForce(Protocol):
    """What stands for the object now. `closed`: it refuses everything, because the document never was valid."""

    @property
    def file(self) -> str: ...
    @property
    def object(self) -> Object: ...
    @property
    def closed(self) -> bool: ...


def of(document: Document, force: InForce | None) -> dict[str, Any]:
    """One entry of `policies` in the control plane's /status."""
    status, reason, message = _verdict(document, force)
    return {
        "kind": document.key.kind,
        "name": document.key.path,
        "file": document.file,
        "line": document.line,
        "conditions": [{"type": "ZtunnelAccepted", "status": status, "reason": reason, "message": message}],
    }


def _verdict(document: Document, force: InForce | None) -> tuple[str, str, str]:
    problems = [f"line {problem.line}: {problem.why}" for problem in dict.fromkeys(document.root.problems)]
    if any(problem.level is Level.ERROR for problem in document.root.problems):
        return "False", "Invalid", "; ".join([*problems, _instead(force)])
    if force is None or force.file != document.file:
        return "False", "Duplicate", "another document with this name is in force"
    if isinstance(force.object, AuthorizationPolicy) and force.object.action is None:
        return "False", "NotForTunnel", "; ".join(problems)
    if problems:
        return "False", "UnsupportedValue", "; ".join(problems)
    return "True", "Accepted", "in force as written"


def _instead(force: InForce | None) -> str:
    if force is None:
        return "nothing of it is in force"
    return "it refuses every connection that it could govern" if force.closed else "its last good state is in force"
