"""A gRPC application, and the two services that Envoy asks: an external authorizer, a rate-limit service.

`python -m lab.rpc NAME [PORT]`. Any method but those two answers with its own name. The authorizer allows who brings
`x-ok: 1`; the limiter lets `LIMIT` requests of each descriptor pass, then no more.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any, Final

import grpc
import grpc.aio

from mesh.envoy import message_class

PORT: Final = 9090
LIMIT: Final = 3
CHECK: Final = "/envoy.service.auth.v3.Authorization/Check"
LIMITER: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
OVER_LIMIT, OK = 2, 1
PERMISSION_DENIED: Final = 7
Context = grpc.aio.ServicerContext[Any, Any]


class Application(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, name: str) -> None:
        self._name = name
        self._counted: Counter[str] = Counter()

    def service(self, details: Any) -> Any:
        answer = {CHECK: self._check, LIMITER: self._limit}.get(details.method)

        async def unary(request: bytes, _: Context) -> bytes:
            return answer(request) if answer else f"{self._name} {details.method}".encode()

        return grpc.unary_unary_rpc_method_handler(unary)

    def _check(self, request: bytes) -> bytes:
        asked: Any = message_class("envoy.service.auth.v3.CheckRequest").FromString(request)
        answer: Any = message_class("envoy.service.auth.v3.CheckResponse")()
        if asked.attributes.request.http.headers.get("x-ok") == "1":
            added = answer.ok_response.headers.add()
            added.header.key, added.header.value = "x-authz-user", "bob"
        else:
            answer.status.code = PERMISSION_DENIED
            answer.denied_response.status.code = 403
            answer.denied_response.body = "not without x-ok"
        return bytes(answer.SerializeToString())

    def _limit(self, request: bytes) -> bytes:
        asked: Any = message_class("envoy.service.ratelimit.v3.RateLimitRequest").FromString(request)
        over = False
        for descriptor in asked.descriptors:
            key = f"{asked.domain}|" + "|".join(f"{entry.key}={entry.value}" for entry in descriptor.entries)
            self._counted[key] += 1
            over = over or self._counted[key] > LIMIT
        answer: Any = message_class("envoy.service.ratelimit.v3.RateLimitResponse")()
        answer.overall_code = OVER_LIMIT if over else OK
        return bytes(answer.SerializeToString())


async def serve(name: str, port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Application(name),))
    server.add_insecure_port(f"[::]:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else PORT))
