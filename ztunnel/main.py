"""The tunnel's entry: settings in, doors bound, core opened, tunnel run; decides the exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mesh import log, profiles
from mesh.errors import OperatorError
from ztunnel.admin import Answers, admin_routes, readiness_routes, serve, stats_routes
from ztunnel.channel import check_files
from ztunnel.dataplane import Dataplane, native_stacks, open_core
from ztunnel.listen import bind_tcp, bind_unix
from ztunnel.settings import Settings
from ztunnel.tunnel import Tunnel

_log = log.get("ztunnel")


def main() -> None:
    """`ztunnel [run]`. Exit codes: 0 drained and stopped, 1 cut short, 2 an operator has to act."""
    try:
        if sys.argv[1:] not in ([], ["run"]):
            raise OperatorError("the only command is `ztunnel run`; its settings come from the environment")
        settings = Settings.read(os.environ)
        log.configure(settings.log_format, settings.log_level)
        gc.freeze()  # what there is now stays: looking for garbage in it takes 20 ms of a processor, each time
        drained = asyncio.run(run(settings))
    except OperatorError as error:
        log.refuse("ztunnel", error)
    except BaseExceptionGroup as group:
        operators = group.subgroup(OperatorError)
        if operators is None:
            raise
        log.refuse("ztunnel", _first(operators))
    sys.exit(0 if drained else 1)


async def run(settings: Settings, open_core: Callable[[bytes], Dataplane] = open_core) -> bool:
    """The life of one tunnel. Nothing is started before everything that can be missing or occupied was looked at."""
    check_files(settings)
    _raise_descriptor_limit()
    with bound(settings) as doors:
        dataplane = open_core(settings.core_config())
        try:
            tunnel = Tunnel(settings, dataplane, _version())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, tunnel.stop)
            async with serving(doors, tunnel.answers()):
                _log.info(log.STARTED, version=_version(), node=settings.node_name)
                return await tunnel.run()
        finally:
            await dataplane.close()
            _log.info(log.STOPPED)


@dataclass(frozen=True, slots=True)
class Doors:
    """Taken; connections wait until they are served."""

    unix: socket.socket
    admin: socket.socket
    stats: socket.socket
    readiness: socket.socket


@contextmanager
def bound(settings: Settings) -> Iterator[Doors]:
    """Takes the Unix socket's name away again. Raises OperatorError: a port or the socket is occupied."""
    path: Path = settings.run_dir / "ztunnel.sock"
    with ExitStack() as stack:
        unix = stack.enter_context(bind_unix(path))
        stack.callback(path.unlink, missing_ok=True)
        yield Doors(
            unix,
            stack.enter_context(bind_tcp(settings.admin, "ADMIN_ADDR")),
            stack.enter_context(bind_tcp(settings.stats, "STATS_ADDR")),
            stack.enter_context(bind_tcp(settings.readiness, "READINESS_ADDR")),
        )


@asynccontextmanager
async def serving(doors: Doors, answers: Answers) -> AsyncIterator[None]:
    servers = [
        await serve(admin_routes(answers, profiles.doors(native_stacks)), doors.unix),
        await serve(admin_routes(answers), doors.admin),
        await serve(stats_routes(answers), doors.stats),
        await serve(readiness_routes(answers), doors.readiness),
    ]
    try:
        yield
    finally:
        for server in servers:
            await server.close()


def _raise_descriptor_limit() -> None:
    """Every connection costs two to four descriptors; the usual soft limit of 1,024 is gone with a hundred pods."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _version() -> str:
    try:
        return version("nodemesh")
    except PackageNotFoundError:
        return "unknown"


def _first(error: BaseException) -> OperatorError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OperatorError)
    return error


if __name__ == "__main__":
    main()
