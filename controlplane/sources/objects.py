"""An object of the API as a document of the configuration: the same tree that a YAML file is parsed to.

So that one reader per kind serves both. Where a file has its name and line, an object has `Kind namespace/name` and no
line.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import yaml

from controlplane.documents import ISTIO_GATEWAY, Parsed, broken, documents_of
from controlplane.validate import NULL
from kube.objects import Object, Resource

_MAX_DEPTH: Final = 64
# One before the first line: a document's lines count from 1, and here there are none.
_NOWHERE: Final = yaml.Mark("", 0, -1, 0, None, 0)
_TWICE: Final = ("Gateway", "networking.istio.io")
_TAG: Final = "tag:yaml.org,2002:"


def called(resource: Resource[Any]) -> str:
    """The kind as the configuration has it."""
    return ISTIO_GATEWAY if (resource.kind, resource.group) == _TWICE else resource.kind


def origin(resource: Resource[Any], item: Object) -> str:
    return f"{called(resource)} {item.key}"


def parsed(resource: Resource[Any], item: Object) -> Parsed:
    """Never raises, like parsing a file."""
    where = origin(resource, item)
    content = {"apiVersion": resource.api_version, "kind": resource.kind, **msgspec.to_builtins(item)}
    try:
        return Parsed(where, tuple(documents_of(where, _node(content, 0))))
    except ValueError as error:
        return broken(where, 0, str(error))


def _node(value: Any, depth: int) -> yaml.Node:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        pairs = [(_scalar(name), _node(each, depth + 1)) for name, each in value.items()]
        return yaml.MappingNode(f"{_TAG}map", pairs, _NOWHERE, _NOWHERE)
    if isinstance(value, list):
        return yaml.SequenceNode(f"{_TAG}seq", [_node(each, depth + 1) for each in value], _NOWHERE, _NOWHERE)
    return _scalar(value)


def _scalar(value: Any) -> yaml.ScalarNode:
    match value:
        case None:
            tag, text = NULL, ""
        case bool():
            tag, text = f"{_TAG}bool", "true" if value else "false"
        case int():
            tag, text = f"{_TAG}int", str(value)
        case float():
            tag, text = f"{_TAG}float", repr(value)
        case _:
            tag, text = f"{_TAG}str", value
    return yaml.ScalarNode(tag, text, _NOWHERE, _NOWHERE)
