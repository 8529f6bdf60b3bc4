"""What should stand in the API is compared with what does, after every change, until nothing is left to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from mesh.backoff import Backoff

LONGEST_S: Final = 30.0


class Reconciler:
    """`once` says whether nothing is left to do; if something is, it is called again after a pause, which grows with
    jitter from `first_s` seconds to LONGEST_S."""

    def __init__(self, once: Callable[[], Awaitable[bool]], first_s: float) -> None:
        self._once, self._backoff = once, Backoff(first_s, LONGEST_S)
        self._dirty, self._busy = asyncio.Event(), False

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return not self._busy and not self._dirty.is_set()

    def touch(self) -> None:
        """Something that is compared may have changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._busy = True
            if await self._once():
                self._backoff.worked()
            else:
                await asyncio.sleep(self._backoff.failed() * (0.5 + random.random() / 2))
                self._dirty.set()
            self._busy = False
