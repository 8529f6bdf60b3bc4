"""The field tables: what an outline's lines mean, and the types made of them.

    kind VirtualService networking.istio.io v1 v1beta1     its group and versions; the fields of its spec below
      hosts []string                                       a list
      http []{}                                            a list of objects, whose fields are below
        ? route redirect                                   at most one of these
        timeout duration
        weight* int range=0..100                           required
        match []StringMatch                                a shape, told elsewhere
        headers <>string                                   a mapping of any names
        mode enum:A|B

Bounds are `range=LOW..HIGH` of a number, `length=` of a text, `items=` of a list, `pattern=` (a name of `PATTERNS` or
an expression, the rest of the line). `tools/schema_outline.py` writes the tables, `overlay.outline` refines them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Final

TABLES: Final = ("istio", "gateway_api")
_DNS: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
PATTERNS: Final = {
    "label": f"^{_DNS}$",
    "subdomain": rf"^{_DNS}(\.{_DNS})*$",
    "group": rf"^$|^{_DNS}(\.{_DNS})*$",
    "hostname": rf"^(\*\.)?{_DNS}(\.{_DNS})*$",
    "kind": "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
    "token": r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$",
}
_SPECS: Final = {("Gateway", "gateway.networking.k8s.io"): "KubernetesGateway"}
Bound = tuple[float | None, float | None]
_UNBOUND: Final[Bound] = (None, None)


@dataclass(slots=True)
class Type:
    """`wrap`: "[]" a list of it, "<>" a mapping to it. `name`: of an object, which is where it is told."""

    name: str
    kind: str
    wrap: str = ""
    required: bool = False
    legacy: bool = False
    fields: dict[str, Type] = field(default_factory=dict)
    choices: list[tuple[str, ...]] = field(default_factory=list)
    enum: tuple[str, ...] = ()
    range: Bound = _UNBOUND
    length: Bound = _UNBOUND
    items: Bound = _UNBOUND
    pattern: str = ""


@dataclass(slots=True)
class Kind:
    """`spec`: of its documents; `versions` with the group."""

    name: str
    group: str
    versions: tuple[str, ...]
    spec: Type


@cache
def kinds() -> dict[tuple[str, str], Kind]:
    """By group and name. Not to be changed."""
    found: dict[tuple[str, str], Kind] = {}
    for table in TABLES:
        read = _Table()
        read.take(_lines(table))
        if table == "istio":
            read.take(_lines("overlay"))
        read.link()
        found |= {(kind.group, kind.name): kind for kind in read.kinds.values()}
    return found


def _lines(table: str) -> list[str]:
    text = resources.files(__package__).joinpath(f"{table}.outline").read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


class _Table:
    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        self._shapes: dict[str, Type] = {}

    def take(self, lines: list[str]) -> None:
        above: list[Type] = []
        for line in lines:
            depth = (len(line) - len(line.lstrip())) // 2
            words = line.split()
            if depth == 0:
                above = [self._begin(words)]
            elif words[0] == "?":
                above[depth - 1].choices.append(tuple(words[1:]))
            else:
                del above[depth:]
                above.append(_field(above[-1], line.strip()))

    def _begin(self, words: list[str]) -> Type:
        word, name, *rest = words
        if word == "field":
            *path, last = name.split(".")
            return _field(self._find(path), " ".join((last, *rest)))
        spec = Type(_SPECS.get((name, rest[0] if rest else ""), name), "{}")
        if word == "shape":
            self._shapes[name] = spec
        else:
            group, *versions = rest
            self.kinds[name] = Kind(name, group, tuple(f"{group}/{version}" for version in versions), spec)
        return spec

    def _find(self, path: list[str]) -> Type:
        found = self._shapes.get(path[0]) or self.kinds[path[0]].spec
        for name in path[1:]:
            found = found.fields[name]
        return found

    def link(self) -> None:
        """Gives the fields that are shapes the shapes' fields."""
        done: set[int] = set()
        for spec in (*self._shapes.values(), *(kind.spec for kind in self.kinds.values())):
            self._link(spec, done)

    def _link(self, spec: Type, done: set[int]) -> None:
        if id(spec) in done:
            return
        done.add(id(spec))
        for each in spec.fields.values():
            shape = self._shapes.get(each.kind)
            if shape:
                self._link(shape, done)
                each.name, each.kind, each.fields, each.choices = shape.name, "{}", shape.fields, shape.choices
            else:
                self._link(each, done)


def _field(parent: Type, line: str) -> Type:
    """The type of one line, put into its parent."""
    word, _, rest = line.partition(" ")
    name = word.rstrip("*~")
    kind, *bounds = rest.split(" ")
    found = Type(f"{parent.name}.{name}", kind, required=word.endswith("*"), legacy=word.endswith("~"))
    if kind[:2] in ("[]", "<>"):
        found.wrap, found.kind = kind[:2], kind[2:]
    if found.kind.startswith("enum:"):
        found.kind, found.enum = "enum", tuple(found.kind.removeprefix("enum:").split("|"))
    found = replace(found, **dict(_bounds(bounds)))
    parent.fields[name] = found
    return found


def _bounds(words: list[str]) -> Iterator[tuple[str, Any]]:
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "pattern":
            yield name, " ".join((value, *words[index + 1 :]))
            return
        low, _, high = value.partition("..")
        yield name, (float(low) if low else None, float(high) if high else None)
