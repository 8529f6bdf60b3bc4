"""Runs a check on generated input: the same cases every time; FUZZ_SECONDS adds others for so long."""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.corpus import TOLD

Edit = tuple[int, int, int, int]


def rounds() -> Iterator[int]:
    """One; with FUZZ_SECONDS as many as fit."""
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0"))
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1


def tell(name: str, cases: int) -> None:
    TOLD[f"fuzz {name}"] = (cases, cases)


def fuzz(name: str, cases: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """The decorated check raises on what must not be; hypothesis then shows the smallest such input."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        @functools.wraps(check)
        def run() -> None:
            ran = 0

            def counted(**given: Any) -> None:
                nonlocal ran
                ran += 1
                check(**given)

            checks = list(HealthCheck)
            for number in rounds():
                limits = settings(max_examples=cases, database=None, deadline=None, suppress_health_check=checks)
                seed(number)(limits(given(**strategies)(counted)))()
            tell(name, ran)

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look for fixtures in the check's signature
        return run

    return decorate


def edit(text: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """Bytes changed, cut out, doubled, put in; a piece of `other`."""
    for kind, at, length, byte in edits:
        at %= len(text) + 1
        end = at + length % 24
        match kind % 5:
            case 0:
                text = text[:at] + bytes([byte]) + text[at + 1 :]
            case 1:
                text = text[:at] + text[end:]
            case 2:
                text = text[:end] + text[at:]
            case 3:
                text = text[:at] + other[length % (len(other) + 1) :][:40] + text[at:]
            case _:
                text = text[:at] + bytes([byte]) + text[at:]
    return text


def damaged(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Noise, and good input with a few edits."""
    number = st.integers(0, 1 << 20)
    edits = st.lists(st.tuples(number, number, number, st.integers(0, 255)), max_size=6)
    return st.one_of(
        st.builds(edit, st.sampled_from(seeds), edits, st.sampled_from(seeds)),
        st.builds(edit, st.sampled_from(seeds), edits, st.sampled_from(seeds)),
        st.binary(max_size=200),
    )


def damage_by(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """The same without hypothesis, for what is run by the thousand in another process."""
    edits = [(*tuple(dice.randrange(1 << 20) for _ in range(3)), dice.randrange(256)) for _ in range(dice.randrange(6))]
    return edit(dice.choice(seeds), edits, dice.choice(seeds))  # type: ignore[arg-type]
