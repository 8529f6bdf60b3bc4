"""Pods start while whatever a start needs is killed or rewritten at random: none gets out past the mesh, all join.

On the first of two nodes pods start as a kubelet and a runtime start them: through the list that sorts first in a
directory that `cni.install watch` keeps, again and again until the chain says yes. In each, a process knocks at a pod
of the other node from before the chain runs to the pod's end. What it sends before the chain's yes may leave: the
primary plugin gives a network before ours is asked, and no container of a real pod runs so early. From the yes on
nothing may, and nothing ever after a pod has been found enrolled, whatever its chain was.

CHAOS_STARTS: how many pods start. CHAOS_SEED: of what strikes, and when; where in a start that hits is chance.
"""

import json
import os
import random
import signal
import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest

from lab import cgroups, daemons, documents, netns, processes
from lab.documents import PodSpec
from lab.kubernetes import KubernetesCluster
from lab.layout import Layout, underlay_address
from lab.needs import OUR_PLUGIN, REPOSITORY, plugin_path
from lab.processes import Process, wait_until
from lab.runtime import NAME, VERSION, CniRefused, Runtime, Sandbox, primary
from lab.watchdog import guarded
from lab.wire import Capture
from mesh.errors import OperatorError, PeerError
from tests.lab import scripts

pytestmark = pytest.mark.lab

STARTS = int(os.environ.get("CHAOS_STARTS", "16"))
SEED = int(os.environ.get("CHAOS_SEED", "5"))
LIVE, KUBELET_THREADS = 8, 3
SOON_S, START_S, BACKOFF_S, MOST_PEACE_S, MOST_OUTAGE_S = 120.0, 300.0, 0.2, 0.1, 0.5
NODE, AGENT, TUNNEL = "node1", "nodeagent-node1", "ztunnel-node1"
# A pod's number is added; below the ports that connections come from.
EARLY, STARTED, ENROLLED, STEP = 20000, 24000, 28000, 4000

KNOCKER = """
import signal, socket, time
port, done = {early}, 0
def next_port(*_):
    global port, done
    port, done = port + {step}, 0
signal.signal(signal.SIGUSR1, next_port)
print("knocking", flush=True)
kept = []
while True:
    at = port
    for family, ip in ((socket.AF_INET, {ips[0]!r}), (socket.AF_INET6, {ips[1]!r})):
        knock = socket.socket(family)
        knock.setblocking(False)
        try:
            knock.connect((ip, at))
        except OSError:
            pass
        kept.append(knock)
    while len(kept) > 20:
        kept.pop(0).close()
    done += at == port
    if done == 10:
        print("port", at, flush=True)
    time.sleep(0.002 if done < 100 else 0.1)
"""
"""The next port at each SIGUSR1; says so after ten knocks at one, in both families."""


@dataclass
class Started:
    """A pod that runs. `chained`: our plugin was part of its chain."""

    document: dict
    sandbox: Sandbox
    knocker: Process
    chained: bool


class Kubelet(Runtime):
    """The list that sorts first counts; a sandbox's DEL goes through the list of its ADD, as libcni remembers it."""

    def __init__(self, mesh, net_dir):
        super().__init__(mesh.layout, NODE)
        self.mesh, self.net_dir, self.lists, self.knockers = mesh, net_dir, {}, {}
        self.target = [mesh.pods["target"].address(version) for version in (4, 6)]
        self.attempts, self.refused = [], []

    def _plugins(self, sandbox):
        return deepcopy(self.lists[sandbox.container_id])

    def delete(self, sandbox):
        """What runs in the pod ends first."""
        self.knockers.pop(sandbox.container_id).kill()
        super().delete(sandbox)

    def first_list(self):
        """None: no network yet."""
        for path in sorted(self.net_dir.glob("*.conflist")):
            with suppress(OSError, ValueError):
                return json.loads(path.read_text())["plugins"]
        return None

    def start(self, number, labels):
        """With as many attempts as it needs, each in a new sandbox."""
        spec = PodSpec(f"chaos-{number}", NODE, service_account="chaos", labels=labels)
        made = answer("the API takes the pod", lambda: self.mesh.api.apply(documents.pod(spec, "")), SOON_S)
        document = documents.pod(spec, made["metadata"]["uid"])
        attempts = count()
        ask = partial(self._attempt, number, attempts, document)
        ips, pod = answer(f"{spec.name} starts", ask, START_S, step_s=BACKOFF_S)
        running = documents.running(document, ips, [underlay_address(1, version) for version in (4, 6)])
        answer("the API takes its status", lambda: self.mesh.api.apply(running), SOON_S)
        return pod

    def _attempt(self, number, attempts, document):
        """(Its addresses, the pod); None: not this time."""
        plugins = self.first_list()
        if plugins is None:
            return None
        about = document["metadata"]
        space = self.mesh.layout.pod_netns("shop", f"{number}x{next(attempts)}")
        sandbox = Sandbox(uuid.uuid4().hex, space, "shop", about["name"], about["uid"])
        self.lists[sandbox.container_id] = plugins
        netns.create(space, netns.AT_ONCE)
        cgroups.create_pod(self.mesh.layout.node_netns(NODE), 1, sandbox.uid, space)
        knocker = self.knockers[sandbox.container_id] = self._knocker(number, space)
        self.attempts.append(number)
        try:
            added = self.add(sandbox)
        except CniRefused:
            self.refused.append(number)
            self._clean(sandbox)
            return None
        knocker.signal(signal.SIGUSR1)
        return added.ips, Started(document, sandbox, knocker, plugins[-1]["type"] == OUR_PLUGIN)

    def _knocker(self, number, space):
        code = scripts.python(KNOCKER.format(early=EARLY + number, step=STEP, ips=self.target))
        log = self.mesh.layout.log(f"knocker-{number}")
        log.unlink(missing_ok=True)
        process = processes.start(self.mesh.layout, f"knocker-{number}", space, code)
        wait_until("it knocks", lambda: "knocking" in log.read_text(), SOON_S)
        return process

    def _clean(self, sandbox):
        netns.delete(sandbox.netns)
        cgroups.delete(sandbox.netns)
        del self.lists[sandbox.container_id]

    def end(self, pod):
        self.delete(pod.sandbox)
        self._clean(pod.sandbox)
        wait_until("the API forgets the pod", lambda: self._is_deleted(pod.document), SOON_S)

    def _is_deleted(self, document):
        try:
            self.mesh.api.delete(document)
        except PeerError as error:
            return ": 404 " in str(error)  # it was killed before it could say so
        return True


def answer(what, ask, timeout_s, **more):
    """The first that is one; an API server that is away is asked again."""
    said = []

    def is_there():
        with suppress(PeerError):
            said.append(ask())
        return bool(said and said[-1])

    wait_until(what, is_there, timeout_s, **more)
    return said[-1]


class Faults:
    """What strikes: name -> (how it is done, how it is mended). Mended in this order: each needs those before it."""

    def __init__(self, mesh, net_dir, chance):
        self.mesh, self.net_dir, self.chance, self.struck = mesh, net_dir, chance, Counter()
        self.usual, self.early = net_dir / "10-net.conflist", net_dir / "05-early.conflist"
        self.keeper = None
        kill = self._kill
        self.table = {
            "API server": (self._kill_api, mesh.start_api),
            "agent": (lambda: kill(AGENT), lambda: mesh.start_agent(NODE)),
            "tunnel": (lambda: kill(TUNNEL), lambda: mesh.start_tunnel(NODE)),
            "keeper": (lambda: self.keeper.kill(), self.keep),
            "list rewritten": (lambda: self.write(self.usual), lambda: None),
            "list removed": (self.usual.unlink, lambda: self.write(self.usual)),
            "list before it": (lambda: self.write(self.early), self.early.unlink),
        }

    def write(self, path):
        """As another CNI does, which knows nothing of ours."""
        plugins = [primary(1, self.mesh.layout.node_dir(NODE) / "cni/ipam")]
        path.write_text(json.dumps({"cniVersion": VERSION, "name": NAME, "plugins": plugins}))

    def keep(self):
        """As the DaemonSet does."""
        place = {
            "--binary": plugin_path(OUR_PLUGIN),
            "--bin-dir": self.net_dir.with_name("bin"),
            "--net-dir": self.net_dir,
            "--agent-socket": self.mesh.layout.run_dir(NODE) / "cni.sock",
        }
        words = [str(word) for pair in place.items() for word in pair]
        command = [sys.executable, "-m", "cni.install", "watch", *words]
        space = self.mesh.layout.node_netns(NODE)
        self.keeper = processes.start(self.mesh.layout, "keeper", space, command, {"PYTHONPATH": str(REPOSITORY)})

    def _kill(self, daemon):
        self.mesh.daemons[daemon].kill()

    def _kill_api(self):
        self.mesh.api_process.kill()

    def strike_while(self, starts):
        """One to three at a time."""
        while wait(starts, self.chance.uniform(0, MOST_PEACE_S)).not_done:
            chosen = self.chance.sample(list(self.table), self.chance.choice((1, 2, 3)))
            for name in chosen:
                self.table[name][0]()
            wait(starts, self.chance.uniform(0, MOST_OUTAGE_S))
            for name in (name for name in self.table if name in chosen):
                self.table[name][1]()
            self.struck.update(chosen)


class Chaos:
    """`enrolled`: every pod that was found so, by number."""

    def __init__(self, mesh):
        self.mesh = mesh
        place = mesh.layout.node_dir(NODE) / "host"
        net_dir = place / "net.d"
        for directory in (net_dir, place / "bin"):
            directory.mkdir(parents=True)
        mesh.apply("serviceaccount-chaos", documents.service_account("shop", "chaos"))
        mesh.add_pod(PodSpec("target", "node2"), with_apps=False)
        self.faults = Faults(mesh, net_dir, random.Random(SEED))
        self.kubelet = Kubelet(mesh, net_dir)
        self.live, self.enrolled, self.chained = {}, set(), set()
        self.faults.write(self.faults.usual)
        self.faults.keep()
        wait_until("the list is ours", self.list_is_ours, SOON_S)

    def list_is_ours(self):
        plugins = self.kubelet.first_list()
        return bool(plugins) and plugins[-1]["type"] == OUR_PLUGIN

    def start(self, number):
        """One goes for each that comes."""
        if (before := self.live.pop(number - LIVE, None)) is not None:
            self.kubelet.end(before)
        pod = self.live[number] = self.kubelet.start(number, {})
        if pod.chained:
            self.chained.add(number)

    def round(self, numbers):
        with ThreadPoolExecutor(KUBELET_THREADS) as kubelet:
            starts = [kubelet.submit(self.start, number) for number in numbers]
            self.faults.strike_while(starts)
        for each in starts:
            each.result()
        self.settle()

    def settle(self):
        """With everything mended."""
        wait_until("the list is ours", self.list_is_ours, SOON_S)
        try:
            wait_until("all are in the mesh, and nobody else", lambda: self._amiss() == [], SOON_S, step_s=0.1)
        except OperatorError as late:
            pytest.fail(f"{late}: {self._amiss()}")
        for number in self.live.keys() - self.enrolled:
            self.shift(number, self.live[number])
            self.enrolled.add(number)

    def _amiss(self):
        """In the agent's words."""
        wanted = {pod.document["metadata"]["name"]: "IN_MESH" for pod in self.live.values()}
        try:
            states = {each["name"]: each["state"] for each in self._ask("/pods")}
            if states == wanted:
                return [each for each in self._ask("/verify") if each["differences"] or each.get("error")]
        except PeerError as error:
            return [str(error)]
        return sorted(wanted.items() ^ states.items())

    def _ask(self, target):
        _, said = daemons.ask(
            daemons.admin_socket(self.mesh.layout, self.mesh.daemons[AGENT]), target, timeout_s=SOON_S
        )
        return said

    def shift(self, number, pod):
        """To the next port, and some knocks there."""
        log = self.mesh.layout.log(f"knocker-{number}")
        pod.knocker.signal(signal.SIGUSR1)
        wait_until("it knocks there", lambda: f"port {ENROLLED + number}" in log.read_text(), SOON_S)


@pytest.fixture
def mesh(capture):
    with guarded(Layout(f"x{os.getpid()}")) as layout:
        yield KubernetesCluster.up(layout.name, nodes=2, pods=0, capture=capture)


def test_nothing_leaves_and_all_join_whatever_is_killed_or_rewritten(mesh, record_property):
    chaos = Chaos(mesh)
    with Capture(mesh, "chaos", only=f"tcp dst portrange {EARLY}-{ENROLLED + STEP - 1}") as wire:
        outside = chaos.kubelet.start(0, documents.OUT_OF_MESH)
        for first in range(1, STARTS + 1, LIVE):
            chaos.round(range(first, min(first + LIVE, STARTS + 1)))
        chaos.shift(0, outside)
    seen = [packet.dport for packet in wire.packets if packet.opens]
    kept = {STARTED + number for number in chaos.chained} | {ENROLLED + number for number in chaos.enrolled}
    leaked = [port for port in seen if port in kept]
    figures = {
        "starts": STARTS,
        "attempts": len(chaos.kubelet.attempts),
        "refused": len(chaos.kubelet.refused),
        "faults": dict(chaos.faults.struck),
        "chained": len(chaos.chained),
        "enrolled": len(chaos.enrolled),
        "early": sum(port < STARTED for port in seen),
        "leaked": len(leaked),
    }
    record_property("chaos", figures)
    print(figures)
    assert {STARTED, ENROLLED} <= set(seen), "what is outside the mesh is seen"
    assert leaked == []
    assert chaos.enrolled == set(range(1, STARTS + 1))
