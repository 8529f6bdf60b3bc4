"""The waypoint's command line and composition: identity, SDS, Envoy, admin. Decides what an error does to us.

SIGTERM drains and ends; SIGHUP is a hot restart. The same program is a container's entry point and a unit's main
process; a gateway is the same with another Gateway object.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from mesh import log
from mesh.errors import OperatorError, PeerError
from waypoint import admin, federation, memory
from waypoint.bootstrap import bootstrap
from waypoint.envoy import Runner, binary
from waypoint.identity import Held, channel, keep_bundles, keep_certificate
from waypoint.sds import Secrets, secrets
from waypoint.settings import Settings, load, read_token
from waypoint.sinks import has_hystrix

SOCKET: Final = "waypoint.sock"
_log: Final = log.get("waypoint")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """A waypoint or gateway: Envoy, configured by the control plane, with an identity of the mesh."""
    if context.invoked_subcommand is None:
        context.invoke(run)


@cli.command()
def run() -> None:
    """Serve until SIGTERM (the default command)."""
    settings = load(os.environ)
    log.configure(settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises OperatorError."""
    program = binary(settings.envoy)
    read_token(settings.token)
    await channel(settings).close(None)  # says at once that the roots cannot be read
    private = _private(settings.run_dir)
    identity = private / "identity.sock"
    runner = Runner(
        program,
        private,
        lambda path: bootstrap(
            settings, read_token(settings.token), path, identity, memory.heap(settings.max_heap_mib)
        ),
        settings.concurrency,
        settings.drain_s,
        settings.envoy_log_level,
        settings.said,
    )
    served = Secrets()
    held = Held(lambda: served.publish(secrets(held)))
    files = federation.begin(settings.trust_bundles, held)
    async with AsyncExitStack() as stack:
        sds = await served.serve(identity)
        stack.push_async_callback(sds.stop, 0)
        await _doors(settings, runner, held, stack)
        _log.info(log.READY, proxy=settings.proxy, identity=str(settings.identity))
        await _until_stopped(settings, held, runner, federation.keep(files, held))
        _log.info(log.STOPPING)


async def _doors(settings: Settings, runner: Runner, held: Held, stack: AsyncExitStack) -> None:
    socket = settings.run_dir / SOCKET
    app = admin.application(runner, lambda: status(settings, runner, held), _about(settings))
    stack.push_async_callback((await admin.serve_unix(app, socket)).cleanup)
    stack.callback(socket.unlink, missing_ok=True)
    told = {"/metrics": admin.metrics(runner, _about(settings))}
    if has_hystrix(settings.sinks):
        told["/hystrix.stream"] = admin.hystrix(runner)
    for handlers, address, where in (
        (told, settings.stats, "STATS_ADDR"),
        ({"/healthz/ready": admin.readiness(runner)}, settings.readiness, "READINESS_ADDR"),
    ):
        site = await admin.serve_tcp(admin.machines(handlers), address, where)
        stack.push_async_callback(site.cleanup)


def _about(settings: Settings) -> str:
    """By which a reader of several daemons' metrics knows whose connections are a proxy's (`meshctl graph`)."""
    name, labels = "nodemesh_proxy_info", f'proxy="{settings.proxy}",principal="{settings.identity}"'
    return f"# HELP {name} The waypoint or gateway that tells.\n# TYPE {name} gauge\n{name}{{{labels}}} 1\n"


async def _until_stopped(settings: Settings, held: Held, runner: Runner, more: Coroutine[Any, Any, None]) -> None:
    """Work that ends by itself has failed: its exception ends the daemon."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    restarts: set[asyncio.Task[None]] = set()
    loop.add_signal_handler(signal.SIGHUP, lambda: restarts.add(asyncio.ensure_future(_hot_restart(runner))))
    work = (stop.wait(), keep_certificate(settings, held), keep_bundles(settings, held), runner.run(), more)
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await runner.stop()
    finally:
        for task in (*tasks, *restarts):
            task.cancel()
        await asyncio.gather(*tasks, *restarts, return_exceptions=True)


async def _hot_restart(runner: Runner) -> None:
    try:
        await runner.restart()
    except PeerError as error:
        _log.error("hot restart failed", why=str(error))


def _private(run_dir: Path) -> Path:
    """For what only we and Envoy may open."""
    path = run_dir / "envoy"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", where="NODEMESH_RUN_DIR") from None
    return path


def status(settings: Settings, runner: Runner, held: Held) -> dict[str, Any]:
    current = runner.current
    return {
        "proxy": settings.proxy,
        "identity": str(settings.identity),
        "certificate_expires": datetime.fromtimestamp(held.expires, UTC).isoformat() if held.expires else None,
        "trust_domains": sorted(held.roots),
        "pid": current.process.pid if current else None,
        "epoch": current.number if current else None,
        "hot_restarts": runner.restarts,
        "crashes": runner.crashes,
    }


def main() -> None:
    try:
        cli(standalone_mode=True)
    except OperatorError as error:
        log.refuse("waypoint", error)


if __name__ == "__main__":
    main()
