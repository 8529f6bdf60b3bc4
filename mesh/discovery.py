"""Delta discovery as a gRPC service, for whoever answers with `mesh.delta`.

Owns how a request and a response cross: a response as the bytes that the Publisher made, which nobody reads on the
way. Does not own the listener or what is said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from operator import attrgetter
from typing import Any, Final

import grpc
import grpc.aio

from mesh.gen.xds_pb2 import DeltaDiscoveryRequest

AGGREGATED: Final = ("envoy.service.discovery.v3.AggregatedDiscoveryService", "DeltaAggregatedResources")
SECRETS: Final = ("envoy.service.secret.v3.SecretDiscoveryService", "DeltaSecrets")

Stream = Callable[[AsyncIterator[DeltaDiscoveryRequest], grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]
"""Writes `mesh.delta.Response`s to the context."""


def handler(service: tuple[str, str], stream: Stream) -> grpc.GenericRpcHandler[Any, Any]:
    """`service`: its name and its method's. What the generated registration does, which would serialize again."""
    name, method = service
    made = grpc.stream_stream_rpc_method_handler(
        stream, request_deserializer=DeltaDiscoveryRequest.FromString, response_serializer=attrgetter("data")
    )
    return grpc.method_handlers_generic_handler(name, {method: made})
