"""HTTP/1.1 for doors that answer a few questions: h11 on asyncio's streams. Knows nothing of what is asked.

Not aiohttp: with what its server and client import it is 11 MiB of every tunnel's resident memory.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from mesh import log

TEXT: Final = "text/plain; charset=utf-8"
IDLE_S: Final = 75.0
"""How long a connection may take to ask its next question, whole."""
END_S: Final = 1.0
"""How long answers under way may take when the doors are closed."""
_LARGE: Final = 64 * 1024
"""Bytes from which on an answer is compressed beside the loop."""
_MOST_BODY: Final = 1024 * 1024
_READ: Final = 64 * 1024

_log = log.get("http")


@dataclass(frozen=True, slots=True)
class Answer:
    """`gzip`: compressed for those who accept it."""

    body: bytes
    kind: str = TEXT
    status: int = 200
    gzip: bool = False


def text(said: str, status: int = 200) -> Answer:
    return Answer(said.encode(), status=status)


Handler = Callable[[Mapping[str, str]], Awaitable[Answer]]
"""Gets the query: the first value of each name, "" for one without `=`."""
Routes = Mapping[str, tuple[str, Handler]]
"""By path: the method, and who answers. HEAD goes where GET does."""


class Server:
    """Accepts from `start` to `close`. An answer that fails is a 500 and a line in the log, never the doors' end."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._doors: list[asyncio.Server] = []
        self._talks: dict[asyncio.Task[None], _Talk] = {}

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        for listener in listeners:
            self._doors.append(await asyncio.start_server(self._accepted, sock=listener))

    async def close(self) -> None:
        """Nobody is accepted any more; who is being answered gets `END_S`."""
        for door in self._doors:
            door.close()
        talks = dict(self._talks)
        for task, talk in talks.items():
            talk.last = True
            if not talk.answering:
                task.cancel()
        if talks:
            _, slow = await asyncio.wait(talks, timeout=END_S)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talk = self._talks[task] = _Talk(self._routes, reader, writer)
        try:
            await talk.run()
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # gone, silent, or the doors close: nobody is left to tell
        finally:
            del self._talks[task]
            writer.close()


class _Talk:
    """One connection: questions and answers in turn. `last`: it ends with the answer under way."""

    def __init__(self, routes: Routes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._routes, self._reader, self._writer = routes, reader, writer
        self._wire = h11.Connection(h11.SERVER)
        self.answering = self.last = False

    async def run(self) -> None:
        try:
            while asked := await self._question():
                self.answering = True
                await self._send(asked, await self._answer(asked))
                self.answering = False
                if self.last or self._wire.our_state is not h11.DONE:
                    return
                self._wire.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._wire.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(None, text(f"{error}\n", error.error_status_hint))

    async def _question(self) -> h11.Request | None:
        """With its body read and left aside. None: the peer has none any more. Raises RemoteProtocolError."""
        asked: h11.Request | None = None
        body = 0
        async with asyncio.timeout(IDLE_S):
            while True:
                event = await self._event()
                if isinstance(event, h11.Request):
                    asked = event
                elif isinstance(event, h11.Data):
                    body += len(event.data)
                    if body > _MOST_BODY:
                        raise h11.RemoteProtocolError("too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                else:
                    return asked if isinstance(event, h11.EndOfMessage) else None

    async def _event(self) -> object:
        while (event := self._wire.next_event()) is h11.NEED_DATA:
            if self._wire.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
                self._writer.write(self._wire.send(go_on) or b"")
            self._wire.receive_data(await self._reader.read(_READ))
        return event

    async def _answer(self, asked: h11.Request) -> Answer:
        target = urlsplit(asked.target.decode("ascii"))
        route = self._routes.get(unquote(target.path))
        if route is None:
            return text("404: Not Found", HTTPStatus.NOT_FOUND)
        method, handler = route
        if asked.method.decode() not in (method, "HEAD" if method == "GET" else method):
            return text("405: Method Not Allowed", HTTPStatus.METHOD_NOT_ALLOWED)
        pairs = parse_qsl(target.query, keep_blank_values=True)
        try:
            return await handler(dict(reversed(pairs)))
        except Exception as error:
            _log.error("a question was not answered", path=target.path, why=repr(error))
            return text("500: Internal Server Error", HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _send(self, asked: h11.Request | None, answer: Answer) -> None:
        headers, body = [("Content-Type", answer.kind)], answer.body
        if answer.gzip and asked and any(n == b"accept-encoding" and b"gzip" in value for n, value in asked.headers):
            headers.append(("Content-Encoding", "gzip"))
            body = await asyncio.to_thread(gzip.compress, body) if len(body) >= _LARGE else gzip.compress(body)
        headers.append(("Content-Length", str(len(body))))
        reason = HTTPStatus(answer.status).phrase
        head = h11.Response(status_code=answer.status, headers=headers, reason=reason)
        if asked and asked.method == b"HEAD":
            body = b""
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        self._writer.write(b"".join(self._wire.send(event) or b"" for event in events))
        await self._writer.drain()
