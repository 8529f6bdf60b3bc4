"""Custom resource definitions to the field tables in `controlplane/schema`.

Usage: schema_outline.py KIND,KIND,... CRD.yaml... > TABLE.outline

The files are those of the modules istio.io/api (kubernetes/customresourcedefinitions.gen.yaml) and
sigs.k8s.io/gateway-api (config/crd/experimental/*.yaml). What a line means is told in `controlplane/schema/outline.py`.
Descriptions and CEL rules are left out, but for those that say that a text is a duration.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
_GEP_2257 = "([0-9]{1,5}(h|m|s|ms)){1,4}"
_PORTS = ("port", "number", "targetPort", "portNumber", "destinationPort", "ports")
_UINT = (0, 4294967295)
# Durations that may be zero have no rule that gives them away.
_OPEN_DURATIONS = ("idleTimeout", "ttl", "budgetInterval", "weightExpirationPeriod", "weightStabilizationPeriod")
_DNS = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_PATTERNS = {
    f"^{_DNS}$": "label",
    f"^{_DNS}(\\.{_DNS})*$": "subdomain",
    f"^$|^{_DNS}(\\.{_DNS})*$": "group",
    f"^(\\*\\.)?{_DNS}(\\.{_DNS})*$": "hostname",
    "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$": "kind",
    "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$": "token",
}
# What a shape that occurs more than once is called; else after the field where it occurs first.
_NAMES = {
    "AllowOrigins": "StringMatch",
    "Mirror": "Destination",
    "Tls": "ClientTls",
    "Tls2": "ServerTls",
    "Port": "PortSelector",
    "Port2": "SidecarPort",
    "Request": "HeaderOperations",
    "Route": "L4Route",
    "Rules": "L4Rule",
    "Add": "Header",
    "CaCertificateRefs": "FullReference",
    "CertificateRefs": "SecretReference",
    "Default": "FrontendTls",
    "Filters": "HttpFilter",
    "Filters2": "GrpcFilter",
    "ParametersRef": "LocalReference",
    "Provider": "Named",
    "Providers": "ProviderName",
    "RequestHeaderModifier": "HeaderModifier",
    "WorkloadSelector2": "LabelSelector",
    "WorkloadSelector": "MatchLabels",
    "Match": "Mode",
}


def main() -> None:
    kinds = sys.argv[1].split(",")
    found = {crd["spec"]["names"]["kind"]: crd for path in sys.argv[2:] for crd in _read(path)}
    shapes = Shapes()
    for kind in kinds:
        shapes.count(_schema(found[kind]))
    shapes.name()
    for kind in kinds:
        group, versions = found[kind]["spec"]["group"], _versions(found[kind])
        print(f"kind {kind} {group} {' '.join(versions)}")
        for line in shapes.fields(_schema(found[kind]), 1):
            print(line)
    for line in shapes.definitions():
        print(line)


def _read(path: str) -> Iterator[Json]:
    for document in yaml.safe_load_all(Path(path).read_text()):
        if document and document.get("kind") == "CustomResourceDefinition":
            yield document


def _versions(crd: Json) -> list[str]:
    """The stored one first."""
    versions = sorted(crd["spec"]["versions"], key=lambda each: (not each.get("storage"), each["name"]))
    return [each["name"] for each in versions if each.get("served")]


def _schema(crd: Json) -> Json:
    stored = next(each for each in crd["spec"]["versions"] if each.get("storage"))
    spec: Json = stored["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda hit: "_" + hit[1].lower(), name)


def _properties(node: Json) -> Json:
    """Without what is there a second time in snake_case."""
    named = node.get("properties", {})
    twice = {_snake(name) for name in named if _snake(name) != name}
    return {name: inner for name, inner in named.items() if name not in twice}


def _core(node: Json) -> Json:
    while True:
        if node.get("type") == "array":
            node = node["items"]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
        else:
            return node


class Shapes:
    """Objects that are told once and named, because they occur more than once."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._hints: dict[str, str] = {}
        self._nodes: dict[str, Json] = {}
        self._names: dict[str, str] = {}

    def count(self, node: Json, hint: str = "") -> None:
        node = _core(node)
        if not _properties(node):
            return
        key = repr(self._plain(node))
        self._counts[key] += 1
        self._hints.setdefault(key, hint)
        self._nodes.setdefault(key, node)
        if self._counts[key] == 1:
            for name, inner in _properties(node).items():
                self.count(inner, name)

    def _plain(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {k: self._plain(v) for k, v in sorted(node.items()) if not isinstance(v, str) or k != "description"}
        return [self._plain(each) for each in node] if isinstance(node, list) else node

    def name(self) -> None:
        taken: Counter[str] = Counter()
        for key, number in self._counts.items():
            if number > 1:
                hint = self._hints[key][0].upper() + self._hints[key][1:]
                taken[hint] += 1
                name = hint if taken[hint] == 1 else f"{hint}{taken[hint]}"
                self._names[key] = _NAMES.get(name, name)

    def definitions(self) -> Iterator[str]:
        for key, name in sorted(self._names.items(), key=lambda each: each[1]):
            yield f"shape {name}"
            yield from self.fields(self._nodes[key], 1)

    def fields(self, node: Json, depth: int) -> Iterator[str]:
        indent = "  " * depth
        for group in _choices(node):
            yield f"{indent}? {' '.join(group)}"
        required = node.get("required", ())
        for name, inner in _properties(node).items():
            core = _core(inner)
            shape = self._names.get(repr(self._plain(core))) if _properties(core) else None
            words = [name + "*" * (name in required), _type(name, inner, shape), *_bounds(name, inner, core)]
            yield indent + " ".join(word for word in words if word)
            if _properties(core) and not shape:
                yield from self.fields(core, depth + 1)


def _choices(node: Json) -> Iterator[list[str]]:
    """Groups of fields of which one at most may be there."""
    for part in (node, *node.get("allOf", ())):
        names = [each["required"][0] for each in part.get("oneOf", ()) if "required" in each]
        unique = [name for name in names if name in _properties(node)]
        if len(unique) > 1:
            yield unique


def _type(name: str, node: Json, shape: str | None) -> str:
    if node.get("type") == "array":
        return "[]" + _type(name, node["items"], shape)
    if isinstance(node.get("additionalProperties"), dict):
        return "<>" + _type(name, node["additionalProperties"], shape)
    if shape or _properties(node):
        return shape or "{}"
    if node.get("x-kubernetes-int-or-string"):
        return "intstr"
    if node.get("x-kubernetes-preserve-unknown-fields") or node.get("type") == "object":
        return "any" if node.get("x-kubernetes-preserve-unknown-fields") else "{}"
    if node.get("enum"):
        return "enum:" + "|".join(str(each) for each in node["enum"])
    return _scalar(name, node)


def _scalar(name: str, node: Json) -> str:
    rules = " ".join(each["rule"] for each in node.get("x-kubernetes-validations", ()))
    if "duration(self)" in rules:
        return "duration"
    if _GEP_2257 in node.get("pattern", ""):
        return "gep2257"
    if name in _OPEN_DURATIONS:
        return "duration0"
    if name in _PORTS and node.get("type") == "integer":
        return "port"
    return {"integer": "int", "boolean": "bool"}.get(node["type"], str(node["type"]))


def _bounds(name: str, node: Json, core: Json) -> Iterator[str]:
    if node.get("type") == "array" and ("minItems" in node or "maxItems" in node):
        yield f"items={node.get('minItems', 0)}..{node.get('maxItems', '')}"
    bounds = core.get("minimum", ""), core.get("maximum", "")
    if bounds != ("", "") and (name not in _PORTS or core.get("type") != "integer"):
        yield "range=0.." if bounds == _UINT else f"range={bounds[0]}..{bounds[1]}"
    if "minLength" in core or "maxLength" in core:
        yield f"length={core.get('minLength', 0)}..{core.get('maxLength', '')}"
    if "pattern" in core and _GEP_2257 not in core["pattern"]:
        yield f"pattern={_PATTERNS.get(core['pattern'], core['pattern'])}"


if __name__ == "__main__":
    main()
