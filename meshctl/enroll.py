"""`meshctl enroll` and `meshctl withdraw`: a control group of this host joins the mesh, or leaves it, by one document.

Writes and removes files only; the node agent and the control plane read them. Owns the files `host-*.yaml`.
"""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click
import yaml

from mesh.errors import OperatorError
from mesh.membership import HOST_ADDRESSES, HOST_CGROUP, HOST_NODE
from meshctl.admin import NotPermitted

DIRECTORY: Final = "/etc/nodemesh/config"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_directory = click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    envvar="NODEMESH_PODS_DIR",
    default=DIRECTORY,
    show_default=True,
    help="Where the node agent looks for documents.",
)
_namespace = click.option("-n", "--namespace", default="default", show_default=True, help="Of the workload.")


@click.command()
@click.option("--slice", "group", metavar="SLICE", help="A systemd slice: web.slice.")
@click.option("--cgroup", "path", metavar="PATH", help="Any control group: system.slice/web.service.")
@click.option("--service-account", required=True, help="Its identity, with the namespace.")
@_namespace
@click.option("--name", help="Of the workload; else the slice's or service's.")
@click.option("--address", "addresses", multiple=True, required=True, help="Its own, of this host; one per family.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="What services and policies select by.")
@click.option("--node", default=lambda: os.environ.get("NODE_NAME", socket.gethostname()), help="Else this one.")
@_directory
@click.option("--print", "only_print", is_flag=True, help="Write nothing; for the control plane's directory.")
def enroll(
    group: str | None,
    path: str | None,
    service_account: str,
    namespace: str,
    name: str | None,
    addresses: tuple[str, ...],
    labels: tuple[str, ...],
    node: str,
    config_dir: Path,
    only_print: bool,
) -> None:
    """Brings a control group of this host into the mesh, with an identity and addresses of its own.

    The control plane needs the same document: its directory is this one, a copy, or a repository that both read.

    \b
    sudo meshctl enroll --slice web.slice --service-account web --address 10.0.0.101
    sudo meshctl enroll --cgroup system.slice/db.service --service-account db --address 10.0.0.102 --label app=db
    meshctl enroll --slice web.slice --service-account web --address 10.0.0.101 --print
    """
    if (group is None) == (path is None):
        raise OperatorError("one of --slice and --cgroup says which control group")
    where = str(group or path).strip("/")
    called = name or Path(where).stem
    document = _document(where, called, namespace, service_account, addresses, labels, node)
    text = yaml.safe_dump(document, sort_keys=False)
    if only_print:
        click.echo(text, nl=False)
        return
    target = _file(config_dir, namespace, called)
    _write(target, text)
    click.echo(f"{namespace}/{called} is enrolled by {target}; `meshctl status` says when it is in the mesh")


@click.command()
@click.argument("name")
@_namespace
@_directory
def withdraw(name: str, namespace: str, config_dir: Path) -> None:
    """Takes a control group of this host out of the mesh: its connections end, new ones go as without a mesh.

    \b
    sudo meshctl withdraw web
    sudo meshctl withdraw db -n shop
    """
    target = _file(config_dir, namespace, name)
    try:
        target.unlink()
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in config_dir.glob("host-*.yaml"))) or "none"
        raise OperatorError(f"{namespace}/{name} is not enrolled here; there are: {known}") from None
    except OSError as error:
        raise _refused(target, error) from None
    click.echo(f"{namespace}/{name} is withdrawn")


def _document(
    where: str,
    name: str,
    namespace: str,
    account: str,
    addresses: tuple[str, ...],
    labels: tuple[str, ...],
    node: str,
) -> dict[str, Any]:
    """Raises OperatorError."""
    for what, text in (("name", name), ("namespace", namespace), ("service account", account)):
        if not _NAME.fullmatch(text):
            raise OperatorError(f"{text!r} is not a {what}: a-z, 0-9 and dashes, at most 63; --name gives another")
    first, *others = _addresses(addresses)
    spec: dict[str, Any] = {"address": first, "serviceAccount": account}
    if labels:
        spec["labels"] = dict(_label(text) for text in labels)
    notes = {HOST_NODE: node, HOST_CGROUP: where} | ({HOST_ADDRESSES: ",".join(others)} if others else {})
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": namespace, "annotations": notes},
        "spec": spec,
    }


def _addresses(texts: tuple[str, ...]) -> list[str]:
    try:
        found = sorted({ip_address(text) for text in texts}, key=lambda ip: ip.version)
    except ValueError as error:
        raise OperatorError(f"--address: {error}") from None
    if len({each.version for each in found}) < len(found):
        raise OperatorError("--address: one of each family at most: by its address a workload is told from others")
    return [str(each) for each in found]


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OperatorError(f"--label: {text!r} is not KEY=VALUE")
    return key, value


def _file(directory: Path, namespace: str, name: str) -> Path:
    return directory / f"host-{namespace}-{name}.yaml"


def _write(target: Path, text: str) -> None:
    """As a whole: a watcher never reads half of it. Raises OperatorError."""
    aside = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)
    except OSError as error:
        raise _refused(target, error) from None


def _refused(target: Path, error: OSError) -> OperatorError:
    if isinstance(error, PermissionError):
        return NotPermitted("only root may write there: run with sudo", where=str(target.parent))
    return OperatorError(f"cannot be written: {error.strerror}", where=str(target))
