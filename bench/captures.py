"""The capture backends as a dimension: each is a lab of its own in the same run, in which only ours differs.

`CAPTURE=nft,other` measures ours once per backend: `ours` is the first, `ours-other` each further one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mesh.errors import OperatorError

BACKENDS: Final[dict[str, dict[str, str]]] = {"nft": {}}
"""Name -> the environment that chooses it, which `lab/daemons.py` has to hand on to the daemons."""


def chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or ["nft"]
    for name in names:
        if name not in BACKENDS:
            raise OperatorError(f"CAPTURE has no {name}; there are: {', '.join(BACKENDS)}")
    return names


def contender(names: list[str], name: str) -> str:
    return "ours" if name == names[0] else f"ours-{name}"


@contextmanager
def selected(name: str) -> Iterator[None]:
    """While a lab is brought up: its daemons get the backend's settings."""
    before = dict(os.environ)
    os.environ.update(BACKENDS[name])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
