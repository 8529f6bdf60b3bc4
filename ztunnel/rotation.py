"""When to ask the CA for which identity. Pure: `now` and chance are arguments, Unix seconds throughout.

Rules: half of the lifetime, give or take a tenth, then renew; what connections wait for goes before what will be
needed, that before renewals; a failure is tried again after 1 s, doubling to 15 s, sooner after a change of
configuration; at most eight requests at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

CONCURRENCY: Final = 8
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 15.0
HURRY_S: Final = 0.2


class Urgency(IntEnum):
    """Lower goes first."""

    NOW = 0
    PREFETCH = 1
    RENEWAL = 2


@dataclass(slots=True)
class _Entry:
    due: float
    urgency: Urgency
    retry_s: float = FIRST_RETRY_S
    expires: float = 0.0
    asking: bool = False
    why: str = ""


class Rotation:
    """The timetable of one node's certificates."""

    def __init__(self, concurrency: int = CONCURRENCY) -> None:
        self._entries: dict[str, _Entry] = {}
        self._concurrency = concurrency

    def want(self, identity: str, urgency: Urgency, now: float) -> None:
        """Somebody needs it. A failure's waiting time still counts: impatience must not become a storm at the CA."""
        entry = self._entries.setdefault(identity, _Entry(now, urgency))
        if urgency is Urgency.NOW or not entry.expires:
            entry.urgency = min(entry.urgency, urgency)

    def unused(self, identity: str) -> None:
        self._entries.pop(identity, None)

    def due(self, now: float) -> list[str]:
        """What to ask for now; each is answered with `issued` or `failed`."""
        free = self._concurrency - sum(entry.asking for entry in self._entries.values())
        ready = [(e.urgency, e.due, name) for name, e in self._entries.items() if not e.asking and e.due <= now]
        chosen = [name for _, _, name in sorted(ready)[: max(free, 0)]]
        for name in chosen:
            self._entries[name].asking = True
        return chosen

    def issued(self, identity: str, not_before: float, not_after: float, now: float, chance: float) -> bool:
        """`chance` in [-1, 1]. False: nobody wants it any more."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        renew = not_before + (not_after - not_before) * (0.5 + 0.1 * chance)
        self._entries[identity] = _Entry(max(renew, now + FIRST_RETRY_S), Urgency.RENEWAL, expires=not_after)
        return True

    def failed(self, identity: str, why: str, now: float) -> bool:
        """False: nobody wants it any more."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        entry.asking, entry.why, entry.due = False, why, now + entry.retry_s
        entry.retry_s = min(entry.retry_s * 2, LAST_RETRY_S)
        return True

    def hurry(self, now: float) -> None:
        """The world changed: the CA may now know a workload that it refused a moment ago."""
        for entry in self._entries.values():
            if entry.why:
                entry.due = min(entry.due, now + HURRY_S)

    def wake_at(self) -> float | None:
        """When `due` will next have something; None: not before somebody calls `want`, `issued` or `failed`."""
        waiting = [entry.due for entry in self._entries.values() if not entry.asking]
        full = len(self._entries) - len(waiting) >= self._concurrency
        return None if full or not waiting else min(waiting)

    def expiries(self) -> dict[str, float]:
        """The end of each certificate in use."""
        return {name: entry.expires for name, entry in self._entries.items() if entry.expires}

    def wanted(self) -> set[str]:
        """Everything that is in use or waited for."""
        return set(self._entries)

    def troubles(self) -> dict[str, str]:
        """Why the last request of an identity failed."""
        return {name: entry.why for name, entry in self._entries.items() if entry.why}
