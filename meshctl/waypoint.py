"""`meshctl waypoint`: Gateway documents for waypoints, and what became of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import yaml

from mesh.errors import OperatorError
from mesh.ids import SpiffeId
from meshctl import columns
from meshctl.admin import Place, get

CLASS: Final = "istio-waypoint"
FOR: Final = "istio.io/waypoint-for"
_DEFAULT_CONFIG: Final = "/etc/nodemesh/config"
_name = click.argument("name", default="waypoint")
_namespace = click.option("-n", "--namespace", default="default", show_default=True)
_traffic = click.option(
    "--for",
    "traffic",
    type=click.Choice(["service", "workload", "all", "none"]),
    default="service",
    show_default=True,
    help="What is addressed through it: services, workloads' own addresses, both.",
)
_config = click.option(
    "--config-dir", type=click.Path(path_type=Path), help="The control plane's documents; default: NODEMESH_CONFIG_DIR."
)


@click.group()
def waypoint() -> None:
    """Waypoints: the proxies that know HTTP.

    \b
    meshctl waypoint apply --namespace shop
    meshctl waypoint list
    meshctl waypoint generate edge -n shop --for all | kubectl apply -f -
    """


def _place(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-o", "--output", type=click.Choice(columns.OUTPUTS), default="short"),
        click.option("--lab", default="", help="Ask the control plane of a lab."),
        click.option("--run-dir", type=click.Path(path_type=Path), help="Of the control plane."),
    ):
        command = option(command)
    return command


@waypoint.command()
@_name
@_namespace
@_traffic
def generate(name: str, namespace: str, traffic: str) -> None:
    """Print a waypoint's Gateway, and change nothing."""
    click.echo(_text(name, namespace, traffic), nl=False)


@waypoint.command()
@_name
@_namespace
@_traffic
@_config
def apply(name: str, namespace: str, traffic: str, config_dir: Path | None) -> None:
    """Write a waypoint's Gateway where the control plane reads it; again is fine."""
    path = _file(config_dir, name, namespace)
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(_text(name, namespace, traffic))
        os.replace(aside, path)
    except OSError as error:
        raise OperatorError(f"cannot be written: {error.strerror}", where=str(path)) from None
    click.echo(f"waypoint {namespace}/{name}: {path}")
    click.echo(f"it serves what says so: label istio.io/use-waypoint: {name} on a Service or a Namespace")
    click.echo(f"run it with: WAYPOINT_NAME={namespace}/{name} waypoint run")


@waypoint.command()
@_name
@_namespace
@_config
def delete(name: str, namespace: str, config_dir: Path | None) -> None:
    """Take a waypoint's Gateway away. What still names it is refused, not sent round it."""
    path = _file(config_dir, name, namespace)
    try:
        path.unlink()
    except FileNotFoundError:
        raise OperatorError("there is no such waypoint that `meshctl waypoint apply` wrote", where=str(path)) from None
    except OSError as error:
        raise OperatorError(f"cannot be removed: {error.strerror}", where=str(path)) from None
    click.echo(f"waypoint {namespace}/{name} deleted")


@waypoint.command(name="list")
@click.option("-n", "--namespace", default="", help="Only of this one.")
@_place
def list_(namespace: str, output: str, lab: str, run_dir: Path | None) -> None:
    """Every waypoint and gateway: what it serves, how many of it are connected."""
    found = [each for each in _proxies(lab, run_dir) if namespace in ("", each["namespace"])]
    if output != "short":
        click.echo(columns.document("WaypointList", found, output))
        return
    rows = [
        [
            each["namespace"],
            each["name"],
            each["role"],
            str(len(each["services"]) if each["role"] == "waypoint" else each["servers"]),
            str(len(each["connected"])),
            _state(each),
        ]
        for each in found
    ]
    click.echo(columns.table(["NAMESPACE", "NAME", "ROLE", "SERVES", "CONNECTED", "STATE"], rows))


@waypoint.command()
@_name
@_namespace
@_place
def status(name: str, namespace: str, output: str, lab: str, run_dir: Path | None) -> None:
    """One of them in full. Exit code 1 when none is connected or something was refused."""
    found = next((e for e in _proxies(lab, run_dir) if (e["namespace"], e["name"]) == (namespace, name)), None)
    if found is None:
        raise OperatorError(f"the control plane knows no waypoint or gateway {namespace}/{name}")
    if output != "short":
        click.echo(columns.document("Waypoint", found, output))
    else:
        click.echo(f"{found['role']} {namespace}/{name}: {_state(found)}")
        for service in found["services"]:
            click.echo(f"  serves {service}")
        for each in found["connected"]:
            said = each["last_nack"]["message"] if each["last_nack"] else "nothing refused"
            click.echo(f"  {each['peer']} since {each['connected_since']}: version {each['synced_version']}, {said}")
    raise SystemExit(0 if _state(found) == "ready" else 1)


def _state(found: dict[str, Any]) -> str:
    connected = found["connected"]
    if not connected:
        return "not connected"
    if any(each["last_nack"] for each in connected):
        return "refused a part"
    return "ready" if all(each["synced_version"] is not None for each in connected) else "waiting"


def _proxies(lab: str, run_dir: Path | None) -> list[dict[str, Any]]:
    directories = Place(run_dir, lab, "control" if lab else "").run_dirs()
    found = get(next(iter(directories.values())) / "controlplane.sock", "/status")
    proxies = found.get("proxies", [])
    assert isinstance(proxies, list)
    return proxies


def _text(name: str, namespace: str, traffic: str) -> str:
    try:
        SpiffeId("cluster.local", namespace, name)
    except ValueError as error:
        raise OperatorError(str(error)) from None
    document = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "labels": {FOR: traffic}},
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    return yaml.safe_dump(document, sort_keys=False)


def _file(config_dir: Path | None, name: str, namespace: str) -> Path:
    directory = config_dir or Path(os.environ.get("NODEMESH_CONFIG_DIR") or _DEFAULT_CONFIG)
    if not directory.is_dir():
        raise OperatorError("is no directory; --config-dir says where the control plane reads", where=str(directory))
    return directory / f"waypoint-{namespace}-{name}.yaml"
