"""Label and field selectors. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

Matches = Callable[[dict[str, Any]], bool]
FIELDS: Final = ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase")
_SET: Final = re.compile(r"(\S+) (in|notin) \(([^)]*)\)")


def selector(labels: str, fields: str) -> Matches:
    """Raises ValueError: not understood."""
    tests = [_label(part) for part in re.split(r",(?![^(]*\))", labels) if part]
    tests += [_field(part) for part in fields.split(",") if part]
    return lambda item: all(test(item) for test in tests)


def _label(part: str) -> Matches:
    if found := _SET.fullmatch(part.strip()):
        name, word, values = found[1], found[2], {each.strip() for each in found[3].split(",")}
        return lambda item: (_labels(item).get(name) in values) is (word == "in")
    name, operator, value = _split(part)
    if not operator:
        bare = name.removeprefix("!")
        return lambda item: (bare in _labels(item)) is (bare == name)
    return lambda item: (_labels(item).get(name) == value) is (operator != "!=")


def _field(part: str) -> Matches:
    name, operator, value = _split(part)
    if name not in FIELDS or not operator:
        raise ValueError(f"field label not supported: {name}")
    return lambda item: (str(_at(item, name.split(".")) or "") == value) is (operator != "!=")


def _split(part: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"([^=!]+|![^=]+)(?:(==|=|!=)(.*))?", part.strip())
    if not found:
        raise ValueError(f"unable to parse requirement: {part}")
    return found[1], found[2] or "", found[3] or ""


def _labels(item: dict[str, Any]) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def _at(item: Any, path: list[str]) -> Any:
    for part in path:
        item = item.get(part) if isinstance(item, dict) else None
    return item
