"""`meshctl lab layer7`: what layer 7 costs. A thousand services behind one waypoint, and a request's price in CPU.

Every figure is of this run on this machine; the plain Envoy does the same work without a mesh: HTTP in, HTTP out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from lab import apps, documents, proxies
from lab.asking import ask_many
from lab.cluster import Cluster, Pod
from lab.documents import AMBIENT, PodSpec
from lab.layout import Layout
from lab.processes import wait_until
from lab.watchdog import guarded

NAMESPACE: Final = "many"
REQUESTS: Final = 4000
ADDED: Final = 7
READY_S: Final = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """CPU in microseconds per request, of the Envoy alone. Times in seconds, memory in MiB."""

    services: int
    read_s: float
    controlplane_mib: float
    controlplane_cpu_s: float
    waypoint_mib: float
    added_s: list[float]
    added_cpu_s: float
    added_envoy_s: float
    waypoint_us: float
    plain_us: float

    def lines(self) -> list[str]:
        added = sorted(self.added_s)
        return [
            f"{self.services} services with routes, from their files to the waypoint   {self.read_s:.1f} s",
            f"control plane: memory, CPU for that, CPU per service added     "
            f"{self.controlplane_mib:.0f} MiB, {self.controlplane_cpu_s:.1f} s, {self.added_cpu_s * 1000:.0f} ms",
            f"waypoint's Envoy: memory, CPU per service added                {self.waypoint_mib:.0f} MiB, "
            f"{self.added_envoy_s * 1000:.0f} ms",
            f"one more service is usable after, p50 and longest of {len(added)}         "
            f"{added[len(added) // 2] * 1000:.0f} ms, {added[-1] * 1000:.0f} ms",
            f"CPU of an Envoy per request: waypoint (tunnels on both sides), plain   "
            f"{self.waypoint_us:.0f} µs, {self.plain_us:.0f} µs",
        ]


def run(name: str, services: int, say: Say) -> Figures:
    with guarded(Layout(name)):
        return _measure(Cluster.up(name, nodes=2, pods=0, say=say), services, say)


def _measure(cluster: Cluster, services: int, say: Say) -> Figures:
    say("a waypoint, a client, an application")
    cluster.apply(f"namespace-{NAMESPACE}", documents.namespace(NAMESPACE, {**AMBIENT, "istio.io/use-waypoint": "way"}))
    proxies.apply(cluster, "way", NAMESPACE)
    way = proxies.add(cluster, "way", "node1", NAMESPACE)
    client = cluster.add_pod(PodSpec("client", "node1", NAMESPACE), with_apps=False)
    cluster.add_pod(PodSpec("app", "node2", NAMESPACE, app="app"))
    vip = cluster.add_service("app", {80: apps.HTTP_PORT}, NAMESPACE)
    cluster.apply("service-app", documents.http_service(NAMESPACE, "app", [vip]))
    wait_until("the application answers", lambda: cluster.http_status(client.netns, f"{vip}/") == 200, READY_S)
    control = psutil.Process(cluster.daemons["controlplane"].pid)
    envoy = _envoy(cluster, way)
    say(f"{services} services with routes")
    before, began = _cpu(control), time.monotonic()
    cluster.apply("many", "---\n".join(_service(number) for number in range(services)))
    wait_until("the waypoint has them all", lambda: _has(cluster, way, services - 1), READY_S, step_s=0.2)
    read, spent = time.monotonic() - began, _cpu(control) - before
    say("one more, several times")
    before, before_envoy = _cpu(control), _cpu(envoy)
    added = [_add(cluster, client, services + number) for number in range(ADDED)]
    each, each_envoy = (_cpu(control) - before) / ADDED, (_cpu(envoy) - before_envoy) / ADDED
    say(f"{REQUESTS} requests through the waypoint, then through a plain Envoy")
    through = _price(cluster, client, f"http://{vip}/one", envoy)
    plain = _plain(cluster, client)
    return Figures(
        services, read, _mib(control), spent, _mib(envoy), added, each, each_envoy, through, plain,
    )  # fmt: skip


def _address(number: int) -> str:
    return f"10.97.{number // 250}.{number % 250 + 1}"


def _service(number: int) -> str:
    """Its pods are those of the application; half of its traffic could be told apart by a header."""
    name = f"svc-{number}"
    service = documents.http_service(NAMESPACE, name, [_address(number)])
    service["spec"]["selector"] = {"app": "app"}
    target = {"destination": {"host": name}}
    matching = {"match": [{"headers": {"x-user": {"exact": "jason"}}}], "timeout": "5s", "route": [target]}
    routes = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"hosts": [name], "http": [matching, {"route": [target]}]},
    }
    return yaml.safe_dump_all([service, routes])


def _has(cluster: Cluster, way: Pod, number: int) -> bool:
    socket = cluster.layout.run_dir(way.name) / "waypoint.sock"
    command = ["curl", "-s", "--unix-socket", str(socket), "http://x/envoy/listeners"]
    return f"svc-{number}." in cluster.exec(way, command).stdout


def _add(cluster: Cluster, client: Pod, number: int) -> float:
    """From its saved file to its first answer through the waypoint; asked by one process of the client's."""
    url = f"http://{_address(number)}/one"
    command = f"until curl -s -m 0.05 -o /dev/null -f {url}; do :; done"
    cluster.apply(f"more-{number}", _service(number))
    began = time.monotonic()
    cluster.exec(client, ["bash", "-c", command])
    return time.monotonic() - began


def _price(cluster: Cluster, client: Pod, url: str, envoy: psutil.Process) -> float:
    ask_many(cluster, client, url, 200)
    before = _cpu(envoy)
    answers = ask_many(cluster, client, url, REQUESTS)
    spent = _cpu(envoy) - before
    assert all(each.status == 200 for each in answers)
    return spent / REQUESTS * 1e6


def _plain(cluster: Cluster, client: Pod) -> float:
    """The same Envoy as a plain reverse proxy in a pod outside the mesh, the application beside it."""
    pod = cluster.add_pod(PodSpec("plain", "node2", NAMESPACE, labels=documents.OUT_OF_MESH))
    outside = cluster.add_pod(PodSpec("outside", "node1", NAMESPACE, labels=documents.OUT_OF_MESH), with_apps=False)
    config = cluster.layout.dir / "plain.json"
    config.write_text(json.dumps(_reverse_proxy()))
    command = [_binary(), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    process = cluster.start_in(pod, "plain-envoy", command)
    wait_until("the plain Envoy answers", lambda: cluster.http_status(outside.netns, f"{pod.ip}:8000/one") == 200, 60)
    return _price(cluster, outside, f"http://{pod.ip}:8000/one", psutil.Process(process.pid))


def _binary() -> str:
    from importlib.util import find_spec

    found = find_spec("envoy")
    places = list(found.submodule_search_locations or ()) if found else []
    return next(str(Path(place) / "_bin" / "envoy") for place in places if (Path(place) / "_bin" / "envoy").exists())


def _reverse_proxy() -> dict[str, Any]:
    types = "type.googleapis.com/envoy.extensions.filters."
    router = {"name": "router", "typed_config": {"@type": f"{types}http.router.v3.Router"}}
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]
    manager = {
        "@type": f"{types}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 8000}}
    app = {"socket_address": {"address": "127.0.0.1", "port_value": apps.HTTP_PORT}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": app}}]}]
    cluster = {"name": "app", "type": "STATIC", "load_assignment": {"cluster_name": "app", "endpoints": endpoints}}
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "plain", "address": address, "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _envoy(cluster: Cluster, way: Pod) -> psutil.Process:
    [found] = psutil.Process(proxies.process(cluster, way).pid).children()
    return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20
