"""Reading a document field by field: every value with its place, every mistake as a sentence, none as an exception.

Owns what a finding is, and the primitive checks (names, addresses, ports, enumerations, unknown fields). What a kind
consists of is in `translate/`; whether an object stays in force is the store's decision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

import yaml

from mesh.model import IPAddress, IPNetwork

_SUBDOMAIN: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NULL: Final = "tag:yaml.org,2002:null"
_KINDS: Final = {
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true or false",
    NULL: "empty",
    "tag:yaml.org,2002:str": "a string",
    "tag:yaml.org,2002:timestamp": "a time",
    "tag:yaml.org,2002:seq": "a list",
    "tag:yaml.org,2002:map": "a mapping",
}


class Level(StrEnum):
    """An error keeps the object's last good state in force; a warning belongs to an object that is in force."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that a person should know about a document. `line` counts from 1; 0: the file as a whole, or an
    object of the Kubernetes API, whose `file` is its kind and name."""

    file: str
    line: int
    kind: str
    name: str
    why: str
    level: Level = Level.ERROR

    def __str__(self) -> str:
        """One line, whatever the document calls itself."""
        named = f"{self.kind} {self.name}"
        subject = f"{named}: " if (self.kind or self.name) and named != self.file else ""
        line = f"{self.place}: {self.level}: {subject}{self.why}"
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    line: int
    why: str
    level: Level = Level.ERROR


@lru_cache(maxsize=1 << 12)
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda hit: "_" + hit[1].lower(), name)


class Field:
    """One value of a document, or its absence. Mistakes go to `problems`; a reader then returns a harmless value.

    Names are looked up in camelCase and snake_case, as protobuf's JSON mapping allows.
    """

    __slots__ = ("_mapping", "line", "node", "path", "problems")

    def __init__(self, node: yaml.Node | None, path: str, line: int, problems: list[Problem]) -> None:
        self.node = None if node is not None and _is_null(node) else node
        self.path = path
        self.line = line
        self.problems = problems
        self._mapping: dict[str, tuple[int, yaml.Node]] | None = None

    @property
    def present(self) -> bool:
        return self.node is not None

    def fail(self, why: str) -> None:
        self.problems.append(Problem(self.line, f"{self.path or 'document'}: {why}"))

    def warn(self, why: str) -> None:
        self.problems.append(Problem(self.line, f"{self.path}: {why}", Level.WARNING))

    def release(self) -> None:
        """Drops the document's tree, which is larger than all that was read from it."""
        self.node = self._mapping = None

    def required(self) -> Field:
        if not self.present:
            self.fail("is required")
        return self

    def get(self, name: str) -> Field:
        fields = self._fields()
        found = fields.get(name) or fields.get(_snake(name))
        line, node = found or (self.line, None)
        return Field(node, f"{self.path}.{name}" if self.path else name, line, self.problems)

    def only(self, *names: str) -> Field:
        """Every other field is a mistake."""
        known = {*names, *map(_snake, names)}
        for name, (line, _) in self._fields().items():
            if name not in known:
                where = f"{self.path}.{name}" if self.path else name
                self.problems.append(Problem(line, f"{where}: unknown field; allowed: {', '.join(sorted(names))}"))
        return self

    def entries(self) -> Iterator[tuple[str, Field]]:
        for name, (line, node) in self._fields().items():
            yield name, Field(node, f"{self.path}[{name}]", line, self.problems)

    def items(self) -> list[Field]:
        if self.node is None:
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self._wrong("a list")
            return []
        return [
            Field(node, f"{self.path}[{index}]", node.start_mark.line + 1, self.problems)
            for index, node in enumerate(self.node.value)
        ]

    def string(self, default: str = "") -> str:
        if self.node is None:
            return default
        if not isinstance(self.node, yaml.ScalarNode):
            self._wrong("a string")
            return default
        if self.node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"):
            self.fail(f"must be a string, not {_kind(self.node)}: put {self.node.value!r} in quotes")
            return default
        return str(self.node.value)

    def strings(self) -> tuple[str, ...]:
        return tuple(item.string() for item in self.items())

    def labels(self) -> dict[str, str]:
        return {name: value.string() for name, value in self.entries()}

    def integer(self, low: int, high: int, default: int = 0) -> int:
        """Also as a string: protobuf's JSON mapping writes 64-bit numbers so."""
        if self.node is None:
            return default
        text = self.node.value if isinstance(self.node, yaml.ScalarNode) else ""
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            self._wrong(f"a number from {low} to {high}")
            return default
        if not low <= int(text) <= high:
            self.fail(f"{text} is not from {low} to {high}")
            return default
        return int(text)

    def port(self) -> int:
        return self.integer(1, 65535)

    def boolean(self, default: bool = False) -> bool:
        if self.node is None:
            return default
        if self.node.tag != "tag:yaml.org,2002:bool":
            self._wrong("true or false")
            return default
        return str(self.node.value).lower() in ("true", "yes", "on")

    def one_of(self, allowed: Iterable[str], default: str) -> str:
        text = self.string(default)
        if text not in (choices := list(allowed)) and self.present:
            self.fail(f"{text!r} is not one of {', '.join(choices)}")
            return default
        return text

    def name(self) -> str:
        text = self.string()
        if self.present and not _SUBDOMAIN.fullmatch(text):
            self.fail(f"{text!r} is not a name: lower-case letters, digits, '-' and '.', at most 253")
        return text

    def label(self, default: str = "") -> str:
        text = self.string(default)
        if self.present and not _LABEL.fullmatch(text):
            self.fail(f"{text!r} is not a DNS label: lower-case letters, digits and '-', at most 63")
        return text

    def address(self) -> IPAddress | None:
        text = self.string()
        try:
            return ip_address(text) if text else None
        except ValueError:
            self.fail(f"{text!r} is not an IP address")
            return None

    def network(self) -> IPNetwork | None:
        """An address or a CIDR range; bits outside the mask are dropped, as Istio does."""
        text = self.string()
        try:
            return ip_network(text, strict=False) if text else None
        except ValueError:
            self.fail(f"{text!r} is neither an IP address nor a CIDR range")
            return None

    def _wrong(self, expected: str) -> None:
        self.fail(f"must be {expected}, not {_kind(self.node)}")

    def _fields(self) -> dict[str, tuple[int, yaml.Node]]:
        if self._mapping is None:
            self._mapping = {}
            if isinstance(self.node, yaml.MappingNode):
                self._index(self.node, self._mapping)
            elif self.node is not None:
                self._wrong("a mapping")
        return self._mapping

    def _index(self, node: yaml.MappingNode, into: dict[str, tuple[int, yaml.Node]]) -> None:
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(line, f"{self.path or 'document'}: a field's name must be a string"))
            elif name in into:
                self.problems.append(Problem(line, f"{self.path}.{name}: given twice".lstrip(".")))
            else:
                into[name] = (line, value)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == NULL)


def _kind(node: yaml.Node | None) -> str:
    return _KINDS.get(node.tag, node.tag) if node is not None else "absent"
