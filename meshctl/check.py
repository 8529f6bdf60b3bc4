"""`meshctl check`: is everything on this node as it should be? One sentence per finding, and what to do."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from mesh.errors import OperatorError
from meshctl import columns, findings
from meshctl.admin import NotPermitted, Place, Unreachable, ask, get
from meshctl.findings import Finding
from meshctl.scrape import gauges
from meshctl.tunnel import dump_options

OLDEST_KERNEL: Final = (5, 10)
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronized
_MARK: Final = {"ok": ("ok  ", "green"), "note": ("note", "cyan"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
_PATH: Final = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


@click.command()
@dump_options
def check(place: Place, output: str) -> None:
    """Daemons, configuration, certificates, every pod's rules and sockets, clock, kernel: is all as it should be?

    Changes nothing. Exit code 0: nothing failed (warnings are allowed); 1: something did; 3: no daemon is here.

    \b
    sudo meshctl check
    meshctl check --lab nm --node node1 -o json
    meshctl check -f dump.json
    """
    found = list(_of_file(place) if place.file else _of_node(place))
    if output == "short":
        for finding in found:
            mark, colour = _MARK[finding.level]
            click.echo(f"{columns.paint(mark, colour)} {finding.what}")
            if finding.do:
                click.echo(f"       → {finding.do}")
        click.echo(", ".join(f"{sum(f.level == level for f in found)} {level}" for level in _MARK))
    else:
        click.echo(columns.document("FindingList", [asdict(finding) for finding in found], output))
    raise SystemExit(1 if any(finding.level == "fail" for finding in found) else 0)


def _of_file(place: Place) -> Iterator[Finding]:
    def seconds(text: str) -> float:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()

    yield from findings.of_dump(place.config_dump(), time.time(), seconds)


def _of_node(place: Place) -> Iterator[Finding]:
    yield from _kernel()
    yield from _clock()
    some = False
    notes: list[Finding] = []
    for owner, run_dir in place.run_dirs().items():
        several = len(place.run_dirs()) > 1
        for finding in _of_run_dir(run_dir):
            some = True
            if finding.level == "note":
                notes += [] if finding in notes else [finding]  # what no node can prevent: once, not for each
                continue
            yield Finding(finding.level, f"{owner}: {finding.what}" if several else finding.what, finding.do)
    yield from notes
    if not some:
        raise Unreachable("no daemon has its socket here", where=", ".join(map(str, place.run_dirs().values())))


def _of_run_dir(run_dir: Path) -> Iterator[Finding]:
    def here(name: str) -> bool:
        try:
            return (run_dir / f"{name}.sock").exists()
        except PermissionError:
            raise NotPermitted("only root may look there: run with sudo", where=str(run_dir)) from None

    node = here("ztunnel") or here("nodeagent")
    served: list[str] = []
    if node:
        tunnel = yield from _asked(run_dir / "ztunnel.sock", "/status", "the tunnel")
        if tunnel is not None:
            yield from findings.of_tunnel(tunnel, time.time())
            served = (tunnel.get("zds") or {}).get("pods") or []
            yield from findings.of_metrics(gauges(ask(run_dir / "ztunnel.sock", "/metrics").decode()))
        pods = yield from _asked(run_dir / "nodeagent.sock", "/verify", "the node agent")
        if pods is not None and tunnel is not None:
            yield from findings.of_pods(pods, served)
        agent = yield from _asked(run_dir / "nodeagent.sock", "/status", "the node agent")
        if agent is not None:
            yield from findings.of_guard(agent)
            yield from findings.of_legacy(agent)
            yield from findings.of_kubernetes(agent)
    if here("controlplane"):
        control = yield from _asked(run_dir / "controlplane.sock", "/status", "the control plane")
        if control is not None:
            yield from findings.of_controlplane(control)
            yield from findings.of_kubernetes(control)


def _asked(path: Path, target: str, who: str) -> Any:
    """A generator that returns the answer; None after the finding that there is none."""
    try:
        return get(path, target)
    except NotPermitted:
        raise
    except OperatorError as gone:
        yield Finding("fail", f"{who} does not answer: {gone}", "start it, or see why it ended in its log")
        return None


def _kernel() -> Iterator[Finding]:
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal())
    if version < OLDEST_KERNEL:
        yield Finding("fail", f"kernel {release} is older than 5.10", "a newer kernel")
    elif shutil.which("nft", path=_PATH) is None:
        yield Finding("fail", "nft is not installed: no pod can be captured", "apt-get install nftables")
    else:
        yield Finding("ok", f"kernel {release}, nft is there")
    if Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").exists():
        return
    yield Finding("warn", "the kernel has no IPv6: only IPv4 is captured", "nothing, if no pod uses it")


def _clock() -> Iterator[Finding]:
    """Certificates are as good as the clocks that judge them."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes 0: only look
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) == _TIME_ERROR:
        yield Finding("warn", "this node's clock is not synchronized", "run an NTP client, for instance chrony")
    else:
        yield Finding("ok", "the clock is synchronized")
