"""`meshctl bugreport`: everything that somebody else needs to help, in one archive, and no secret.

What goes in comes from doors that hold no secrets (tokens, headers and keys never leave the daemons) and is looked
through once more before it is written.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import click
from click.testing import CliRunner

from mesh.errors import MeshError, OperatorError
from meshctl.admin import NotPermitted, Place, ask
from meshctl.tunnel import place_options

DOORS: Final = {
    "ztunnel": ("/status", "/config_dump", "/metrics"),
    "nodeagent": ("/status", "/pods", "/verify"),
    "controlplane": ("/status",),
}
LOG_BYTES: Final = 1 << 20
"""Of the access log's end."""
_SECRET: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\"auth_token\"|[Bb]earer [A-Za-z0-9._-]{16,}")


@click.command()
@place_options
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The archive; by default named by the time."
)
def bugreport(place: Place, output: str, out: Path | None) -> None:
    """One tar.gz with the daemons' states, dumps, metrics and findings, and the access log's end. Without secrets.

    Holds names, addresses and identities of workloads: look through it before you hand it on.

    \b
    sudo meshctl bugreport
    meshctl bugreport --lab nm --node node1 --out report.tar.gz
    """
    path = out or Path(time.strftime("nodemesh-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime()))
    files = dict(_collect(place))
    try:
        with tarfile.open(path, "w:gz") as archive:
            for name, body in files.items():
                _add(archive, f"{path.name.removesuffix('.tar.gz')}/{name}", body)
        path.chmod(0o600)
    except OSError as error:
        raise OperatorError(error.strerror or str(error), where=str(path)) from None
    if output == "short":
        click.echo(f"{path}: {len(files)} files, {path.stat().st_size} bytes")
    else:
        click.echo(json.dumps({"path": str(path), "files": sorted(files)}))


def _add(archive: tarfile.TarFile, name: str, body: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(body), int(time.time()), 0o600
    archive.addfile(entry, io.BytesIO(body))


def _collect(place: Place) -> Iterator[tuple[str, bytes]]:
    yield "machine.txt", _machine()
    yield "check.txt", _command("check", place)
    for owner, run_dir in place.run_dirs().items():
        for daemon, targets in DOORS.items():
            socket = run_dir / f"{daemon}.sock"
            for target in targets if _exists(socket) else ():
                suffix = ".txt" if target == "/metrics" else ".json"
                yield f"{owner}/{daemon}{target}{suffix}", _looked_through(partial(ask, socket, target))
        if _exists(run_dir / "ztunnel.sock"):
            yield f"{owner}/access.log", _looked_through(partial(_access_log, run_dir))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise NotPermitted("only root may look there: run with sudo", where=str(path.parent)) from None


def _looked_through(read: Callable[[], bytes]) -> bytes:
    """What cannot be had is said in its place; what looks like a secret is not handed on."""
    try:
        body = read()
    except NotPermitted:
        raise
    except (MeshError, OSError, ValueError) as error:
        return f"not available: {error}\n".encode()
    return b"left out: it looked like it held a secret\n" if _SECRET.search(body) else body


def _access_log(run_dir: Path) -> bytes:
    config = json.loads(ask(run_dir / "ztunnel.sock", "/status")).get("access_log", "")
    if config in ("", "stderr", "off"):
        return f"the access log goes to {config or 'an unknown place'}\n".encode()
    with Path(config).open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0))
        return file.read()


def _machine() -> bytes:
    try:
        ours = version("nodemesh")
    except PackageNotFoundError:
        ours = "unknown"
    uname = os.uname()
    lines = [f"nodemesh {ours}", f"{uname.sysname} {uname.release} {uname.machine}", f"{os.cpu_count()} processors"]
    return "\n".join([*lines, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), ""]).encode()


def _command(name: str, place: Place) -> bytes:
    """What another command says of the same place."""
    from meshctl.main import cli

    where = ["--lab", place.lab] if place.lab else []
    where += ["--node", place.node] if place.node else []
    where += ["--run-dir", str(place.run_dir)] if place.run_dir else []
    done = CliRunner().invoke(cli, [name, *where])
    said = f"{done.exception}\n" if isinstance(done.exception, MeshError) else ""
    return f"{done.output}{said}exit code {done.exit_code}\n".encode()
