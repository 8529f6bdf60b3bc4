"""Envoy's resources from JSON to bytes, checked against Envoy's own schema. Pure.

Owns `gen/envoy.binpb`, the part of Envoy's API that we use, as descriptors (`make envoy-schema`). They live in a pool
of their own: no generated modules, nothing of the name `envoy` that could collide with the package that has the binary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mesh.delta import Versioned
from mesh.errors import LocalError
from mesh.wire import prefix

TYPE: Final = "type.googleapis.com/"
CLUSTER: Final = TYPE + "envoy.config.cluster.v3.Cluster"
ENDPOINTS: Final = TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = TYPE + "envoy.config.listener.v3.Listener"
ROUTES: Final = TYPE + "envoy.config.route.v3.RouteConfiguration"
EXTENSION: Final = TYPE + "envoy.config.core.v3.TypedExtensionConfig"
VIRTUAL_HOST: Final = TYPE + "envoy.config.route.v3.VirtualHost"
SECRET: Final = TYPE + "envoy.extensions.transport_sockets.tls.v3.Secret"


@cache
def _set() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(files("mesh.gen").joinpath("envoy.binpb").read_bytes())


def _names() -> list[str]:
    return [file.name for file in _set().file]


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in _set().file:
        pool.Add(file)
    return pool


@cache
def _kept() -> list[type[Message]]:
    """Every class of the pool. The library holds them weakly: it would make those inside of an Any again each time,
    which is most of the time that packing takes."""
    pool = _pool()
    files_ = (pool.FindFileByName(name) for name in _names())
    return [GetMessageClass(message) for file in files_ for message in _all(file.message_types_by_name.values())]


def _all(messages: Iterable[Descriptor]) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from _all(message.nested_types)


@cache
def _class(type_url: str) -> type[Message]:
    _kept()
    return GetMessageClass(_pool().FindMessageTypeByName(type_url.removeprefix(TYPE)))


def message_class(name: str) -> type[Message]:
    """Of a message by its full name, for who speaks one of Envoy's services."""
    return _class(TYPE + name)


def knows(name: str) -> bool:
    """Whether a message is in the part of Envoy's API that we have."""
    try:
        _pool().FindMessageTypeByName(name)
    except KeyError:
        return False
    return True


def normal(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A message as JSON in its own field names. Raises ValueError: Envoy's schema says otherwise."""
    try:
        message = json_format.ParseDict(dict(tree), message_class(name)(), descriptor_pool=_pool())
        found: dict[str, Any] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, descriptor_pool=_pool()
        )
    except (json_format.Error, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return found


def pack(type_url: str, resource: dict[str, Any]) -> Versioned:
    """The version is a hash of the content. Raises LocalError: we made something that Envoy's schema does not know."""
    try:
        message = json_format.ParseDict(resource, _class(type_url)(), descriptor_pool=_pool())
    except json_format.ParseError as error:
        raise LocalError(f"not a {type_url.rpartition('.')[2]}: {error}") from error
    data = message.SerializeToString(deterministic=True)
    return Versioned(blake2b(data, digest_size=12).hexdigest(), type_url, data)


def joined(head: Versioned, number: int, parts: Iterable[Versioned]) -> Versioned:
    """`head` with each of `parts` as one more element of its repeated field `number`: serialized messages can be
    put together without being read, so a table of a thousand entries costs only its new one."""
    data = bytearray(head.data)
    for part in parts:
        data += prefix(number, len(part.data)) + part.data
    return Versioned(blake2b(data, digest_size=12).hexdigest(), head.type_url, bytes(data))


def unpack(item: Versioned) -> dict[str, Any]:
    """As JSON again, for people."""
    message = _class(item.type_url).FromString(item.data)
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=_pool()
    )
    return found
