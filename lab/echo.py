"""An HTTP application that tells what it saw, for tests and demos of layer 7.

`python -m lab.echo NAME VERSION [PORT [CERTIFICATE KEY]]`. Any path answers 200 with JSON. `/status/CODE` answers that,
`/delay/SECONDS` later, `/flaky/N` 503 to the first N requests of each `x-key`, `/check…` 403 without `x-ok: 1`, `/ws`
echoes web socket messages, `/via/HOST/PATH` asks another one. `/seen` counts requests by path, `/received` has the
bodies that were posted to `/api…` and `/v1…` (neither is counted itself).
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections import Counter, deque

from aiohttp import ClientSession, WSMsgType, web

PORT = 8080
TOLD, KEPT = 65536, 200
# Headers that an application hands on, so that a trace goes on and a user stays one.
PASSED = ("x-b3-", "x-request-id", "traceparent", "tracestate", "end-user")


class Application:
    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version
        self.seen: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.received: deque[tuple[str, str]] = deque(maxlen=KEPT)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/seen":
            return web.json_response(self.seen)
        if path == "/received":
            return web.json_response(list(self.received))
        self.seen[path] += 1
        status = 200
        match path.split("/")[1:]:
            case ["via", host, *rest]:
                return await self._via(request, host, "/".join(rest))
            case ["api" | "v1", *_]:
                self.received.append((path, (await request.read()).decode("latin-1")))
            case ["ws"]:
                return await self._web_socket(request)
            case ["check", *_]:
                status = 200 if request.headers.get("x-ok") == "1" else 403
            case ["status", code]:
                status = int(code)
            case ["delay", seconds]:
                await asyncio.sleep(float(seconds))
            case ["flaky", times]:
                key = request.headers.get("x-key", "")
                self.failed[key] += 1
                status = 503 if self.failed[key] <= int(times) else 200
        return web.json_response(await self._told(request), status=status, headers={"x-served-by": self.name})

    async def _told(self, request: web.Request) -> dict[str, object]:
        return {
            "name": self.name,
            "version": self.version,
            "method": request.method,
            "path": request.path_qs,
            "host": request.host,
            "http": f"{request.version.major}.{request.version.minor}",
            "client": request.remote,
            "headers": {key.lower(): value for key, value in request.headers.items()},
            "body": (await request.content.read(TOLD)).decode(errors="replace"),
        }

    async def _via(self, request: web.Request, host: str, path: str) -> web.Response:
        """Calls another one, with what the caller brought of tracing and of the user, and answers with its answer."""
        passed = {name: value for name, value in request.headers.items() if name.lower().startswith(PASSED)}
        async with ClientSession() as session, session.get(f"http://{host}/{path}", headers=passed) as answer:
            return web.json_response(await answer.json(), status=answer.status)

    async def _web_socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"{self.version}:{message.data}")
        return socket


async def serve(name: str, version: str, port: int, pair: list[str]) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", Application(name, version).answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tls = None
    if pair:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*pair)
    for host in ("::", "0.0.0.0"):  # asyncio binds `::` for IPv6 alone
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else PORT, sys.argv[4:6]))
