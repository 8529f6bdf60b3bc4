"""What each way to capture costs by itself: a pod's connection to a listener of the same pod, with nothing in force
(`hook-none`, twice: the second is the harness's own noise) and captured by each backend that this machine has.

All of a pair runs on one core, so that waking an idle one hides nothing. No tunnel relays here: what is measured is the
hook, the rules and what they do to each packet, guard included (`hook-bpf+guard`), as a pod has it.
"""

import asyncio
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cases import Case
from bench.measure import Ends, Load
from lab import cgroups, netns, processes, teardown
from lab.layout import NETNS, Layout
from lab.processes import Process, wait_until
from nodeagent.redirect.backend import Backend, Sandbox
from nodeagent.redirect.bpf import Bpf
from nodeagent.redirect.guarding import Guarding
from nodeagent.redirect.netns import Namespace
from nodeagent.redirect.nftables import Nft
from nodeagent.redirect.plan import OUTBOUND_PORT, Options
from nodeagent.redirect.xtables import Iptables

OWN: Final = "10.77.0.2"
ELSEWHERE: Final = "198.51.100.7"
"""Nobody is there (RFC 5737); the pod has a way to it, so only capture can answer."""
PORT: Final = 9000
GUARDED: Final = "+guard"
_READY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Hook:
    """One way to capture, in force in a namespace of its own."""

    name: str
    space: str
    target: str
    servers: tuple[int, ...]


class Place:
    """A lab of bare namespaces on one core."""

    def __init__(self, layout: Layout, load: Path) -> None:
        self._layout, self._load = layout, load
        self._core = str(max(os.sched_getaffinity(0)))
        self._host = layout.node_netns("node1")
        for directory in (layout.logs, layout.dir / "tmp", layout.node_dir("node1")):
            directory.mkdir(parents=True)
        netns.create(self._host)
        cgroups.create(self._host)

    def load_for(self, hook: Hook, _: Case) -> Load:
        def run(arguments: Sequence[str]) -> subprocess.Popen[str]:
            command = [*netns.inside(hook.space), "taskset", "-c", self._core, str(self._load), *arguments]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        return Load(run, hook.target, Ends(), hook.servers)

    def hooks(self, *, every: bool) -> Iterator[Hook]:
        """`every`: also with the guard, and iptables, whose rules do per packet what nft's do."""
        yield self._hook("none", None, guarded=False)
        yield self._hook("none-again", None, guarded=False)
        backends: list[Backend] = [Bpf(self._layout.bpf_dir("node1")), Nft()]
        for backend in [*backends, Iptables()] if every else backends:
            if backend.unusable() is None:
                yield self._hook(backend.name, backend, guarded=False)
                if every:
                    yield self._hook(backend.name + GUARDED, backend, guarded=True)

    def _hook(self, name: str, backend: Backend | None, *, guarded: bool) -> Hook:
        space = self._layout.pod_netns("bench", name.replace("+", "-"))
        netns.create(space)
        ends = ["link add eth0 type veth peer name wire0", "link set eth0 up", "link set wire0 up"]
        netns.batch(space, [*ends, f"addr add {OWN}/24 dev eth0", "route add default dev eth0"])
        netns.prefer_cubic(space, local=OWN)
        cgroups.create(space)
        port = OUTBOUND_PORT if backend else PORT
        server = self._serve(space, name, port)
        if backend is not None:
            asyncio.run(self._capture(space, backend, server, guarded=guarded))
        target = f"{ELSEWHERE} 80" if backend else f"{OWN} {PORT}"
        return Hook(f"hook-{name}", space, target, (server.pid,))

    def _serve(self, space: str, name: str, port: int) -> Process:
        """In the pod's namespace and the host's group, as the tunnel is. As a batch process: else the scheduler now and
        then lets it run in the middle of the client's connect(), whose time it then is."""
        command = ["nsenter", f"--net={NETNS / space}", "--", "taskset", "-c", self._core, "chrt", "-b", "0"]
        command += [str(self._load), "serve"]
        server = processes.start(self._layout, f"server-{name}", self._host, [*command, str(port)], group="ztunnel")
        listening = ["ss", "-Hltn", f"sport = :{port}"]
        wait_until("the server listens", lambda: bool(netns.run(*netns.inside(space), *listening)), _READY_S)
        return server

    async def _capture(self, space: str, backend: Backend, server: Process, *, guarded: bool) -> None:
        namespace = Namespace.open(str(NETNS / space))
        try:
            if isinstance(backend, Bpf):
                backend.meet(server.pid)
            await backend.put(Sandbox(space, namespace, cgroups.of(space), Options(dns_capture=False)))
            if guarded:
                guard = Guarding(self._layout.dir / f"guard-{backend.name}.json")
                await guard.meet(server.pid)
                await guard.put(namespace, options=Options(dns_capture=False))
        finally:
            namespace.close()


@contextmanager
def place(load: Path, *, every: bool) -> Iterator[list[tuple[Place, Hook]]]:
    layout = Layout(f"hooks{os.getpid() % 10000}")
    with ExitStack() as ends:
        ends.callback(teardown.down, layout)
        made = Place(layout, load)
        yield [(made, hook) for hook in made.hooks(every=every)]
