"""Writes deploy/crds.yaml: the kinds that are ours (group nodemesh.io), as the API server has to know them.

From the same field tables that our own validation reads, so that what the API server lets in and what we take are one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from controlplane.schema.outline import PATTERNS, Bound, Kind, Type, kinds

GROUP: Final = "nodemesh.io"
HEAD: Final = "# Written by tools/crds.py: the kinds of nodemesh.io. They have to be there before a document of one.\n"
_PLAIN: Final = {"bool": "boolean", "int": "integer", "port": "integer"}
_STATUS: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class _Plain(yaml.SafeDumper):
    """What appears twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def definitions() -> str:
    ours = [kind for (group, _), kind in sorted(kinds().items()) if group == GROUP]
    return HEAD + yaml.dump_all(map(definition, ours), Dumper=_Plain, sort_keys=False, width=120)


def definition(kind: Kind) -> dict[str, Any]:
    plural = f"{kind.name.lower()}s"
    shape = {
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": _object(kind.spec), "status": _STATUS},
    }
    served = [
        {
            "name": version.partition("/")[2],
            "served": True,
            "storage": index == 0,
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": shape},
        }
        for index, version in enumerate(kind.versions)
    ]
    names = {"kind": kind.name, "listKind": f"{kind.name}List", "plural": plural, "singular": kind.name.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{kind.group}"},
        "spec": {"group": kind.group, "names": names, "scope": "Namespaced", "versions": served},
    }


def _object(type_: Type) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object"}
    if required := [name for name, each in type_.fields.items() if each.required]:
        found["required"] = required
    found["properties"] = {name: _field(each) for name, each in type_.fields.items() if not each.legacy}
    if type_.choices:
        found["allOf"] = [_at_most_one(choice) for choice in type_.choices]
    return found


def _at_most_one(names: tuple[str, ...]) -> dict[str, Any]:
    each = [{"required": [name]} for name in names]
    return {"oneOf": [{"not": {"anyOf": each}}, *each]}


def _field(type_: Type) -> dict[str, Any]:
    one = _object(type_) if type_.kind == "{}" else _scalar(type_)
    if type_.wrap == "[]":
        return {"type": "array", **_bounds(type_.items, "minItems", "maxItems"), "items": one}
    return {"type": "object", "additionalProperties": one} if type_.wrap else one


def _scalar(type_: Type) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _PLAIN.get(type_.kind, "string")}
    if type_.enum:
        found["enum"] = list(type_.enum)
    if type_.pattern:
        found["pattern"] = PATTERNS.get(type_.pattern, type_.pattern)
    bound = (1.0, 65535.0) if type_.kind == "port" else type_.range
    return found | _bounds(bound, "minimum", "maximum") | _bounds(type_.length, "minLength", "maxLength")


def _bounds(bound: Bound, low: str, high: str) -> dict[str, int]:
    return {name: int(value) for name, value in zip((low, high), bound, strict=True) if value}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(definitions(), encoding="utf-8")
