"""`meshctl top`: who talks to whom how much, from two looks at a tunnel's metrics."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click

from meshctl import columns
from meshctl.admin import Place, ask
from meshctl.scrape import Totals, traffic
from meshctl.tunnel import place_options

HEADER: Final = ("SOURCE", "DESTINATION", "REPORTER", "OPEN", "NEW/s", "FAILED/s", "REQUEST B/s", "ANSWER B/s")
KEYS: Final = {"open": "open", "new": "new_per_s", "failed": "failed_per_s", "request": "request_bytes_per_s"}
SORTS: Final = {**KEYS, "answer": "answer_bytes_per_s", "bytes": "bytes_per_s"}

Row = dict[str, Any]


@click.command()
@place_options
@click.option("--once", is_flag=True, help="One look over one interval, then end.")
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
@click.option("--sort", default="bytes", show_default=True, type=click.Choice(list(SORTS)), help="What goes first.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1), help="How many rows.")
def top(place: Place, output: str, once: bool, interval: float, sort: str, limit: int) -> None:
    """Traffic between workloads as this node's tunnel counts it, renewed until Ctrl-C.

    A connection between two pods of one node is counted twice, once by each reporter: source and destination.

    \b
    meshctl top
    meshctl top --once --sort failed
    meshctl top --once -o json | jq '.items[0]'
    """
    socket = next(iter(place.run_dirs().values())) / "ztunnel.sock"
    before, then = traffic(ask(socket, "/metrics").decode()), time.monotonic()
    while True:
        time.sleep(interval)
        after, now = traffic(ask(socket, "/metrics").decode()), time.monotonic()
        rows = rates(before, after, now - then)
        rows.sort(key=lambda row: (-row[SORTS[sort]], row["source"], row["destination"]))
        _show(rows[:limit], output, clear=not once)
        if once:
            return
        before, then = after, now


def rates(before: dict[Any, Totals], after: dict[Any, Totals], seconds: float) -> list[Row]:
    """Per second between two looks; a counter that began anew counts from zero. Pairs without any news and without
    an open connection are left out."""
    rows = []
    for pair, new in after.items():
        old = before.get(pair, Totals())
        per_s = {
            name: max(getattr(new, name) - getattr(old, name), 0) / seconds
            for name in ("opened", "failed", "received", "sent")
        }
        if new.opened > new.closed or any(per_s.values()):
            rows.append(_row(pair, new.opened - new.closed, per_s))
    return rows


def _row(pair: tuple[str, str, str], connections: int, per_s: dict[str, float]) -> Row:
    reporter, source, destination = pair
    return {
        "source": source,
        "destination": destination,
        "reporter": reporter,
        "open": connections,
        "new_per_s": round(per_s["opened"], 2),
        "failed_per_s": round(per_s["failed"], 2),
        "request_bytes_per_s": round(per_s["received"]),
        "answer_bytes_per_s": round(per_s["sent"]),
        "bytes_per_s": round(per_s["received"] + per_s["sent"]),
    }


def _show(rows: list[Row], output: str, *, clear: bool) -> None:
    if output != "short":
        click.echo(columns.document("TrafficList", rows, output))
        return
    if clear and sys.stdout.isatty():
        click.clear()
    keys = ("source", "destination", "reporter", "open", "new_per_s", "failed_per_s")
    shown = [[str(row[key]) for key in keys] + [_bytes(row[f"{way}_bytes_per_s"]) for way in _WAYS] for row in rows]
    click.echo(columns.table(HEADER, shown))


_WAYS: Final = ("request", "answer")


def _bytes(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000 or unit == "G":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if not unit else f"{number:.1f}{unit}"
