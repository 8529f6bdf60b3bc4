"""How long to wait before the API server is asked again: doubling, with a chance in it, so that a thousand agents do
not come back in step. Pure: the caller sleeps and throws the dice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    first_s: float = 0.2
    cap_s: float = 30.0
    _next_s: float = 0.0

    def failed(self, chance: float, at_least_s: float = 0.0) -> float:
        """Seconds to wait now, more next time. `chance`: from 0 to 1. `at_least_s`: what the server asked for."""
        whole = self._next_s or self.first_s
        self._next_s = min(whole * 2, self.cap_s)
        return max(at_least_s, whole * (0.5 + chance / 2))

    def worked(self) -> None:
        self._next_s = 0.0
