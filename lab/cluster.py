"""The lab as a whole: brought up step by step, used, taken down from any state.

`Cluster` is what the demo, the tests and the benchmark drive. Its state is a JSON file, so that another process can
go on with the same lab; taking it down needs only the name.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from lab import apps, cgroups, daemons, documents, needs, netns, processes, teardown
from lab.documents import PodSpec
from lab.layout import (
    MADE_NETNS,
    MOST_NODES,
    MOST_PODS,
    NETNS,
    ROOT,
    Layout,
    node_name,
    service_address,
    underlay_address,
)
from lab.processes import Process, wait_until
from lab.runtime import Added, Runtime, Sandbox
from mesh.errors import OperatorError

Say = Callable[[str], None]
READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod. `ips`: one per family that it has, IPv4 first. `took_s`: each plugin's ADD."""

    name: str
    namespace: str
    node: str
    ips: Sequence[str]
    service_account: str
    sandbox: Sandbox
    took_s: dict[str, float] = field(default_factory=dict)
    group: str = ""
    """Of a workload that is no pod but a control group of its node: the group's name below the node's."""

    @property
    def ip(self) -> str:
        """Its first address."""
        return self.ips[0]

    def address(self, version: int) -> str:
        """Of that family. Raises OperatorError: it has none."""
        for ip in self.ips:
            if (":" in ip) == (version == 6):
                return ip
        raise OperatorError(f"{self.name} has no IPv{version} address")

    def at(self, port: int, version: int = 0) -> str:
        """`ADDRESS:PORT` as in a URL; without a version of its first address."""
        return endpoint(self.address(version) if version else self.ip, port)

    @property
    def netns(self) -> str:
        return self.sandbox.netns

    @property
    def identity(self) -> str:
        return f"spiffe://cluster.local/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def uid(self) -> str:
        kind = "networking.istio.io/WorkloadEntry" if self.group else "/Pod"
        return f"Kubernetes/{kind}/{self.namespace}/{self.name}"


class Cluster:
    """One lab that is up or on its way. Not for two processes at once."""

    def __init__(self, layout: Layout, say: Say = lambda _: None, capture: str = daemons.AUTO) -> None:
        self.layout, self.say, self.capture = layout, say, capture
        self.direct = False
        """What agents are told from now on: pods of one node may talk without the tunnel between."""
        self.nodes: list[str] = []
        self.pods: dict[str, Pod] = {}
        self.daemons: dict[str, Process] = {}
        self.vips: dict[str, str] = {}
        self.vips6: dict[str, str] = {}

    # Up and down ----------------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        name: str,
        nodes: int = 2,
        pods: int = 2,
        say: Say = lambda _: None,
        capture: str = daemons.AUTO,
        direct: bool = False,
    ) -> Cluster:
        """A working mesh with pods `web-1`… spread over the nodes; its agents capture with `capture`, or, of
        several with commas between, each with the next of them. Raises OperatorError; then nothing is left."""
        needs.require_all()
        if not 1 <= nodes <= MOST_NODES or not 0 <= pods <= MOST_PODS:
            raise OperatorError(f"a lab has 1 to {MOST_NODES} nodes and 0 to {MOST_PODS} pods")
        cluster = cls(Layout(name), say, capture)
        cluster.direct = direct
        _claim(cluster.layout)
        try:
            cluster._build(nodes, pods)
        except BaseException:
            teardown.down(cluster.layout)
            raise
        return cluster

    @classmethod
    def attach(cls, name: str) -> Cluster:
        """The lab of that name. Raises OperatorError: it is not up."""
        cluster = cls(Layout(name))
        try:
            state = json.loads(cluster.layout.state.read_text())
        except (FileNotFoundError, ValueError):
            raise OperatorError(f"lab {name} is not up: `meshctl lab up --name {name}`") from None
        except PermissionError:
            needs.require_root()
            raise
        cluster.capture, cluster.direct = state["capture"], state["direct"]
        cluster.nodes, cluster.vips, cluster.vips6 = state["nodes"], state["vips"], state["vips6"]
        cluster.pods = {key: Pod(**{**pod, "sandbox": Sandbox(**pod["sandbox"])}) for key, pod in state["pods"].items()}
        latest = {p.name: p for p in processes.recorded(cluster.layout)}
        cluster.daemons = {key: latest[key] for key in state["daemons"]}
        return cluster

    def down(self) -> None:
        teardown.down(self.layout)

    def _build(self, nodes: int, pods: int) -> None:
        self.say(f"fabric and {nodes} nodes as network namespaces")
        self._make_network(nodes)
        self.say("configuration: namespace shop (ambient), service web")
        self.apply("namespace-shop", documents.namespace("shop", documents.AMBIENT))
        self.say("control plane, then one agent and one tunnel per node")
        self.start_controlplane()
        self._start_nodes()
        if pods:
            self.say(f"{pods} pods through ptp, host-local and {needs.OUR_PLUGIN}")
            self.add_service("web", {80: apps.HTTP_PORT, apps.ECHO_PORT: apps.ECHO_PORT})
        for number in range(1, pods + 1):
            self.add_pod(PodSpec(f"web-{number}", self.nodes[(number - 1) % nodes], app="web"))

    def _make_network(self, nodes: int) -> None:
        self.nodes = [node_name(number) for number in range(1, nodes + 1)]
        netns.create_fabric(self.layout)
        netns.create_host(self.layout, self.layout.control, "control", 0)
        for number, node in enumerate(self.nodes, 1):
            netns.create_host(self.layout, self.layout.node_netns(node), node, number)
            cgroups.create(f"{self.layout.node_netns(node)}/{daemons.KUBELET}")
        for number, node in enumerate(self.nodes, 1):
            netns.route_between(self.layout, node, number, range(1, nodes + 1))
            for directory in (self.layout.run_dir(node), daemons.state_dir(self.layout, node)):
                directory.mkdir(parents=True, mode=0o700)
            Runtime(self.layout, node).install(number, self.layout.run_dir(node))
            self.apply(f"node-{node}", documents.node(node, *_host_addresses(number)))
        netns.route_from(self.layout.control, range(1, nodes + 1))

    # Daemons --------------------------------------------------------------------------------------------------------

    def start_controlplane(self) -> None:
        for directory in (self.layout.run_dir(daemons.CONTROL), daemons.state_dir(self.layout, daemons.CONTROL)):
            directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._started(daemons.start_controlplane(self.layout))

    def _start_nodes(self) -> None:
        for node in self.nodes:
            self._record(daemons.start_agent(self.layout, node, self._capture_of(node), self.direct))
        self._start_tunnels()

    def _start_tunnels(self) -> None:
        """Returns when every daemon is up and every node's tunnel ready."""
        for node in self.nodes:
            self._admit(node)
            self._record(daemons.start_tunnel(self.layout, node))
        for process in list(self.daemons.values()):
            self._wait_up(process)
        for node in self.nodes:
            self._wait_ready(node)

    def _admit(self, node: str) -> None:
        """Gives the node's tunnel what it proves itself with."""
        daemons.issue_token(self.layout, node)

    def start_agent(self, node: str) -> None:
        self._started(daemons.start_agent(self.layout, node, self._capture_of(node), self.direct))

    def _capture_of(self, node: str) -> str:
        ways = self.capture.split(",")
        return ways[self.nodes.index(node) % len(ways)]

    def start_tunnel(self, node: str) -> None:
        self._started(daemons.start_tunnel(self.layout, node))
        self._wait_ready(node)

    def start_proxy(self, key: str, pod: Pod) -> None:
        """A waypoint's or gateway's program in its pod."""
        self._record(daemons.start_proxy(self.layout, key, pod.name, pod.node, pod.netns))

    def _wait_ready(self, node: str) -> None:
        wait_until(f"{node}'s tunnel is ready", lambda: self.tunnel_ready(node), READY_S)

    def tunnel_ready(self, node: str) -> bool:
        """Its readiness port says so: configuration, certificates and the agent's connection are there."""
        return self.http_status(self.layout.node_netns(node), "127.0.0.1:15021/healthz/ready") == 200

    def _started(self, process: Process) -> None:
        self._record(process)
        self._wait_up(process)

    def _record(self, process: Process) -> None:
        self.daemons[process.name] = process
        self._save()

    def _wait_up(self, process: Process) -> None:
        wait_until(f"{process.name} is up", lambda: daemons.is_up(self.layout, process), READY_S)

    def ask(self, daemon: str, target: str, method: str = "GET") -> Any:
        """JSON from an admin socket: `ask("ztunnel-node1", "/config_dump")`."""
        return daemons.ask(daemons.admin_socket(self.layout, self.daemons[daemon]), target, method)[1]

    # Configuration --------------------------------------------------------------------------------------------------

    def apply(self, name: str, document: documents.Document | str) -> Path:
        return documents.write(self.layout.config, name, document)

    def remove(self, name: str) -> None:
        documents.remove(self.layout.config, name)

    def add_service(self, name: str, ports: dict[int, int], namespace: str = "shop") -> str:
        """Its virtual IPv4 address; the IPv6 one is in `vips6`."""
        used = set(self.vips.values())
        number = next(n for n in count() if service_address(n) not in used)
        vips = service_address(number), service_address(number, 6)
        self.vips[name], self.vips6[name] = vips
        self.apply(f"service-{namespace}-{name}", documents.service(namespace, name, vips, ports))
        return self.vips[name]

    def vip(self, name: str, version: int = 4) -> str:
        """As in a URL."""
        return self.vips[name] if version == 4 else f"[{self.vips6[name]}]"

    # Pods -----------------------------------------------------------------------------------------------------------

    def add_pod(self, spec: PodSpec, *, with_apps: bool = True, before_cni: Callable[[], object] = lambda: None) -> Pod:
        """Starts a pod as kubelet and runtime do. Raises CniRefused: it may not start, and nothing of it is left.

        `before_cni` runs when the namespace is there and still empty.
        """
        account = documents.service_account(spec.namespace, spec.account)
        self.apply(f"serviceaccount-{spec.namespace}-{spec.account}", account)
        sandbox = self._sandbox(spec)
        document = documents.pod(spec, sandbox.uid)
        self.apply(f"pod-{spec.namespace}-{spec.name}", document)
        netns.create(sandbox.netns, netns.AT_ONCE)
        try:
            number = int(spec.node.removeprefix("node"))
            cgroups.create_pod(self.layout.node_netns(spec.node), number, sandbox.uid, sandbox.netns)
            before_cni()
            added = Runtime(self.layout, spec.node).add(sandbox)
        except BaseException:
            self._forget(spec.namespace, spec.name, sandbox)
            raise
        netns.prefer_cubic(sandbox.netns)
        return self._running(spec, sandbox, added, document, with_apps)

    def _running(
        self, spec: PodSpec, sandbox: Sandbox, added: Added, document: documents.Document, with_apps: bool
    ) -> Pod:
        pod = Pod(spec.name, spec.namespace, spec.node, added.ips, spec.account, sandbox, added.took_s)
        self.pods[spec.name] = pod
        self._save()
        if with_apps:
            for name, argv in apps.commands(spec.name, self.layout.dir / "pods" / spec.name).items():
                self.start_in(pod, name, argv)
            wait_until(f"{spec.name} serves", lambda: self._serves(pod), READY_S)
        hosts = _host_addresses(self.nodes.index(spec.node) + 1)
        self.apply(f"pod-{spec.namespace}-{spec.name}", documents.running(document, added.ips, hosts))
        return pod

    def record(self, pod: Pod) -> None:
        self.pods[pod.name] = pod
        self._save()

    def forget(self, pod: Pod) -> None:
        del self.pods[pod.name]
        self._save()

    def delete_pod(self, name: str) -> None:
        """Ends what runs in it, then DEL, as a runtime does."""
        pod = self.pods.pop(name)
        self._end_all_in(pod.netns)
        try:
            Runtime(self.layout, pod.node).delete(pod.sandbox)
        finally:
            self._forget(pod.namespace, name, pod.sandbox)
            self._save()

    def _forget(self, namespace: str, name: str, sandbox: Sandbox) -> None:
        self._end_all_in(sandbox.netns)
        netns.delete(sandbox.netns)
        cgroups.delete(sandbox.netns)
        self.remove(f"pod-{namespace}-{name}")

    def _end_all_in(self, space: str) -> None:
        processes.end(p for p in processes.recorded(self.layout) if p.netns == space and p.alive)

    def _sandbox(self, spec: PodSpec) -> Sandbox:
        space = self.layout.pod_netns(spec.namespace, spec.name)
        return Sandbox(uuid.uuid4().hex, space, spec.namespace, spec.name, str(uuid.uuid4()), spec.versions)

    def _serves(self, pod: Pod) -> bool:
        # From the pod to itself over loopback, which never enters the mesh: like a readiness probe of type exec.
        return self.listens(pod, apps.ECHO_PORT) and all(
            self.http_status(pod.netns, f"{loopback}:{apps.HTTP_PORT}/one") == 200
            for loopback in ("127.0.0.1", "[::1]")
        )

    # Commands -------------------------------------------------------------------------------------------------------

    def start_in(self, pod: Pod, name: str, argv: list[str]) -> Process:
        """A long-running application in a pod."""
        return processes.start(self.layout, name, pod.netns, argv, group=pod.group)

    def inside(self, pod: Pod) -> list[str]:
        """What to put before a command so that it runs in the pod, or as the workload of a node."""
        return netns.inside(pod.netns, pod.group)

    def exec(
        self, pod: Pod, argv: Sequence[str], *, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in a pod to its end."""
        env = processes.environment(self.layout, {})
        command = [*self.inside(pod), *argv]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, timeout=timeout_s)

    def listens(self, pod: Pod, *ports: int) -> bool:
        """Whether somebody in the pod listens on each of the TCP ports; on its own address where it has company."""
        only = f"src {pod.ip} and" if pod.group else ""
        return all(self.exec(pod, ["ss", "-Htln", f"{only} sport = :{port}"]).stdout for port in ports)

    def http(self, pod: Pod, target: str, *options: str) -> str:
        """The body of `GET http://TARGET/` asked from inside a pod; "" when there is no answer."""
        return self.exec(pod, ["curl", "-gs", "-m", "20", *options, f"http://{target}/"]).stdout.strip()

    def reaches(self, pod: Pod, other: Pod, version: int = 0) -> bool:
        """Whether `other`'s nginx answers `pod`."""
        return self.http(pod, other.at(apps.HTTP_PORT, version)) != ""

    def http_status(self, space: str, url: str) -> int:
        """0: nobody answers."""
        command = ["curl", "-gs", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}", f"http://{url}"]
        env = processes.environment(self.layout, {})
        done = subprocess.run([*netns.inside(space), *command], capture_output=True, text=True, env=env)
        return int(done.stdout or 0)

    def pod(self, name: str) -> Pod:
        """By `NAME` or `NAMESPACE/NAME`. Raises OperatorError."""
        pod = self.pods.get(name.rpartition("/")[2])
        if pod is None or name not in (pod.name, f"{pod.namespace}/{pod.name}"):
            known = ", ".join(sorted(self.pods)) or "none"
            raise OperatorError(f"lab {self.layout.name} has no pod {name}; there are: {known}")
        return pod

    def _save(self) -> None:
        state = {
            "name": self.layout.name,
            "capture": self.capture,
            "direct": self.direct,
            "nodes": self.nodes,
            "run_dirs": self.layout.run_dirs([*self.nodes, daemons.CONTROL]),
            "proxies": self.layout.run_dirs(name for name in self.pods if f"waypoint-{name}" in self.daemons),
            "vips": self.vips,
            "vips6": self.vips6,
            "pods": {name: asdict(pod) for name, pod in self.pods.items()},
            "daemons": sorted(self.daemons),
        }
        aside = self.layout.state.with_suffix(".new")
        aside.write_text(json.dumps(state, indent=1))
        os.replace(aside, self.layout.state)


def endpoint(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _host_addresses(number: int) -> list[str]:
    return [underlay_address(number, version) for version in (4, 6)]


def _claim(layout: Layout) -> None:
    """The lab's directory, made by exactly one. Raises OperatorError: somebody has it."""
    ROOT.mkdir(mode=0o700, exist_ok=True)
    if not NETNS.exists():
        (ROOT / MADE_NETNS).touch()
    try:
        layout.dir.mkdir(mode=0o700)
    except FileExistsError:
        raise OperatorError(f"lab {layout.name} exists: `meshctl lab down --name {layout.name}` first") from None
    for directory in (layout.config, layout.logs, layout.dir / "tmp", layout.dir / "pods"):
        directory.mkdir()
