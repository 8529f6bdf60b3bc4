"""`meshctl validate` and `meshctl analyze`: documents judged by the control plane's checker.

A process of its own, or the running control plane about the configuration that it has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click
import yaml

from mesh.errors import OperatorError
from meshctl.admin import Place, get

OUTPUTS: Final = ("log", "json", "yaml")
LEVELS: Final = ("Info", "Warning", "Error")
_output: Final = click.option("-o", "--output", type=click.Choice(OUTPUTS), default="log", show_default=True)


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_output
def validate(paths: tuple[Path, ...], output: str) -> None:
    """Is each document of these files or directories valid by itself? Nobody is asked, nothing changes.

    Exit code 0: all are (warnings are allowed); 1: one is not.

    \b
    meshctl validate routes.yaml
    meshctl validate /etc/nodemesh/config -o json
    """
    raise SystemExit(_checker("validate", "-o", output, *map(str, paths)))


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run directory of the control plane.")
@click.option("--lab", default="", help="The control plane of this lab.")
@click.option("--failure-threshold", type=click.Choice(LEVELS, case_sensitive=False), default="Error")
@_output
def analyze(paths: tuple[Path, ...], run_dir: Path | None, lab: str, failure_threshold: str, output: str) -> None:
    """What is wrong between documents, by Istio's message codes: in files, or as the running control plane has them.

    Exit code 0: nothing as bad as --failure-threshold; 1: something was; 3: no control plane answers.

    \b
    meshctl analyze routes.yaml services.yaml
    meshctl analyze /etc/nodemesh/config -o json
    sudo meshctl analyze --failure-threshold Warning
    """
    if paths:
        raise SystemExit(_checker("analyze", "-o", output, "--failure-threshold", failure_threshold, *map(str, paths)))
    raise SystemExit(_tell(_asked(Place(run_dir=run_dir, lab=lab)), output, failure_threshold))


def _checker(*arguments: str) -> int:
    """The control plane's, with its output and exit code."""
    return subprocess.run([sys.executable, "-m", "controlplane.main", *arguments], check=False).returncode


def _asked(place: Place) -> list[dict[str, Any]]:
    places = [path / "controlplane.sock" for path in place.run_dirs().values()]
    found = get(next((each for each in places if each.exists()), places[0]), "/analysis")
    if not isinstance(found, list):
        raise OperatorError("the control plane's answer is no list of messages")
    return found


def _tell(found: list[dict[str, Any]], output: str, threshold: str) -> int:
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(found, sort_keys=False).rstrip())
    else:
        for each in found:
            click.echo(f"{each['level']} [{each['code']}] ({each['origin']} {each['reference']}) {each['message']}")
        if not found:
            click.echo("\N{HEAVY CHECK MARK} No validation issues found.")
    return int(any(LEVELS.index(each["level"]) >= LEVELS.index(threshold) for each in found))
