"""`meshctl lab …`: the lab's command line. Owns no exit codes but those of the commands it runs; errors are raised."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict

import click

from lab import hosts, needs, netns, processes, teardown
from lab.cluster import Cluster
from lab.daemons import AUTO, CAPTURES
from lab.layout import DEFAULT_NAME, Layout

_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which lab; several may be up.")
_capture = click.option(
    "--capture",
    type=click.Choice(CAPTURES),
    default=AUTO,
    show_default=True,
    help="How pods are captured; auto: the first that can.",
)


@click.group()
def lab() -> None:
    """A cluster in one kernel: real daemons, plugins and applications in network namespaces."""


@lab.command()
@_name
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--pods", default=2, show_default=True, help="How many pods, spread over the nodes.")
@_capture
@click.option("--bare", is_flag=True, help="No pods: the workloads are control groups of the nodes, as on bare metal.")
def up(name: str, nodes: int, pods: int, capture: str, bare: bool) -> None:
    """Brings a mesh up: control plane, nodes, pods web-1…, Service web."""
    began = time.monotonic()
    made = Cluster.up(name, nodes, 0 if bare else pods, lambda line: click.echo(f"  {line}", err=True), capture)
    if bare:
        hosts.populate(made, pods)
    click.echo(f"lab {name} is up after {time.monotonic() - began:.1f} s; configuration: {made.layout.config}")


@lab.command()
@_name
@click.option("-o", "--output", type=click.Choice(["short", "json", "yaml"]), default="short")
def status(name: str, output: str) -> None:
    """Who runs where, with which address."""
    from lab import status as report

    needs.require_root()
    text, healthy = report.describe(Cluster.attach(name), output)
    click.echo(text)
    raise SystemExit(0 if healthy else 1)


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@_name
@click.argument("where", metavar="POD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, where: str, command: tuple[str, ...]) -> None:
    """Runs a command inside a pod or on a node: exec web-1 -- curl -s 10.96.0.10"""
    needs.require_root()
    attached = Cluster.attach(name)
    places = {node: attached.layout.node_netns(node) for node in attached.nodes} | {"control": attached.layout.control}
    inside = netns.inside(places[where]) if where in places else attached.inside(attached.pod(where))
    argv = [*inside, *command]
    os.execvpe(argv[0], argv, {**os.environ, **processes.environment(attached.layout, {})})


@lab.command()
@_name
def down(name: str) -> None:
    """Takes everything of a lab away; also what a crash left. Idempotent."""
    needs.require_root()
    there_was = teardown.down(Layout(name))
    click.echo(f"lab {name} is down" if there_was else f"lab {name}: nothing to take away")


@lab.command()
@click.option("--workloads", default=100_000, show_default=True, help="How many pods the world has.")
@click.option("--services", default=10_000, show_default=True, help="How many services.")
@click.option("-o", "--output", type=click.Choice(["short", "json"]), default="short")
def scale(workloads: int, services: int, output: str) -> None:
    """A big world through a real control plane and tunnel, each stage timed: in a lab of its own, gone afterwards."""
    from lab import scale_run

    needs.require_all()
    figures = scale_run.run(f"scale{os.getpid()}", workloads, services, lambda line: click.echo(f"  {line}", err=True))
    click.echo(json.dumps(asdict(figures), indent=1) if output == "json" else "\n".join(figures.lines()))


@lab.command()
@click.option("--services", default=1000, show_default=True, help="How many services the waypoint serves.")
@click.option("-o", "--output", type=click.Choice(["short", "json"]), default="short")
def layer7(services: int, output: str) -> None:
    """What layer 7 costs: many services behind a waypoint, one more, CPU per request. A lab of its own, gone after."""
    from lab import layer7 as costs

    needs.require_all()
    figures = costs.run(f"seven{os.getpid()}", services, lambda line: click.echo(f"  {line}", err=True))
    click.echo(json.dumps(asdict(figures), indent=1) if output == "json" else "\n".join(figures.lines()))


@lab.command()
@click.option("--name", default=None, help="The demo's own lab; by default a name that nobody else has.")
@_capture
def demo(name: str | None, capture: str) -> None:
    """The main job, shown working: every line is measured now. Exit code 1 when one is not as it should be."""
    from lab import demo as show

    raise SystemExit(show.run(name or f"demo{os.getpid()}", capture))
