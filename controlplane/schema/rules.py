"""Where rules register: what no field table can say. A rule sees one object as it was read, and its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from controlplane.schema.decode import Check
from controlplane.validate import Field

Tree = Mapping[str, Any]
CHECKS: Final[dict[str, tuple[Check, ...]]] = {}


def rule(*names: str) -> Callable[[Check], Check]:
    """Run for each object with one of these names (a kind, a shape, or a path below one)."""

    def register(check: Check) -> Check:
        for name in names:
            CHECKS[name] = (*CHECKS.get(name, ()), check)
        return check

    return register


def need_one(field: Field, value: Tree, *names: str) -> None:
    """At least one of these fields."""
    if not any(name in value for name in names):
        field.fail(f"needs {' or '.join(names)}")


def exclude(field: Field, value: Tree, first: str, *others: str) -> None:
    """`first` allows none of the others."""
    for other in others:
        if first in value and other in value:
            field.get(other).fail(f"{first} and {other} exclude each other")


def same(field: Field, list_name: str, key: str, values: list[Any]) -> None:
    """Each value only once; the place is that of the later one."""
    seen: set[Any] = set()
    for index, value in enumerate(values):
        if value and value in seen:
            field.get(list_name).items()[index].fail(f"{key} {value!r} is given twice")
        seen.add(value)
