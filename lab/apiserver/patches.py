"""The four ways to change an object in place, as functions of JSON values. Pure.

RFC 6902, RFC 7386, Kubernetes' strategic merge (lists by key), and server-side apply without its ledger of fields.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

from lab.apiserver.kinds import MERGE_KEYS

JSON: Final = "application/json-patch+json"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"


def patched(media: str, before: Any, patch: Any, keys: Mapping[str, str] = MERGE_KEYS) -> Any:
    """`keys`: of the lists that STRATEGIC and APPLY merge item by item. Raises ValueError: the patch is none, or does
    not fit the object. KeyError: no such media type."""
    if media in (STRATEGIC, APPLY):
        return _strategic(copy.deepcopy(before), patch, keys)
    return _WAYS[media](copy.deepcopy(before), patch)


def _merge(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    after = before if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = _merge(after.get(name), value)
    return after


def _strategic(before: Any, patch: Any, keys: Mapping[str, str], name: str = "") -> Any:
    if isinstance(patch, list) and isinstance(before, list) and name in keys:
        return _merge_list(before, patch, keys, keys[name])
    if not isinstance(patch, dict):
        return patch
    after = before if isinstance(before, dict) else {}
    for each, value in patch.items():
        if value is None:
            after.pop(each, None)
        else:
            after[each] = _strategic(after.get(each), value, keys, each)
    return after


def _merge_list(before: list[Any], patch: list[Any], keys: Mapping[str, str], key: str) -> list[Any]:
    after = {item[key]: item for item in before}
    for item in patch:
        if item.get("$patch") == "delete":
            after.pop(item[key], None)
        else:
            after[item[key]] = _strategic(after.get(item[key]), item, keys)
    return list(after.values())


def _json(before: Any, patch: Any) -> Any:
    holder = {"": before}
    for step in patch:
        place = ["", *(_unescape(part) for part in step["path"].split("/")[1:])]
        _STEPS[step["op"]](holder, place, step)
    return holder[""]


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _find(holder: Any, place: list[str]) -> tuple[Any, Any]:
    """The container and the member's key in it, which may be new."""
    for part in place[:-1]:
        holder = _member(holder, part)
    last: Any = place[-1]
    if isinstance(holder, list):
        last = len(holder) if last == "-" else int(last)
    elif not isinstance(holder, dict):
        raise ValueError(f"{'/'.join(place)}: there is nothing to put it into")
    return holder, last


def _member(holder: Any, part: str) -> Any:
    try:
        return holder[int(part)] if isinstance(holder, list) else holder[part]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{part}: does not exist") from None


def _add(holder: Any, place: list[str], step: Any) -> None:
    container, key = _find(holder, place)
    if isinstance(container, list):
        container.insert(key, step["value"])
    else:
        container[key] = step["value"]


def _replace(holder: Any, place: list[str], step: Any) -> None:
    container, key = _find(holder, place)
    _member(container, str(key))
    container[key] = step["value"]


def _remove(holder: Any, place: list[str], _: Any) -> None:
    container, key = _find(holder, place)
    _member(container, str(key))
    del container[key]


def _test(holder: Any, place: list[str], step: Any) -> None:
    container, key = _find(holder, place)
    if _member(container, str(key)) != step["value"]:
        raise ValueError(f"testing path {step['path']} value failed")


_STEPS: Final[dict[str, Callable[[Any, list[str], Any], None]]] = {
    "add": _add,
    "replace": _replace,
    "remove": _remove,
    "test": _test,
}
_WAYS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    JSON: _json,
    MERGE: _merge,
}
