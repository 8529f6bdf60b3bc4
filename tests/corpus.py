"""Tables of hostile input: every case runs, whatever became of the one before, and the summary tells how many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

TOLD: dict[str, tuple[int, int]] = {}
"""By corpus: cases that ran, cases that passed."""


class Corpus:
    """A failed case does not stop the others; leaving the block fails with all of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed: list[str] = []
        self._ran = 0

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        ran, passed = TOLD.get(self._name, (0, 0))
        TOLD[self._name] = ran + self._ran, passed + self._ran - len(self._failed)
        if kind is None:
            assert not self._failed, "\n".join(self._failed)

    @contextlib.contextmanager
    def case(self, name: object) -> Iterator[None]:
        self._ran += 1
        try:
            yield
        except Exception as error:
            self._failed.append(f"{name}: {type(error).__name__}: {error}")
