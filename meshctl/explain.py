"""`meshctl explain SRC DST[:PORT]`: asks a tunnel's core what would become of a connection, and tells it to a person.

Owns the words' layout only; route, target and verdict come from the data plane's own functions, of a live process or
of one that is started over a saved dump.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

import click

from mesh.errors import OperatorError
from meshctl import columns
from meshctl.admin import Place, get
from meshctl.tunnel import dump_options

_OFFLINE_S: Final = 60.0
_SHOWN: Final = 3
"""Ways that end alike are told this often, then counted."""

Said = dict[str, Any]


@click.command()
@dump_options
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT]")
def explain(place: Place, output: str, source: str, destination: str) -> None:
    """What would become of a connection from SRC to DST: route, waypoint, endpoint, policy and rule.

    SRC is NAMESPACE/NAME of a pod (or of its Deployment), an address, a uid or an identity. DST is NAMESPACE/NAME of a
    service or pod, a hostname (its last labels may be left out) or an address. Nothing is sent anywhere.

    Exit code 0: allowed; 1: denied, or it depends on the endpoint; 2: SRC or DST names nothing.

    \b
    meshctl explain shop/web-1 cart.shop:80
    meshctl explain shop/web 10.244.2.3:8080 -o json
    meshctl explain -f dump.json 10.9.8.7 shop/cart-1:8080
    """
    said = _ask(place, source, destination)
    click.echo("\n".join(_text(said)) if output == "short" else columns.document("Explanation", said, output))
    raise SystemExit(0 if said.get("verdict") == "allowed" else 1)


def _ask(place: Place, source: str, destination: str) -> Said:
    if place.file:
        said = _ask_offline(str(place.file), source, destination)
    else:
        question = urlencode({"src": source, "dst": destination})
        said = get(next(iter(place.run_dirs().values())) / "ztunnel.sock", f"/explain?{question}")
    if not isinstance(said, dict):
        raise OperatorError("the tunnel's answer is no explanation")
    return said


def _ask_offline(path: str, source: str, destination: str) -> Any:
    """A process of its own: the core is the tunnel's, and its threads end with it."""
    command = [sys.executable, "-m", "ztunnel.offline", path, source, destination]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_OFFLINE_S, check=False)
    if done.returncode:
        raise OperatorError(done.stderr.strip().rpartition("\n")[2].removeprefix("explain: ") or "the core failed")
    if done.stderr:
        click.echo(done.stderr.rstrip(), err=True)
    return json.loads(done.stdout)


def _text(said: Said) -> Iterator[str]:
    yield from _ends(said)
    ways = said.get("ways") or []
    told: dict[str, int] = {}
    for way in ways:
        end = "allowed" if way["verdict"]["allowed"] else "denied"
        told[end] = told.get(end, 0) + 1
        if told[end] <= _SHOWN:
            yield ""
            yield from _way(way, len(ways))
    for end, number in told.items():
        if number > _SHOWN:
            yield f"\n… and {number - _SHOWN} more ways that end {end} (-o json has all)"
    yield from _not_chosen(said)
    if said.get("verdict") == "depends on the endpoint":
        yield columns.paint("\nIt depends on the endpoint.", "yellow")


def _ends(said: Said) -> Iterator[str]:
    source, destination = said["source"], said["destination"]
    if source["known"]:
        name, where = f"{source['namespace']}/{source['name']}", source["node"] or "no node"
        yield _line("from", f"{name}, {source['address']}, on {where}, as {source['identity']}")
    else:
        yield _line("from", f"{source['address']}, which is no workload's")
    known = destination["service"] if destination["workload"] is None else destination["workload"]
    kind = "service" if destination["workload"] is None else "workload"
    headless = ", first of a headless service's endpoints" if destination["headless"] else ""
    yield _line("to", f"{destination['address']}, {f'{kind} {known}' if known else 'unknown to the mesh'}{headless}")


def _way(way: Said, ways: int) -> Iterator[str]:
    share = f"  ({way['share']:.0%} of connections)" if ways > 1 else ""
    yield _line("route", _route(way["route"]) + share)
    if way.get("waypoint"):
        yield _line("waypoint", f"{way['waypoint']}: it is told the original destination and decides what follows")
    if expected := way["route"].get("expects"):
        yield _line("expects", ", ".join(expected))
    for policy in (way.get("egress") or {}).get("policies") or []:
        yield from _policy({**policy, "scope": "egress"})
    yield from _inbound(way.get("inbound"))
    if mode := way.get("peerAuthentication"):
        yield _line("mtls", f"{mode['mode']}{' by ' + mode['by'] if mode['by'] else ': plaintext would be accepted'}")
    for policy in way.get("policies") or []:
        yield from _policy(policy)
    if way.get("dryRun"):
        yield _line("dry run", f"with the dry-run policies in force: {way['dryRun']}")
    yield _verdict(way["verdict"])


def _route(route: Said) -> str:
    match route["kind"]:
        case "tunnel":
            return f"tunnel to {route['dial']} ({_upstream(route)}), CONNECT {route['authority']}"
        case "joined":
            passes = "; once let in, the next connections go directly" if route.get("direct") else ""
            return f"within {route['node']}, without TLS, to {route['authority']} ({_upstream(route)}){passes}"
        case "lookup":
            return f"by DNS, to {route['hostname']}: {route['because']}"
        case "passthrough" | "uncaptured":
            return f"plaintext to {route['dial']}: {route['because']}"
        case _:
            return f"none: {route['because']}"


def _upstream(route: Said) -> str:
    node = f" on {route['node']}" if route.get("node") else ""
    return f"{route.get('upstream') or 'unknown'}{node}"


def _inbound(inbound: Said | None) -> Iterator[str]:
    if not inbound:
        return
    if "refused" in inbound:
        status = f" (status {inbound['status']})" if inbound.get("status") else ""
        yield _line("arrives", f"refused: {inbound['refused']}{status}")
    else:
        who = inbound["identity"] or "nobody (plaintext)"
        yield _line("arrives", f"at {inbound['workload']}, {inbound['target']}, from {inbound['source']} as {who}")


def _policy(policy: Said) -> Iterator[str]:
    if not policy["known"]:
        refused = f"was refused ({policy['refused']})" if policy.get("refused") else "is named and not known yet"
        yield _line("policy", f"{policy['name']} {refused}: that denies")
        return
    kind = f"{policy['action']}, {policy['scope']}" + (", dry run" if policy["dryRun"] else "")
    if policy["matches"]:
        yield _line("policy", f"{policy['name']} ({kind}): rules[{policy['rule']}] matches")
        return
    reasons = policy["because"] or ["it has no rule, which never matches"]
    yield _line("policy", f"{policy['name']} ({kind}): no rule matches")
    for number, reason in enumerate(reasons[:_SHOWN]):
        yield _line("", f"  rules[{number}]: {reason}" if policy["because"] else f"  {reason}")
    if len(reasons) > _SHOWN:
        yield _line("", f"  … and {len(reasons) - _SHOWN} more rules")


def _verdict(verdict: Said) -> str:
    rule = f", rules[{verdict['rule']}]" if verdict.get("rule") is not None else ""
    word, colour = ("ALLOWED", "green") if verdict["allowed"] else ("DENIED", "red")
    end = "" if verdict["allowed"] else f" at the {verdict['end']}"
    return _line("verdict", f"{columns.paint(word, colour)}{end}: {verdict['why']}{rule}")


def _not_chosen(said: Said) -> Iterator[str]:
    left = [each for each in said.get("endpoints") or [] if not each["eligible"]]
    if left:
        yield ""
    for each in left[:_SHOWN]:
        yield _line("not chosen", f"{each['workload']} on {each['node'] or 'no node'}: {each['because']}")
    if len(left) > _SHOWN:
        yield _line("", f"… and {len(left) - _SHOWN} more endpoints")


def _line(label: str, text: str) -> str:
    return f"{label:<11}{text}"
