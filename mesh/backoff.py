"""How long to wait before trying again. Pure: the caller sleeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Doubles from `first_s` to `cap_s`; the defaults are Istio's for both of the tunnel's streams."""

    first_s: float = 0.010
    cap_s: float = 15.0
    _next_s: float = 0.0

    def failed(self) -> float:
        """Seconds to wait now; longer next time."""
        wait_s = self._next_s or self.first_s
        self._next_s = min(wait_s * 2, self.cap_s)
        return wait_s

    def worked(self) -> None:
        """The next failure starts from the beginning."""
        self._next_s = 0.0
