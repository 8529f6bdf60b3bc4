"""What every source of configuration offers. Owns no source.

A source says, per origin (a file), which documents it has now; it neither judges nor merges them: that is the store's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol

from controlplane.documents import Parsed

Contents = Mapping[str, Parsed]
"""Everything that a source holds, by origin. An origin that did not change maps to the very same `Parsed`."""


class News(NamedTuple):
    """`touched`: the origins that may differ from the state before; None: any. `contents` may be changed by the source
    as soon as it is asked for the next."""

    contents: Contents
    touched: frozenset[str] | None = None


class Source(Protocol):
    def changes(self) -> AsyncIterator[News]:
        """Each later state, in full. Never raises and never ends: what is wrong with a source is a finding."""
