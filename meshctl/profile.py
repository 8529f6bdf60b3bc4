"""`meshctl profile`: a running daemon's processor time or memory, as a file for `go tool pprof`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from mesh.errors import OperatorError
from meshctl.admin import Place, ask
from meshctl.tunnel import place_options

DAEMONS: Final = ("ztunnel", "controlplane")
_PATHS: Final = {"cpu": "/debug/pprof/profile", "heap": "/debug/pprof/heap"}
_PATIENCE_S: Final = 30.0


@click.command()
@place_options
@click.argument("kind", type=click.Choice(list(_PATHS)))
@click.option("--of", "daemon", type=click.Choice(DAEMONS), default="ztunnel", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 300.0), default=10.0, show_default=True, help="How long to look.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="By default DAEMON-KIND.pb.gz.")
def profile(place: Place, output: str, kind: str, daemon: str, seconds: float, out: Path | None) -> None:
    """Look at a daemon for some seconds and write a profile for `go tool pprof`.

    cpu of a tunnel is that of all its threads by native frames, of a control plane that of its Python code. heap is
    what Python allocates in that time and keeps (everything, when the daemon runs with PYTHONTRACEMALLOC=16), beside
    what malloc has handed out and holds free.

    \b
    sudo meshctl profile cpu --seconds 30
    sudo meshctl profile heap --of controlplane --out heap.pb.gz
    go tool pprof -top ztunnel-cpu.pb.gz
    """
    if place.file:
        raise OperatorError("a profile is taken of a running daemon: leave --file out")
    places = place.run_dirs()
    found = next((path / f"{daemon}.sock" for path in places.values() if (path / f"{daemon}.sock").exists()), None)
    socket = found or next(iter(places.values())) / f"{daemon}.sock"
    said = ask(socket, f"{_PATHS[kind]}?seconds={seconds:g}", timeout_s=seconds + _PATIENCE_S)
    path = out or Path(f"{daemon}-{kind}.pb.gz")
    try:
        path.write_bytes(said)
    except OSError as error:
        raise OperatorError(error.strerror or str(error), where=str(path)) from None
    click.echo(f"{path}: read it with `go tool pprof {path}`")
