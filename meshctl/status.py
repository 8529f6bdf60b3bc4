"""`meshctl status`: every daemon of this machine, or of a lab, in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from meshctl import columns
from meshctl.admin import NotPermitted, Place, Unreachable, get
from meshctl.findings import place
from meshctl.tunnel import place_options

DAEMONS: Final = ("controlplane", "nodeagent", "ztunnel")


@click.command()
@place_options
def status(place: Place, output: str) -> None:
    """Who runs, and what is wrong. Exit code 1 when something is, 3 when nobody answers.

    \b
    sudo meshctl status
    meshctl status --lab nm -o json
    """
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
    if captures := [line for report in found for line in _capture(report)]:
        lines += ["", *captures]
    for report in found:
        lines += [
            columns.paint(f"{report['node']} {report['daemon']}: {each}", "red") for each in _errors(report["details"])
        ]
    return "\n".join(lines)


def _capture(report: dict[str, Any]) -> Iterator[str]:
    """An agent's: which backends it may use, whether each can be used here, how many pods each has."""
    capture = dict(report["details"].get("capture") or {})
    used = report["details"].get("captured_by") or {}
    if capture:
        setting, direct = capture.pop("setting", ""), capture.pop("direct", "off")
        probes, legacy = capture.pop("probes", "off"), capture.pop("legacy", "")
        ways = (f"{name} ({f'{used[name]} pods' if name in used else why})" for name, why in capture.items())
        yield f"{report['node']} captures with {', '.join(ways)}; NODEMESH_CAPTURE={setting}"
        if direct != "off":
            how = "where the tunnel grants it" if direct == "on" else f"but cannot: {direct}"
            yield f"{report['node']} lets pods talk directly within the node, {how}"
        how = "lets the kubelet's probes pass" if probes == "pass" else f"captures the kubelet's probes: {probes}"
        yield f"{report['node']} {how}"
        if legacy:
            yield f"{report['node']} reads legacy tables by iptables-legacy-save: {legacy}"


def _summary(details: dict[str, Any]) -> str:
    """Numbers and words as they are, lists by their length, counts by their sum, what is in objects behind a dot."""
    shown: list[str] = []
    for key, value in details.items():
        if key in ("capture", "captured_by", "foreign_rules"):
            continue  # lines of their own
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        plain = {k: _number(v) if isinstance(v, (list, dict)) else v for k, v in inner.items()}
        shown += [f"{k}={v}" for k, v in plain.items() if v not in ("", None) and k != "xds.error"]
    return "  ".join(shown)


def _number(several: list[Any] | dict[str, Any]) -> int:
    counts = isinstance(several, dict) and all(isinstance(value, int) for value in several.values())
    return sum(several.values()) if isinstance(several, dict) and counts else len(several)


def _errors(details: dict[str, Any]) -> list[str]:
    """What a person should know, from what the daemons say of themselves."""
    return [*_refused_documents(details), *_of_agent(details), *_of_tunnel(details)]


def _refused_documents(details: dict[str, Any]) -> Iterator[str]:
    """The control plane's, as file:line and why."""
    for each in details.get("findings") or []:
        if each.get("level") == "error":
            yield f"{place(each)}: {each.get('why')}"


def _of_agent(details: dict[str, Any]) -> Iterator[str]:
    if details.get("tunnels") == 0:
        yield "no tunnel is connected: pods of the mesh do not start on this node"
    pods = details.get("pods")
    if isinstance(pods, dict) and pods.get("CUT_OFF"):
        yield f"{pods['CUT_OFF']} pods are cut off: `last_error` of GET /pods says why"
    for uid, foreign in (details.get("foreign_rules") or {}).items():
        yield from (f"{uid}: beside its capture, {each}" for each in foreign)


def _of_tunnel(details: dict[str, Any]) -> Iterator[str]:
    if pending := details.get("pending"):
        yield f"not ready, waits for: {', '.join(map(str, pending))}"
    xds, certificates = details.get("xds") or {}, details.get("certificates") or {}
    if xds.get("connected") is False:
        why = f" ({xds['error']})" if xds.get("error") else ""
        yield f"no configuration comes from {xds.get('address')}{why}; what was received last is in force"
    yield from (f"{identity}: {why}" for identity, why in (certificates.get("troubles") or {}).items())
