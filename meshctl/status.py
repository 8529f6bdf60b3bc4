"""`meshctl status`: every daemon of this machine, or of a lab, in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from meshctl import columns
from meshctl.admin import NotPermitted, Place, Unreachable, get
from meshctl.tunnel import place_options

DAEMONS: Final = ("controlplane", "nodeagent", "ztunnel")


@click.command()
@place_options
def status(place: Place, output: str) -> None:
    """Who runs, and what is wrong. Exit code 1 when something is, 3 when nobody answers."""
    found = [report for owner, path in place.run_dirs().items() for report in _ask_all(owner, path)]
    if not found:
        raise Unreachable("no daemon has its socket here", where=", ".join(str(p) for p in place.run_dirs().values()))
    click.echo(_text(found) if output == "short" else columns.document("Status", found, output))
    raise SystemExit(0 if all(report["state"] == "running" for report in found) else 1)


def _ask_all(owner: str, run_dir: Path) -> list[dict[str, Any]]:
    try:
        present = [name for name in DAEMONS if (run_dir / f"{name}.sock").exists()]
    except PermissionError:
        raise NotPermitted("only root may look there: run with sudo", where=str(run_dir)) from None
    return [_ask(owner, name, run_dir / f"{name}.sock") for name in present]


def _ask(owner: str, daemon: str, path: Path) -> dict[str, Any]:
    try:
        said = get(path, "/status")
    except NotPermitted:
        raise
    except Unreachable as gone:
        return {"node": owner, "daemon": daemon, "state": "unreachable", "details": {"why": gone.why}}
    details = said if isinstance(said, dict) else {"status": said}
    state = "finding" if _errors(details) else "running"
    return {"node": owner, "daemon": daemon, "state": state, "details": details}


def _text(found: list[dict[str, Any]]) -> str:
    rows = [[r["node"], r["daemon"], r["state"], _summary(r["details"])] for r in found]
    lines = [columns.table(("NODE", "DAEMON", "STATE", "DETAILS"), rows)]
    for report in found:
        lines += [
            columns.paint(f"{report['node']} {report['daemon']}: {each}", "red") for each in _errors(report["details"])
        ]
    return "\n".join(lines)


def _summary(details: dict[str, Any]) -> str:
    """Numbers and words as they are, lists by their length, what is in objects behind a dot."""
    shown: list[str] = []
    for key, value in details.items():
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        plain = {k: len(v) if isinstance(v, (list, dict)) else v for k, v in inner.items()}
        shown += [f"{k}={v}" for k, v in plain.items() if v not in ("", None)]
    return "  ".join(shown)


def _errors(details: dict[str, Any]) -> list[str]:
    """The control plane's refused documents, as file:line and why."""
    findings = [each for each in details.get("findings") or [] if each.get("level") == "error"]
    return [f"{each.get('file')}:{each.get('line')}: {each.get('why')}" for each in findings]
