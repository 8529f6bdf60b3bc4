"""Network namespaces, their links and routes, by iproute2 in batches: one process per namespace, not per command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from lab import cgroups
from lab.layout import NETNS, UNDERLAY, Layout, pod_range, underlay_address
from lab.needs import search_path
from mesh.errors import OperatorError

BRIDGE = "br0"
_TABLES = ("iptables", "ip6tables", "arptables")
AT_ONCE = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
"""An IPv6 address can be used as soon as it is given: without, the kernel looks for a duplicate for a second."""


def run(*command: str, stdin: str = "") -> str:
    """stdout of a program that must succeed. Raises OperatorError with its own words."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env={"PATH": search_path()})
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise OperatorError(f"{' '.join(command)} failed: {said}")
    return done.stdout


def batch(netns: str, lines: Iterable[str]) -> None:
    run("ip", "-n", netns, "-batch", "-", stdin="\n".join(lines) + "\n")


def inside(netns: str, group: str = "") -> list[str]:
    """What to put before a command so that it runs in the namespace and its control group, or in that one below it; the
    pid stays that of the command."""
    return [*cgroups.inside(f"{netns}/{group}".rstrip("/")), "nsenter", f"--net={NETNS / netns}", "--"]


def names() -> list[str]:
    return sorted(os.listdir(NETNS)) if NETNS.is_dir() else []


def create(netns: str, sysctls: Iterable[str] = ()) -> None:
    run("ip", "netns", "add", netns)
    run("ip", "-n", netns, "link", "set", "lo", "up")
    if settings := list(sysctls):
        run(*inside(netns), "sysctl", "-qw", *settings)


def delete(netns: str) -> None:
    """The namespace loses its name; it goes away with its last process."""
    subprocess.run(["ip", "netns", "del", netns], capture_output=True, env={"PATH": search_path()})


def create_fabric(layout: Layout) -> None:
    """The wire between the hosts: a bridge in a namespace of its own."""
    create(layout.fabric)
    # A switch has no netfilter; br_netfilter, where the kernel has it, would run every frame through conntrack's hooks.
    run(*inside(layout.fabric), "sysctl", "-qe", "-w", *(f"net.bridge.bridge-nf-call-{t}=0" for t in _TABLES))
    batch(layout.fabric, [f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up"])


def plug_in(layout: Layout, netns: str, port: str, number: int) -> None:
    """A host's `eth0` on the fabric, in both families."""
    run("ip", "-n", layout.fabric, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", netns)
    batch(layout.fabric, [f"link set {port} master {BRIDGE} up"])
    own = [f"addr add {underlay_address(number, v)}/{space.prefixlen} dev eth0" for v, space in UNDERLAY.items()]
    batch(netns, ["link set eth0 up", *own])


def create_host(layout: Layout, netns: str, port: str, number: int) -> None:
    # rp_filter off as every CNI guide asks: replies to preserved source addresses come in by another way.
    quiet = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]
    cgroups.create(netns)
    create(netns, [*quiet, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", *AT_ONCE])
    plug_in(layout, netns, port, number)


def route_between(layout: Layout, node: str, number: int, others: Iterable[int]) -> None:
    """Node `number` learns where the other nodes' pods are. No NAT anywhere: addresses stay the pods' own."""
    ways = ((pod_range(o, v), underlay_address(o, v)) for o in others for v in UNDERLAY if o != number)
    batch(layout.node_netns(node), [f"route add {to} via {over} dev eth0{_cubic()}" for to, over in ways])


def route_from(netns: str, numbers: Iterable[int]) -> None:
    """A host without pods of its own learns where the nodes' pods are: waypoints in them ask the control plane."""
    ways = ((pod_range(o, v), underlay_address(o, v)) for o in numbers for v in UNDERLAY)
    batch(netns, [f"route add {to} via {over} dev eth0{_cubic()}" for to, over in ways])


def prefer_cubic(netns: str, *, local: str = "") -> None:
    """Every route of a pod asks for cubic where the machine's default is BBR, whose software pacing halves both
    contenders on a veth and hides the difference. A namespace may not choose by sysctl; a route may. `local`: also the
    one to this address of its own."""
    if not _cubic():
        return
    if local:
        run("ip", "-n", netns, "route", "replace", "local", local, "dev", "lo", "table", "local", "congctl", "cubic")
    for family in ("-4", "-6"):
        routes = run("ip", "-n", netns, family, "route", "show").splitlines()
        own = [route for route in routes if "proto kernel" not in route or family == "-4"]
        lines = "".join(f"route replace {_without_notes(route)} congctl cubic\n" for route in own)
        run("ip", "-n", netns, family, "-batch", "-", stdin=lines)


def _without_notes(route: str) -> str:
    return route.replace(" linkdown", "").strip()


def _cubic() -> str:
    def read(name: str) -> str:
        with open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
            return file.read()

    if read("tcp_congestion_control").strip() == "bbr" and "cubic" in read("tcp_available_congestion_control"):
        return " congctl cubic"
    return ""
