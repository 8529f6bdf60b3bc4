"""A small shop behind a waypoint, and how it is asked: one curl per question, answers as the client saw them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import yaml

from lab import apps, documents, proxies
from lab.cluster import Cluster, Pod
from lab.documents import PodSpec
from lab.processes import wait_until
from mesh.errors import OperatorError

NAMESPACE = "mall"
EFFECT_S = 5.0
_MARK = "\n--8<--"
_WRITE = _MARK + "%{http_code} %{time_total} %{num_connects}\n"


@dataclass(frozen=True)
class Answer:
    """`status` 0: none. `told`: what the application saw, if it was the application that answered."""

    status: int
    seconds: float
    text: str
    told: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.told.get("version", "")

    def header(self, name: str) -> str:
        """As the application saw it."""
        return self.told.get("headers", {}).get(name, "")


class Mall:
    """Services `reviews` (v1 on node1, v2 on node2) and `ratings` (v1), clients `alice` and `bob`, waypoint `way`."""

    def __init__(self, mesh: Cluster) -> None:
        self.mesh = mesh
        self.applied: list[str] = []
        self.number = 0

    def build(self) -> None:
        mesh = self.mesh
        mesh.apply(f"namespace-{NAMESPACE}", documents.namespace(NAMESPACE, documents.AMBIENT))
        proxies.apply(mesh, "way", NAMESPACE)
        self.way = proxies.add(mesh, "way", "node1", NAMESPACE)
        self.alice, self.bob = (self.pod(name, "node1", name) for name in ("alice", "bob"))
        self.service("reviews")
        self.service("ratings")
        self.reviews = [self.echo(f"reviews-v{n}", f"node{n}", "reviews", f"v{n}") for n in (1, 2)]
        self.ratings = self.echo("ratings-v1", "node2", "ratings", "v1")
        for name in ("reviews", "ratings"):
            self.until(lambda name=name: self.ask(f"http://{self.vip(name)}/").status == 200, f"{name} answers")

    def pod(self, name: str, node: str, app: str, version: str = "", account: str = "") -> Pod:
        labels = {"version": version} if version else {}
        spec = PodSpec(name, node, NAMESPACE, app=app, labels=labels, service_account=account or name)
        return self.mesh.add_pod(spec, with_apps=False)

    def echo(self, name: str, node: str, app: str, version: str) -> Pod:
        pod = self.pod(name, node, app, version, account=app)
        self.mesh.start_in(pod, f"echo-{name}", apps.echo(name, version))
        url = f"127.0.0.1:{apps.HTTP_PORT}/seen"
        wait_until(f"{name} answers", lambda: self.mesh.http_status(pod.netns, url) == 200, 20)
        return pod

    def service(self, name: str, waypoint: str = "way", **ports: tuple[int, int]) -> str:
        """`ports`: name -> (port, pods' port)."""
        vip = self.mesh.add_service(name, {80: apps.HTTP_PORT}, NAMESPACE)
        self.mesh.apply(f"service-{NAMESPACE}-{name}", self.service_document(name, vip, waypoint, **ports))
        return vip

    def service_document(self, name: str, vip: str, waypoint: str = "", **ports: tuple[int, int]) -> dict[str, Any]:
        labels = {"istio.io/use-waypoint": waypoint} if waypoint else {}
        document = documents.http_service(NAMESPACE, name, [vip], labels)
        document["spec"]["ports"] += [
            {"name": each.replace("_", "-"), "port": port, "targetPort": target}
            for each, (port, target) in ports.items()
        ]
        return document

    def vip(self, name: str) -> str:
        return self.mesh.vips[name]

    # Configuration --------------------------------------------------------------------------------------------------

    def apply(self, text: str) -> None:
        """Documents as an operator writes them; namespace `mall` unless they say another. In force everywhere when this
        returns, gone after the test."""
        documents = [each for each in yaml.safe_load_all(text) if each]
        for document in documents:
            document["metadata"].setdefault("namespace", NAMESPACE)
        self.number += 1
        name = f"l7-{self.number}"
        self.applied.append(name)
        before = self.version
        self.mesh.apply(name, yaml.safe_dump_all(documents))
        self._settled(before)

    def clean(self) -> None:
        if self.applied:
            before = self.version
            for name in self.applied:
                self.mesh.remove(name)
            self.applied.clear()
            self._settled(before)

    @property
    def version(self) -> int:
        return int(self.mesh.ask("controlplane", "/status")["world"]["version"])

    def _settled(self, before: int) -> None:
        """Everybody has a newer world than that one."""

        def settled() -> bool:
            status = self.mesh.ask("controlplane", "/status")
            newest = status["world"]["version"]
            return newest > before and all(each["synced_version"] == newest for each in status["nodes"])

        try:
            wait_until("the configuration is in force", settled, EFFECT_S)
        except OperatorError as error:
            status = self.mesh.ask("controlplane", "/status")
            raise AssertionError(f"{error}: {status['findings']}, {status['nodes']}") from None

    def until(self, true: Any, what: str = "the change is felt") -> None:
        wait_until(what, true, EFFECT_S)

    # Requests -------------------------------------------------------------------------------------------------------

    def ask(self, url: str, *options: str, client: Pod | None = None) -> Answer:
        """`url`: a path of reviews, or a whole one."""
        [answer] = self.ask_many(url, 1, *options, client=client)
        return answer

    def ask_many(self, url: str, times: int, *options: str, client: Pod | None = None) -> list[Answer]:
        """One after the other over as few connections as curl needs."""
        whole = url if "://" in url else f"http://{self.vip('reviews')}{url}"
        numbered = f"{whole}{'&' if '?' in whole else '?'}n=[1-{times}]" if times > 1 else whole
        command = ["curl", "-gs" if times == 1 else "-s", "-i", "-m", "20", "-w", _WRITE, *options, numbered]
        out = self.mesh.exec(client or self.alice, command, timeout_s=120).stdout
        return [_answer(each) for each in _split(out)]

    def counted(self, url: str, times: int, *options: str, client: Pod | None = None) -> Counter[str]:
        """How many answers came of which version, or with which status when no application answered."""
        return Counter(each.version or str(each.status) for each in self.ask_many(url, times, *options, client=client))

    def admin(self, target: str, pod: Pod | None = None, method: str = "GET") -> str:
        """The waypoint's admin socket; `/envoy/…` is Envoy's own."""
        socket = self.mesh.layout.run_dir((pod or self.way).name) / "waypoint.sock"
        command = ["curl", "-sg", "-X", method, "--unix-socket", str(socket), f"http://waypoint{target}"]
        return self.mesh.exec(pod or self.way, command).stdout

    def seen(self, pod: Pod) -> dict[str, int]:
        """Requests by path, in the application's own words."""
        found = self.mesh.exec(pod, ["curl", "-s", f"http://127.0.0.1:{apps.HTTP_PORT}/seen"]).stdout
        return dict(json.loads(found))


def _split(out: str) -> list[tuple[str, str]]:
    """Each answer with the line that curl wrote after it."""
    found, rest = [], out
    while _MARK in rest:
        text, _, rest = rest.partition(_MARK)
        line, _, rest = rest.partition("\n")
        found.append((text, line))
    return found


def _answer(parts: tuple[str, str]) -> Answer:
    text, line = parts
    status, seconds, _ = line.split()
    head, body = "", text
    while body.startswith("HTTP/"):
        head, _, body = body.partition("\n\n")  # text: line ends are translated
    fields = (each.partition(": ") for each in head.split("\n")[1:])
    headers = {name.lower(): value for name, _, value in fields}
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    return Answer(int(status), float(seconds), body, told if isinstance(told, dict) else {}, headers)
