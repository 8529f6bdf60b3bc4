"""`controlplane validate` and `controlplane analyze`: documents judged without a mesh, file by file and all together.

Exit codes: 0 nothing found, 1 something was, 2 wrong use.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
import yaml

from controlplane.documents import Document, Key, Parsed
from controlplane.settings import load as load_settings
from controlplane.sources.files import FileSource, load
from controlplane.store import Store
from controlplane.translate import analysis, analysis_routes
from controlplane.translate.messages import ERROR, LEVELS, Message, Step, text_of
from controlplane.validate import Field, Finding, Level
from mesh.errors import OperatorError

OUTPUTS: Final = ("log", "json", "yaml")
_STRANGE_KIND: Final = "is not used here"
_EARLIER: Final = "earlier version"
# Warnings of a document alone, which the analysis has better.
_TOLD_BELOW: Final = re.compile(r"\(IST01(28|34)\)")


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="log", show_default=True)
def validate(paths: tuple[Path, ...], output: str) -> None:
    """Is each document of these files and directories valid by itself? Nothing is asked of a mesh."""
    contents = read(paths)
    store = Store(load_settings(os.environ).mesh)
    store.update(contents)
    if output == "log":
        for finding in store.findings:
            click.echo(finding)
        for file in contents:
            if not any(each.file == file and each.level is Level.ERROR for each in store.findings):
                click.echo(f'"{file}" is valid')
    else:
        click.echo(written([_plain(each) for each in store.findings], output))
    raise SystemExit(1 if any(each.level is Level.ERROR for each in store.findings) else 0)


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="log", show_default=True)
@click.option("--failure-threshold", type=click.Choice(LEVELS, case_sensitive=False), default=ERROR, show_default=True)
def analyze(paths: tuple[Path, ...], output: str, failure_threshold: str) -> None:
    """What is wrong with these files together, by Istio's message codes; without a path: with the configuration."""
    settings = load_settings(os.environ)
    contents = read(paths or (settings.config_dir,))
    store = Store(settings.mesh)
    store.update(contents)
    found = reports(store)
    names = ", ".join(map(str, paths)) or str(settings.config_dir)
    raise SystemExit(tell(found, output, failure_threshold, names))


def tell(found: list[dict[str, Any]], output: str, threshold: str, names: str) -> int:
    """Prints, and returns the exit code."""
    bad = [each for each in found if LEVELS.index(each["level"]) >= LEVELS.index(threshold)]
    if output != "log":
        click.echo(written(found, output))
    for each in found if output == "log" else ():
        click.echo(f"{each['level']} [{each['code']}] ({each['origin']} {each['reference']}) {each['message']}")
    if not found and output == "log":
        click.echo(f"\N{HEAVY CHECK MARK} No validation issues found when analyzing {names}.")
    if bad and output == "log":
        click.echo(f"Error: Analyzers found issues when analyzing {names}.", err=True)
    return 1 if bad else 0


def written(items: list[dict[str, Any]], output: str) -> str:
    return json.dumps(items, indent=2) if output == "json" else yaml.safe_dump(items, sort_keys=False).rstrip()


def read(paths: Iterable[Path]) -> dict[str, Parsed]:
    """Raises OperatorError: there is no such file or directory."""
    contents: dict[str, Parsed] = {}
    for path in paths:
        if path.is_dir():
            contents.update(FileSource(path).read())
        elif path.exists():
            contents[str(path)] = load(str(path))
        else:
            raise OperatorError("does not exist", where=str(path))
    return contents


def _plain(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in ("file", "line", "level", "kind", "name", "why")}


def reports(store: Store) -> list[dict[str, Any]]:
    """In the form of `istioctl analyze -o json`."""
    places = store.places()
    lines = _Lines()
    found = [_of_finding(each) for each in store.findings if not _TOLD_BELOW.search(each.why)]
    layer7 = store.layer7
    for message in chain(analysis.analyze(store.inventory, layer7), analysis_routes.analyze(store.inventory, layer7)):
        place = places.get(Key(message.kind, message.namespace, message.name))
        file, line = place or ("", 0)
        found.append(_report(message, f"{file}:{lines.of(file, message) or line}"))
    unique = {json.dumps(each, sort_keys=True): each for each in found}
    return sorted(unique.values(), key=_order)


def _order(report: dict[str, Any]) -> tuple[Any, ...]:
    """The worst first, then as one reads."""
    file, _, line = report["reference"].rpartition(":")
    return -LEVELS.index(report["level"]), report["code"], file, int(line), report["origin"], report["message"]


def _report(message: Message, reference: str) -> dict[str, Any]:
    return {
        "code": message.code,
        "documentationUrl": message.documentation,
        "level": message.level,
        "message": message.text,
        "origin": message.origin,
        "reference": reference,
    }


def _of_finding(finding: Finding) -> dict[str, Any]:
    code = "IST0106"
    if finding.level is Level.WARNING or _STRANGE_KIND in finding.why:
        code = "IST0133"
    if _EARLIER in finding.why:
        code = "IST0002"
    if "(IST0167)" in finding.why:
        code = "IST0167"
    namespace, _, name = finding.name.rpartition("/")
    kind = finding.kind or "file"
    message = Message(code, kind, namespace, name, text_of(code, finding.why))
    return _report(message, f"{finding.file}:{finding.line}")


class _Lines:
    """Where a field stands. Documents that were judged have dropped their trees, so files are parsed once more."""

    def __init__(self) -> None:
        self._files: dict[str, dict[Key, Document]] = {}

    def of(self, file: str, message: Message) -> int:
        """0: not to be found."""
        if not file or not message.path:
            return 0
        if file not in self._files:
            self._files[file] = {each.key: each for each in load(file).documents}
        document = self._files[file].get(Key(message.kind, message.namespace, message.name))
        return _line(document.root, message.path) if document else 0


def _line(field: Field, path: tuple[Step, ...]) -> int:
    """Of the last step that is there."""
    for step in path:
        if isinstance(step, int):
            items = field.items()
            inner = items[step] if step < len(items) else None
        else:
            inner = field.get(step)
        if inner is None or not inner.present:
            break
        field = inner
    return field.line
