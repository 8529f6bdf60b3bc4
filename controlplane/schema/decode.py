"""A document to plain values, by the tables: what is not there, not allowed or of the wrong type is a sentence.

An object becomes a dict with camelCase names of what is present, durations become seconds, enumerations stay words.
What no table can say is said by `Checks`: functions by an object's name in the tables, run where such an object was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import re2
import yaml

from controlplane.schema.outline import PATTERNS, Bound, Type
from controlplane.validate import NULL, Field

Check = Callable[[Field, Mapping[str, Any]], None]
Checks = Mapping[str, tuple[Check, ...]]
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO: Final = re.compile(r"-?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+")
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_GEP_2257: Final = re.compile("([0-9]{1,5}(h|m|s|ms)){1,4}")
_MAX_REGEX: Final = 1024
_RE2: Final[Any] = re2  # has no types
_QUIET: Final = _RE2.Options()
_QUIET.log_errors = False


def decode(field: Field, table: Type, checks: Checks) -> Any:
    """None: it is not there. Mistakes go to the field's problems; what is returned is then incomplete."""
    if not field.present:
        return None
    if table.legacy:
        field.warn("is a field of an earlier version of this API; read as it was meant then")
    if table.wrap == "[]":
        return _list(field, table, checks)
    if table.wrap == "<>":
        return {name: _value(inner, table, checks) for name, inner in field.entries()}
    return _value(field, table, checks)


def _list(field: Field, table: Type, checks: Checks) -> list[Any]:
    items = field.items()
    _bounded(field, len(items), table.items, "{} entries")
    for item in items:
        if not item.present:
            item.fail("is empty")
    return [_value(item, table, checks) for item in items]


def _value(field: Field, table: Type, checks: Checks) -> Any:
    if table.kind == "{}":
        return _object(field, table, checks)
    return _SCALARS[table.kind](field, table)


def _object(field: Field, table: Type, checks: Checks) -> dict[str, Any]:
    if table.fields:
        field.only(*table.fields)
    found: dict[str, Any] = {}
    for name, inner in table.fields.items():
        value = field.get(name)
        if value.present:
            found[name] = decode(value, inner, checks)
        elif inner.required:
            value.fail("is required")
    for group in table.choices:
        given = [name for name in group if name in found]
        if len(given) > 1:
            field.fail(f"{' and '.join(given)} exclude each other")
    for check in checks.get(table.name, ()):
        check(field, found)
    return found


def _bounded(field: Field, number: float, bound: Bound, what: str) -> None:
    low, high = bound
    if (low is not None and number < low) or (high is not None and number > high):
        allowed = f"from {low or 0:g} to {high:g}" if high is not None else f"at least {low:g}"
        field.fail(f"{what.format(f'{number:g}')}: must be {allowed}")


def _string(field: Field, table: Type) -> str:
    text = field.string()
    _bounded(field, len(text), table.length, "{} characters")
    if table.pattern and not _RE2.search(PATTERNS.get(table.pattern, table.pattern), text):
        field.fail(f"{text!r} is not {_ARTICLE.get(table.pattern, f'of the form {table.pattern}')}")
    return text


_ARTICLE: Final = {
    "label": "a DNS label: lower-case letters, digits and '-'",
    "subdomain": "a name: lower-case letters, digits, '-' and '.'",
    "group": "an API group",
    "hostname": "a host name; '*' only stands alone as the first label",
    "kind": "a kind",
    "token": "a header's or parameter's name",
}


def _integer(field: Field, table: Type) -> int:
    low, high = table.range
    return field.integer(int(low) if low is not None else -(2**31), int(high) if high is not None else 2**63 - 1)


def _number(field: Field, table: Type) -> float:
    text = field.node.value if isinstance(field.node, yaml.ScalarNode) else ""
    try:
        number = float(text) if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", text) else None
    except ValueError:
        number = None
    if number is None:
        field.fail("must be a number")
        return 0.0
    _bounded(field, number, table.range, "{}")
    return number


def _enum(field: Field, table: Type) -> str | int:
    """Numbers are enumerated, too (status codes)."""
    if all(each.isdecimal() for each in table.enum):
        number = field.integer(0, 2**31 - 1)
        if str(number) not in table.enum:
            field.fail(f"{number} is not one of {', '.join(table.enum)}")
        return number
    return field.one_of(table.enum, table.enum[0])


def seconds(text: str) -> float | None:
    """Of a Go duration, as 1h30m; None: it is none."""
    if text == "0":
        return 0.0
    if not _GO.fullmatch(text):
        return None
    found = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return round(-found if text.startswith("-") else found, 9)


def _duration(field: Field, _: Type) -> float:
    found = _open_duration(field, _)
    if field.present and 0 <= found < 0.001 and seconds(field.string()) is not None:
        field.fail(f"{field.string()!r} is shorter than 1ms")
    return found


def _open_duration(field: Field, _: Type) -> float:
    found = seconds(text := field.string())
    if found is None or found < 0:
        field.fail(f"{text!r} is not a duration, as 1h30m, 2.5s or 100ms")
        return 0.0
    return found


def _gep_2257(field: Field, _: Type) -> float:
    text = field.string()
    if not _GEP_2257.fullmatch(text):
        field.fail(f"{text!r} is not a duration, as 1h30m, 10s or 100ms")
        return 0.0
    return seconds(text) or 0.0


def regex_problem(text: str) -> str:
    """Why Envoy would not take it; "" when it does."""
    try:
        _RE2.compile(text, _QUIET)
    except _RE2.error as error:
        why = error.args[0] if error.args else "cannot be compiled"
        return why.decode(errors="replace") if isinstance(why, bytes) else str(why)
    return ""


def _regex(field: Field, table: Type) -> str:
    text = field.string()
    if len(text) > _MAX_REGEX:
        field.fail(f"{len(text)} characters: a regular expression has at most {_MAX_REGEX}")
    elif text != "*" and (why := regex_problem(text)):
        field.fail(f"{text!r} is not a regular expression (RE2): {why}")
    return text


def _host(field: Field, table: Type) -> str:
    """Also written `name: X`, as on the slides of the first release."""
    if isinstance(field.node, yaml.MappingNode):
        field.warn("is an object; read as the host in its name")
        return field.only("name").get("name").required().string()
    return _string(field, table)


def _network(field: Field, _: Type) -> str:
    field.network()
    return field.string()


def _any(field: Field, _: Type) -> Any:
    return plain(field.node)


def plain(node: yaml.Node | None) -> Any:
    """A tree as JSON would have it."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(each) for each in node.value]
    if node is None or node.tag == NULL:
        return None
    return _JSON.get(node.tag, str)(node.value)


def _plain_float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_JSON: Final[Mapping[str, Callable[[str], Any]]] = {
    "tag:yaml.org,2002:int": lambda text: int(text, 0) if text.lstrip("-").isalnum() else text,
    "tag:yaml.org,2002:float": _plain_float,
    "tag:yaml.org,2002:bool": lambda text: text.lower() in ("true", "yes", "on"),
}
_SCALARS: Final[Mapping[str, Callable[[Field, Type], Any]]] = {
    "string": _string,
    "int": _integer,
    "number": _number,
    "bool": lambda field, _: field.boolean(),
    "enum": _enum,
    "port": lambda field, _: field.port(),
    "duration": _duration,
    "duration0": _open_duration,
    "gep2257": _gep_2257,
    "regex": _regex,
    "host": _host,
    "network": _network,
    "any": _any,
    "intstr": _any,
}
