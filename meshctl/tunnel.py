"""`meshctl workloads | services | policies | certificates | connections`: what one tunnel knows and does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from meshctl import columns, views
from meshctl.admin import Place

Command = Callable[..., None]


def place_options(command: Command) -> Command:
    """Which daemons to ask, how to answer: the same for every command. Hands over `place` and `output`."""

    @functools.wraps(command)  # click keeps the other options on the function
    def wrapped(run_dir: Path | None, lab: str, node: str, file: Path | None = None, **rest: Any) -> None:
        if file and (run_dir or lab or node):
            raise click.UsageError("--file goes without --run-dir, --lab and --node")
        command(place=Place(run_dir, lab, node, file), **rest)

    for option in (
        click.option("--run-dir", type=click.Path(path_type=Path), help="The daemons' run directory."),
        click.option("--lab", default="", metavar="NAME", help="A lab's daemons instead of this machine's."),
        click.option("--node", default="", metavar="NAME", help="Which node of the lab."),
        click.option("-o", "--output", type=click.Choice(columns.OUTPUTS), default="short", show_default=True),
    ):
        wrapped = option(wrapped)
    return wrapped


def dump_options(command: Command) -> Command:
    """As `place_options`, of one tunnel: without --node the lab's first, or what a file says."""
    from_file = click.option("-f", "--file", type=click.Path(path_type=Path), help="A config dump saved earlier.")
    return from_file(place_options(command))


def show(kind: str, header: tuple[str, ...], rows: list[list[str]], found: Any, output: str) -> None:
    click.echo(columns.table(header, rows) if output == "short" else columns.document(kind, found, output))


@click.command()
@dump_options
@click.option("--address", default="", help="Only the workload with this address.")
@click.option("--workload-namespace", default="", help="Only this namespace.")
@click.option("--workload-node", default="", help="Only this node.")
def workloads(place: Place, output: str, address: str, workload_namespace: str, workload_node: str) -> None:
    """Every workload the tunnel knows, and how it would be reached.

    \b
    meshctl workloads --workload-namespace shop
    meshctl workloads --address 10.244.1.2 -o json
    meshctl workloads -f dump.json
    """
    dump = place.config_dump()
    found = [
        w
        for w in views.items(dump, "workloads", workload_namespace)
        if (not address or address in (w.get("workloadIps") or [])) and workload_node in ("", w.get("node"))
    ]
    show("WorkloadList", views.WORKLOADS, views.workload_rows(found, dump), found, output)


@click.command()
@dump_options
@click.option("--service-namespace", default="", help="Only this namespace.")
def services(place: Place, output: str, service_namespace: str) -> None:
    """Every service: virtual addresses, waypoint, healthy and all endpoints.

    \b
    meshctl services --service-namespace shop
    meshctl services -f dump.json -o yaml
    """
    dump = place.config_dump()
    found = views.items(dump, "services", service_namespace)
    show("ServiceList", views.SERVICES, views.service_rows(found, dump), found, output)


@click.command()
@dump_options
@click.option("--policy-namespace", default="", help="Only this namespace.")
def policies(place: Place, output: str, policy_namespace: str) -> None:
    """Every layer-4 policy in force.

    \b
    meshctl policies --policy-namespace shop
    meshctl policies -o json | jq '.items[].name'
    """
    found = views.items(place.config_dump(), "policies", policy_namespace)
    show("PolicyList", views.POLICIES, views.policy_rows(found), found, output)


@click.command()
@dump_options
def certificates(place: Place, output: str) -> None:
    """Every identity the tunnel holds, its certificates and their validity.

    \b
    meshctl certificates
    meshctl certificates -f dump.json -o json
    """
    found = views.items(place.config_dump(), "certificates")
    rows = views.certificate_rows(found, datetime.now(UTC))
    show("CertificateList", views.CERTIFICATES, rows, found, output)


@click.command()
@dump_options
@click.option("--direction", type=click.Choice(("inbound", "outbound")), default=None, help="Only one direction.")
@click.option("--workload-namespace", default="", help="Only this namespace.")
@click.option("--raw", is_flag=True, help="Addresses instead of names.")
def connections(place: Place, output: str, direction: str | None, workload_namespace: str, raw: bool) -> None:
    """Every open connection of this node's pods.

    \b
    meshctl connections --direction inbound
    meshctl connections --raw --workload-namespace shop
    """
    dump = place.config_dump()
    rows = views.connection_rows(dump, direction=direction or "", namespace=workload_namespace, raw=raw)
    keys = ("workload", "direction", "local", "remote", "target", "protocol")
    found = [dict(zip(keys, row, strict=True)) for row in rows]
    show("ConnectionList", views.CONNECTIONS, rows, found, output)


@click.command(name="all")
@dump_options
def everything(place: Place, output: str) -> None:
    """Workloads, services, policies, certificates and connections of one tunnel.

    \b
    meshctl all
    meshctl all -f dump.json -o json
    """
    dump = place.config_dump()
    if output != "short":
        keys = ("workloads", "services", "policies", "certificates", "workloadState")
        click.echo(columns.document("Dump", {key: dump.get(key) or [] for key in keys}, output))
        return
    tables = {
        "WORKLOADS": (views.WORKLOADS, views.workload_rows(views.items(dump, "workloads"), dump)),
        "SERVICES": (views.SERVICES, views.service_rows(views.items(dump, "services"), dump)),
        "POLICIES": (views.POLICIES, views.policy_rows(views.items(dump, "policies"))),
        "CERTIFICATES": (
            views.CERTIFICATES,
            views.certificate_rows(views.items(dump, "certificates"), datetime.now(UTC)),
        ),
        "CONNECTIONS": (views.CONNECTIONS, views.connection_rows(dump)),
    }
    click.echo("\n\n".join(f"{title}\n{columns.table(*of)}" for title, of in tables.items()))
