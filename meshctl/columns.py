"""Tables for people and pipes: aligned, never cut, never coloured behind one's back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import yaml

OUTPUTS: Final = ("short", "json", "yaml")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Istio's look: upper-case header, columns as wide as their widest cell, at least one blank between them."""
    everything = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in everything) for i in range(len(header))]
    lines = (" ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in everything)
    return "\n".join(lines)


def document(kind: str, items: Any, output: str) -> str:
    """The stable machine form: apiVersion, kind, items."""
    whole = {"apiVersion": "nodemesh/v1", "kind": kind, "items": items}
    return json.dumps(whole, indent=2) if output == "json" else yaml.safe_dump(whole, sort_keys=False).rstrip()


def paint(text: str, colour: str) -> str:
    """`colour` red | green | yellow on a terminal; plain in a pipe and with NO_COLOR (no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{ {'red': 31, 'green': 32, 'yellow': 33}[colour] }m{text}\x1b[0m"
