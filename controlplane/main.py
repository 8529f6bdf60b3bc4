"""The control plane's command line and composition: sources, store, push, doors. Decides what an error does to us."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from controlplane import admin, checks, rotation, server
from controlplane.attest import Callers, Tokens, proxy_caller, proxy_key
from controlplane.ca import Authority, load_authority
from controlplane.cluster import Cluster
from controlplane.collector import Frozen
from controlplane.envoys import Envoys
from controlplane.push import Board
from controlplane.settings import Settings, load
from controlplane.sources.base import Contents, Source
from controlplane.sources.files import FileSource, without_collector
from controlplane.sources.many import Many
from controlplane.store import Store
from controlplane.validate import Finding, Level
from mesh import log
from mesh.errors import OperatorError
from mesh.settings import parse_duration

STOP_GRACE_S: Final = 1.0
SOCKET: Final = "controlplane.sock"
_log: Final = log.get("controlplane")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """The control plane of a mesh: reads configuration, feeds the node tunnels, issues their certificates."""
    if context.invoked_subcommand is None:
        context.invoke(run)


@cli.command()
def run() -> None:
    """Serve until SIGTERM (the default command)."""
    settings = load(os.environ)
    log.configure(settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
def check(directory: Path) -> None:
    """Validate the documents in DIRECTORY; exit code 1 if any is refused."""
    settings = load(os.environ)
    store = Store(settings.mesh)
    store.update(_files(directory, settings, store).read())
    for finding in store.findings:
        click.echo(finding)
    errors = sum(finding.level is Level.ERROR for finding in store.findings)
    counts = ", ".join(f"{number} {kind}" for kind, number in store.counts.items()) or "nothing"
    click.echo(f"{counts} accepted; {errors} errors, {len(store.findings) - errors} warnings")
    raise SystemExit(1 if errors else 0)


cli.add_command(rotation.commands, "ca")
cli.add_command(checks.validate)
cli.add_command(checks.analyze)


@cli.group()
def token() -> None:
    """Join tokens: what a node, a waypoint or a gateway proves itself with."""


@token.command()
@click.option("--node", help="The node's name, as its pods' spec.nodeName.")
@click.option("--proxy", help="NAMESPACE/NAME of a waypoint or gateway.")
@click.option("--ttl", default="8760h", show_default=True, help="How long it is accepted, for instance 24h.")
def create(node: str | None, proxy: str | None, ttl: str) -> None:
    """Print a new token for a node or a proxy; its old one is no longer accepted."""
    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise OperatorError(str(error), where="--ttl") from None
    click.echo(_tokens().create(_whose(node, proxy), seconds))


def _whose(node: str | None, proxy: str | None) -> str:
    if bool(node) == bool(proxy):
        raise OperatorError("say for whom: either --node NAME or --proxy NAMESPACE/NAME")
    return proxy_caller(proxy) if proxy else node or ""


@token.command("list")
def list_() -> None:
    """Who has a token, and until when."""
    now = time.time()
    for each in _tokens().all():
        until = datetime.fromtimestamp(each.expires, UTC).isoformat(timespec="seconds")
        click.echo(f"{proxy_key(each.node) or each.node}   {until}{'   expired' if each.expires <= now else ''}")


@token.command()
@click.option("--node")
@click.option("--proxy")
def revoke(node: str | None, proxy: str | None) -> None:
    """Accept the token no longer; streams that are open end within half an hour."""
    _tokens().revoke(_whose(node, proxy))


def _tokens() -> Tokens:
    return Tokens(load(os.environ).state_dir)


async def serve(settings: Settings, ready: Callable[[int], None] = lambda _: None) -> None:
    """Until SIGTERM or SIGINT. `ready` is called with the port once calls are answered. Raises OperatorError."""
    authority = load_authority(settings.state_dir, settings.mesh.trust_domain)
    store = Store(settings.mesh)
    async with AsyncExitStack() as stack:
        frozen = Frozen()
        cluster, source, board, envoys = await _start(settings, authority, store, stack, frozen)
        callers: Callers = cluster.callers if cluster else Tokens(settings.state_dir)
        discovery = server.Discovery(board, callers, envoys)
        certificates = server.Certificates(authority, callers, board, settings.mesh.trust_domain, envoys)
        bundles = server.Bundles(authority, callers, settings.mesh.trust_domain)
        certificate = server.ServerCertificate(authority, (*server.NAMES, *settings.sans))
        grpc_server, port = server.listen(settings.address, certificate, discovery, certificates, bundles)
        stack.push_async_callback(grpc_server.stop, STOP_GRACE_S)
        socket = settings.run_dir / SOCKET
        runner = await admin.serve(
            socket,
            status=lambda: status(store, board, discovery, envoys, cluster),
            resources=lambda: board.current,
            analysis=lambda: checks.reports(store),
        )
        stack.callback(socket.unlink, missing_ok=True)
        stack.push_async_callback(runner.cleanup)
        await grpc_server.start()
        _log.info(log.READY, address=f"{settings.address[0]}:{port}", path=_path(settings))
        ready(port)
        told = cluster.statuses.touch if cluster else lambda: None
        work = [_watch(source, store, board, envoys, told, frozen), board.run(), envoys.run()]
        await _until_stopped(*work, *([cluster.run()] if cluster else []))
        _log.info(log.STOPPING)


async def _start(
    settings: Settings, authority: Authority, store: Store, stack: AsyncExitStack, frozen: Frozen
) -> tuple[Cluster | None, Source, Board, Envoys]:
    """With the whole of the source's first state in the other three. Raises OperatorError."""
    cluster, source, first = await _source(settings, authority, store, stack)
    with without_collector():  # all that is made here stays: to look for garbage in it takes seconds
        await asyncio.to_thread(lambda: _take(store, first()))
        board, envoys = Board(store.world), Envoys(store.world, store.l7)
        frozen.look(store.size)
    if cluster:
        cluster.statuses.touch()
    return cluster, source, board, envoys


async def _source(
    settings: Settings, authority: Authority, store: Store, stack: AsyncExitStack
) -> tuple[Cluster | None, Source, Callable[[], Contents]]:
    """And what gives its first state. Both raise OperatorError."""
    if settings.kubernetes is None:
        files = _files(settings.config_dir, settings, store)
        return None, files, files.read
    settings.kubernetes.access.check()
    seen, told, judge = store.judge, store.conditions, lambda: store.layer7
    cluster = Cluster(settings, settings.kubernetes, authority, seen, told, judge)
    stack.push_async_callback(cluster.stop)
    cluster.start()
    contents = await cluster.source.first()
    return cluster, cluster.source, lambda: contents


def _files(directory: Path, settings: Settings, store: Store) -> FileSource:
    return FileSource(directory, Many(settings.mesh.root_namespace, store.judged))


def _path(settings: Settings) -> str:
    return settings.kubernetes.access.server if settings.kubernetes else str(settings.config_dir)


async def _until_stopped(*work: Any) -> None:
    """Until a signal. Work that ends by itself has failed: its exception ends the daemon."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.ensure_future(each) for each in (stop.wait(), *work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(
    source: Source, store: Store, board: Board, envoys: Envoys, told: Callable[[], None], frozen: Frozen
) -> None:
    async for news in source.changes():
        frozen.look(store.size)  # what came last has been made and sent by now
        if await asyncio.to_thread(_take, store, *news):
            board.propose(store.world)
            envoys.propose(store.world, store.l7)
        told()


def _take(store: Store, contents: Contents, touched: frozenset[str] | None = None) -> bool:
    known = set(store.findings)
    with without_collector():
        changed = store.update(contents, touched)
    for finding in store.findings:
        if finding not in known:
            _report(finding)
    if changed:
        _log.info(log.CONFIG_APPLIED, version=store.world.version, objects=store.size)
    return changed


def _report(finding: Finding) -> None:
    said = _log.error if finding.level is Level.ERROR else _log.warning
    event = log.CONFIG_REFUSED if finding.level is Level.ERROR else "configuration has no full effect"
    said(event, where=finding.place, kind=finding.kind, name=finding.name, why=finding.why)


def proxies(envoys: Envoys, discovery: server.Discovery) -> list[dict[str, Any]]:
    """Every waypoint and gateway, connected or not."""
    sessions = [each.describe() for each in discovery.sessions]
    return [
        {
            "namespace": each.namespace,
            "name": each.name,
            "role": each.role,
            "service_account": each.service_account,
            "services": [served.service for served in each.services],
            "servers": len(each.servers),
            "connected": [session for session in sessions if session.get("proxy") == each.key],
        }
        for each in sorted(envoys.latest[1].proxies.values(), key=lambda each: each.key)
    ]


def status(
    store: Store, board: Board, discovery: server.Discovery, envoys: Envoys, cluster: Cluster | None = None
) -> dict[str, Any]:
    return {
        "objects": store.counts,
        "kubernetes": cluster.describe() if cluster else None,
        "findings": [
            {
                "file": each.file,
                "line": each.line,
                "level": each.level,
                "kind": each.kind,
                "name": each.name,
                "why": each.why,
            }
            for each in store.findings
        ],
        "policies": store.conditions(),
        "world": {
            "version": store.world.version,
            "pushed_version": board.current.world.version,
            "workloads": len(store.world.workloads),
            "services": len(store.world.services),
            "policies": len(store.world.policies),
        },
        "proxies": proxies(envoys, discovery),
        "nodes": [session.describe() for session in sorted(discovery.sessions, key=lambda each: each.node)],
    }


def main() -> None:
    try:
        cli(standalone_mode=True)
    except OperatorError as error:
        log.refuse("controlplane", error)


if __name__ == "__main__":
    main()
