"""The shell's HTTP doors: admin (Unix socket and loopback), metrics, readiness. Asks others; owns no state.

Paths, methods and texts are those that Istio's tools and kubelet's probes expect.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mesh.profiles import Kind
from ztunnel.http1 import Answer, Handler, Routes, Server, text

Query = Mapping[str, str]
_JSON: Final = "application/json"
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the doors serve. `metrics` and `dump` may take a while and do not block the loop."""

    status: Callable[[], Mapping[str, Any]]
    pending: Callable[[], Sequence[str]]
    """What readiness waits for; empty: ready."""
    metrics: Callable[[], Awaitable[bytes]]
    dump: Callable[[], Awaitable[bytes]]
    """A JSON object."""
    explain: Callable[[str, str], Awaitable[bytes]]
    """(source, destination) -> JSON. Raises ValueError: a sentence about the question."""
    set_log_level: Callable[[str | None], str]
    """A specification (`ztunnel.levels`), `reset`, or None for no change; the levels then. Raises ValueError."""
    quit: Callable[[], None]


def admin_routes(answers: Answers, private: Mapping[str, Kind] = MappingProxyType({})) -> Routes:
    """`private`: what only the socket serves that root alone can open; see `mesh.profiles`."""

    async def status(_: Query) -> Answer:
        return Answer(_dumps(answers.status()).encode(), _JSON)

    async def dump(_: Query) -> Answer:
        return Answer(await answers.dump(), _JSON)

    async def explain(query: Query) -> Answer:
        try:
            said = await answers.explain(query.get("src", ""), query.get("dst", ""))
        except ValueError as error:
            return text(f"{error}\n", 400)
        return Answer(said, _JSON)

    async def logging(query: Query) -> Answer:
        wanted = "reset" if "reset" in query else query.get("level")
        try:
            now = answers.set_log_level(wanted)
        except ValueError as error:
            return text(f"{error}\n", 400)
        return text(f"current log level is {now}\n")

    async def quit(_: Query) -> Answer:
        answers.quit()
        return text("shutdown now\n")

    return _metrics(answers, "/metrics") | {
        "/status": ("GET", status),
        "/config_dump": ("GET", dump),
        "/explain": ("GET", explain),
        "/logging": ("POST", logging),
        "/quitquitquit": ("POST", quit),
        **{path: ("GET", _profile(kind)) for path, kind in private.items()},
    }


def _profile(kind: Kind) -> Handler:
    async def profile(query: Query) -> Answer:
        try:
            return Answer(await kind(query.get("seconds", "10")), "application/octet-stream")
        except ValueError as error:
            return text(f"{error}\n", 400)

    return profile


def stats_routes(answers: Answers) -> Routes:
    return _metrics(answers, "/metrics", "/stats/prometheus")


def readiness_routes(answers: Answers) -> Routes:
    async def ready(_: Query) -> Answer:
        pending = answers.pending()
        return text(f"not ready, pending: {', '.join(pending)}\n", 500) if pending else text("ready\n")

    return {"/healthz/ready": ("GET", ready)}


def _metrics(answers: Answers, *paths: str) -> dict[str, tuple[str, Handler]]:
    async def metrics(_: Query) -> Answer:
        return Answer(await answers.metrics(), _PROMETHEUS, gzip=True)

    return {path: ("GET", metrics) for path in paths}


async def serve(routes: Routes, *listeners: socket.socket) -> Server:
    """Starts; the caller ends it with `close()`."""
    server = Server(routes)
    await server.start(listeners)
    return server


def extend_dump(dump: bytes, extra: Mapping[str, Any]) -> bytes:
    """Adds our keys to the core's JSON object without parsing it: it may be tens of megabytes."""
    head = dump.rstrip()[:-1].rstrip()
    comma = b"" if head.endswith(b"{") else b","
    return head + comma + _dumps(extra).encode()[1:]


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)
