"""`meshctl graph`: who calls what, from the metrics of waypoints, gateways and tunnels."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from typing import Final

import click

from mesh.errors import OperatorError
from mesh.settings import parse_host_port
from meshctl import columns
from meshctl.admin import Place, Unreachable, ask
from meshctl.edges import NOTHING, Edge, Told, dot, edges, told

HEADER: Final = ("SOURCE", "DESTINATION", "VERSION", "PROTOCOL", "COUNT", "FAILED", "RESULT", "TOLD BY")
SOCKETS: Final = ("ztunnel.sock", "waypoint.sock")
_TIMEOUT_S: Final = 10.0


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), help="The daemons' run directory.")
@click.option("--lab", default="", metavar="NAME", help="All daemons and proxies of a lab instead of this machine's.")
@click.option("--scrape", multiple=True, metavar="ADDRESS:PORT", help="Ask there (port 15020) instead; several times.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), help="Only what happens in so many seconds from now on.")
@click.option("-n", "--namespace", default="", help="Only edges from or to this one.")
@click.option("-o", "--output", type=click.Choice([*columns.OUTPUTS, "dot"]), default="short", show_default=True)
def graph(
    run_dir: Path | None, lab: str, scrape: tuple[str, ...], interval: float | None, namespace: str, output: str
) -> None:
    """The graph of services: every caller with what it called, since the daemons began.

    Waypoints and gateways tell of requests, tunnels of connections; what both tell of is shown as requests.

    \b
    meshctl graph --lab nm
    meshctl graph --scrape 10.1.0.7:15020 --scrape 10.1.0.8:15020 --interval 10
    meshctl graph -o dot | dot -Tsvg > mesh.svg
    """
    if scrape and (run_dir or lab):
        raise click.UsageError("--scrape goes without --run-dir and --lab")
    everybody = _look(run_dir, lab, scrape)
    if interval:
        time.sleep(interval)
        later = _look(run_dir, lab, scrape)
        everybody = {name: each.since(everybody.get(name, NOTHING)) for name, each in later.items()}
    found = [edge for edge in edges(everybody.values()) if _of(edge, namespace)]
    if output == "dot":
        click.echo(dot(found))
    elif output == "short":
        click.echo(columns.table(HEADER, [_row(edge) for edge in found]))
    else:
        click.echo(columns.document("ServiceGraph", [edge.document() for edge in found], output))


def _look(run_dir: Path | None, lab: str, scrape: tuple[str, ...]) -> dict[str, Told]:
    """By daemon. Raises OperatorError: nobody is there, or one that was named does not answer."""
    if scrape:
        return {address: told(_scraped(address)) for address in scrape}
    place = Place(run_dir, lab)
    directories = [*place.run_dirs().values(), *place.proxies().values()]
    sockets = [each / name for each in directories for name in SOCKETS if (each / name).exists()]
    if not sockets:
        where = ", ".join(str(each) for each in directories)
        raise Unreachable(
            f"neither a tunnel nor a waypoint runs here: {' and '.join(SOCKETS)} are missing", where=where
        )
    return {str(each): told(ask(each, "/metrics").decode()) for each in sockets}


def _scraped(address: str) -> str:
    try:
        host, port = parse_host_port(address)
    except ValueError as error:
        raise OperatorError(str(error), where="--scrape") from None
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"nobody answers ({error or type(error).__name__})", where=address) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Unreachable(f"answers /metrics with status {answer.status}", where=address)
    return body.decode(errors="replace")


def _of(edge: Edge, namespace: str) -> bool:
    return not namespace or any(each.startswith(f"{namespace}/") for each in (edge.source, edge.destination))


def _row(edge: Edge) -> list[str]:
    if edge.protocol == "tcp":
        result = f"{edge.request_bytes} B in, {edge.answer_bytes} B out"
    else:
        result = ", ".join(f"{status} {number}" for status, number in sorted(edge.statuses.items()))
    what = (edge.source, edge.destination, edge.version or "-", edge.protocol, str(edge.count), str(edge.failed))
    return [*what, result, edge.reporter]
