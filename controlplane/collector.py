"""When Python's garbage collector may leave out what there is: documents and what was made of them live long.

A full collection looks at every object: a third of a second with 1,000 services and their routes, in the middle of a
change. Cycles that are garbage in the moment of freezing stay forever, so it is done only when much has come.
"""

from __future__ import annotations

import gc
from typing import Final

GROWN: Final = 1.25


class Frozen:
    def __init__(self) -> None:
        self._size = 0

    def look(self, size: int) -> None:
        """`size`: of what is in force, in objects of any kind. Best when little else is under way."""
        if size > self._size * GROWN:
            gc.freeze()
            self._size = size
