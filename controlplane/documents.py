"""From a file's text to documents with a header and the place of every field. Knows no kind.

A document that cannot be told apart (no kind, no name) or a text that cannot be parsed is a problem of the file; what
that means for objects that the file held before is the store's decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import yaml

from controlplane.validate import NULL, Field, Finding, Problem

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
CLUSTER_SCOPED: Final = frozenset({"Namespace", "Node", "GatewayClass"})
# A kind of two groups: in the mesh's configuration Istio's goes by its full name.
ISTIO_GATEWAY: Final = "Gateway.networking.istio.io"
_MAX_DEPTH: Final = 64
# libyaml composes recursively on the C stack without a limit: deeper than some 50,000 levels it kills the process.
_SAFE_DEPTH: Final = 10_000


_PLAIN: Final[Any] = yaml.resolver.Resolver()


@lru_cache(maxsize=1 << 16)
def _tag(kind: Any, value: str | None, implicit: tuple[bool, bool] | bool) -> str:
    return str(_PLAIN.resolve(kind, value, implicit))


class _Loader(yaml.CSafeLoader):
    """PyYAML asks Python for the type of every scalar, and announces every level; that is a third of its time, and
    documents are full of equal words."""

    def resolve(self, kind: Any, value: str | None, implicit: Any) -> str:
        return _tag(kind, value, implicit)

    def descend_resolver(self, current_node: object, current_index: object) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


class Key(NamedTuple):
    """An object's name in the configuration. `namespace` is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace and self.name else self.name


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document of a file. `header_ok` is false when `key` may not be what the author meant."""

    file: str
    line: int
    api_version: str
    key: Key
    root: Field
    header_ok: bool

    def finding(self, problem: Problem) -> Finding:
        return Finding(self.file, problem.line, self.key.kind, self.key.path, problem.why, problem.level)


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A file's documents. `broken`: the text ends where the parser gave up, so there may be more."""

    file: str
    documents: tuple[Document, ...] = ()
    findings: tuple[Finding, ...] = ()
    broken: bool = False


def broken(file: str, line: int, why: str) -> Parsed:
    return Parsed(file, (), (Finding(file, line, "", "", why),), broken=True)


def parse(file: str, text: bytes) -> Parsed:
    """Never raises: what is wrong with the text is a finding."""
    if not text.strip():
        return broken(file, 0, "is empty: its objects stay in force until the file is deleted or holds a document")
    documents: list[Document] = []
    try:
        _refuse_stack_overflow(text)
        for root in yaml.compose_all(text, Loader=_Loader):
            if root.tag != NULL:  # nothing between two separators
                _refuse_depth(root)
                documents.extend(documents_of(file, root))
    except yaml.MarkedYAMLError as error:
        return Parsed(file, tuple(documents), (_syntax(file, error),), broken=True)
    except (yaml.YAMLError, ValueError) as error:
        finding = Finding(file, 0, "", "", f"is not valid YAML: {' '.join(str(error).split())}")
        return Parsed(file, tuple(documents), (finding,), broken=True)
    return Parsed(file, tuple(documents))


def _syntax(file: str, error: yaml.MarkedYAMLError) -> Finding:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    why = ": ".join(part for part in (error.context, error.problem) if part)
    return Finding(file, line, "", "", f"is not valid YAML: {why}")


def _refuse_stack_overflow(text: bytes) -> None:
    """Counts exactly only what could be too deep: each block level needs a column, each flow level a bracket."""
    longest = max(map(len, text.splitlines()))
    if 2 * longest + text.count(b"[") + text.count(b"{") < _SAFE_DEPTH:
        return
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _SAFE_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def _refuse_depth(root: yaml.Node) -> None:
    """Raises ValueError for a document nested too deep, an alias inside its own anchor included."""
    level: list[yaml.Node] = [root]
    for _ in range(_MAX_DEPTH):
        seen: dict[int, yaml.Node] = {id(child): child for node in level for child in _children(node)}
        level = [node for node in seen.values() if not isinstance(node, yaml.ScalarNode)]
        if not level:
            return
    raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def documents_of(file: str, node: yaml.Node) -> Iterator[Document]:
    """One, or the members of a `kind: List` as `kubectl get -o yaml` writes it."""
    root = Field(node, "", node.start_mark.line + 1, [])
    if isinstance(node, yaml.MappingNode) and root.get("kind").string() == "List":
        for item in root.get("items").items():
            if item.node is not None:
                yield _document(file, item.node)
    else:
        yield _document(file, node)


def _document(file: str, node: yaml.Node) -> Document:
    root = Field(node, "", node.start_mark.line + 1, [])
    if not isinstance(node, yaml.MappingNode):
        root.fail("must be a mapping with apiVersion, kind and metadata")
        return Document(file, root.line, "", Key("", "", ""), root, header_ok=False)
    metadata = root.get("metadata").required()
    api_version = root.get("apiVersion").required().string()
    kind = root.get("kind").required().string()
    if kind == "Gateway" and api_version.startswith("networking.istio.io/"):
        kind = ISTIO_GATEWAY
    name = metadata.get("name").required().name()
    namespace = "" if kind in CLUSTER_SCOPED else metadata.get("namespace").label("default")
    return Document(file, root.line, api_version, Key(kind, namespace, name), root, header_ok=not root.problems)
