"""Whose tokens were refused lately, so that whoever keeps bringing such is not asked about at the API server each time.

Owns what a refusal costs: the same token is refused from memory for a while, and an address that has brought too many
is not asked for at all until it has waited. Tokens that are accepted cost nothing, so a fleet that comes back at once
is not held up. No I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

REFUSED_S: Final = 10.0
PATIENCE: Final = 20
"""How many refusals in a row an address may have."""
FORGIVEN_S: Final = 3.0
"""One of them is forgotten after each such while."""
MOST: Final = 10_000


class Refusals:
    """`now` gives seconds. O(1), but for what has expired."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tokens: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        # When all that an address has done will be forgotten.
        self._clean_at: OrderedDict[str, float] = OrderedDict()

    def why(self, digest: bytes) -> str:
        """The sentence with which the token was refused just now; "" if it was not."""
        since, why = self._tokens.get(digest, (0.0, ""))
        return why if why and 0 <= self._now() - since < REFUSED_S else ""

    def wait_s(self, address: str) -> float:
        """How long the address has to wait until it is asked for again; 0: it is."""
        owed_s = self._clean_at.get(address, 0.0) - self._now()
        return max(0.0, owed_s - (PATIENCE - 1) * FORGIVEN_S)

    def add(self, digest: bytes, address: str, why: str) -> None:
        now = self._now()
        self._tokens[digest] = now, why
        self._tokens.move_to_end(digest)
        self._clean_at[address] = max(now, self._clean_at.get(address, 0.0)) + FORGIVEN_S
        self._clean_at.move_to_end(address)
        self._shorten()

    def _shorten(self) -> None:
        while len(self._tokens) > MOST:
            self._tokens.popitem(last=False)
        while len(self._clean_at) > MOST:
            self._clean_at.popitem(last=False)
