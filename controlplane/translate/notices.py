"""What became of a document where it is used, as a condition on it: by Istio's and the Gateway API's types. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ACCEPTED: Final = "Accepted"
RESOLVED: Final = "ResolvedRefs"
PROGRAMMED: Final = "Programmed"
CONFLICTED: Final = "Conflicted"
WAYPOINT: Final = "WaypointAccepted"
RECONCILED: Final = "Reconciled"


@dataclass(frozen=True, slots=True, order=True)
class Notice:
    """`kind`: as in the configuration. `parent`: whose view it is (a route has one per parent); "" the object's own."""

    kind: str
    namespace: str
    name: str
    parent: str
    type: str
    status: bool
    reason: str
    message: str = ""

    @property
    def good(self) -> bool:
        """Whether all is well: of a conflict one hopes that there is none."""
        return self.status != (self.type == CONFLICTED)
