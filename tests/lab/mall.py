"""A small shop behind a waypoint, and how it is asked: one curl per question, answers as the client saw them."""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lab import apps, asking, daemons, documents, proxies
from lab.asking import Answer
from lab.cluster import Cluster, Pod
from lab.documents import PodSpec
from lab.processes import Process, wait_until
from mesh.errors import OperatorError

NAMESPACE = "mall"
EFFECT_S = 60.0
_PROVIDER = """
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: {name}
      {provider}
---
"""
_EXTERNAL = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, labels: {{istio.io/use-waypoint: way}}}}
spec:
  hosts: [{name}.example.com]
  addresses: [{vip}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  endpoints: [{{address: {address}}}]
---
"""


def provider(name: str, what: str) -> str:
    """The mesh's configuration with an extension provider."""
    return _PROVIDER.format(name=name, provider=what)


def edge(host: str, service: str) -> str:
    """An ingress gateway that leads from `host` to the service, for which both documents are called."""
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {service}}}
spec:
  selector: {{istio: ingress}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{host}]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {service}}}
spec:
  hosts: [{host}]
  gateways: [{service}]
  http: [{{route: [{{destination: {{host: {service}}}}}]}}]
---
"""


def external(name: str, vip: str, address: str, port: int) -> str:
    """A host beyond the mesh, `NAME.example.com`, through the mall's waypoint."""
    return _EXTERNAL.format(name=name, vip=vip, address=address, port=port)


class Series:
    """A client that goes on asking while something is changed."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process, self._log = process, log

    def until(self, text: str) -> None:
        """It has been answered so."""
        wait_until(f"{self._process.name} has {text!r}", lambda: text in self._log.read_text(), EFFECT_S)

    def end(self) -> list[str]:
        """What it printed, in whole lines."""
        self._process.kill()
        return self._log.read_text().split("\n")[:-1]


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
        self.bundles.mkdir(parents=True)
        more = {"NODEMESH_TRUST_BUNDLES": str(self.bundles)}
        daemons.more_settings(mesh.layout, "way-1").write_text(json.dumps(more))
        self.way = proxies.add(mesh, "way", "node1", NAMESPACE)
        self.alice, self.bob = (self.pod(name, "node1", name) for name in ("alice", "bob"))
        self.service("reviews")
        self.service("ratings")
        self.reviews = [self.echo(f"reviews-v{n}", f"node{n}", "reviews", f"v{n}") for n in (1, 2)]
        self.ratings = self.echo("ratings-v1", "node2", "ratings", "v1")
        for name in ("reviews", "ratings"):
            self.until(lambda name=name: self.ask(f"http://{self.vip(name)}/").status == 200, f"{name} answers")

    @property
    def bundles(self) -> Path:
        """Of other trust domains, one file each, as the waypoint reads them."""
        return self.mesh.layout.node_dir("way-1") / "bundles"

    @cached_property
    def gate(self) -> Pod:
        """The gateway `ingress`, from the first test on that wants it."""
        return proxies.add(self.mesh, "ingress", "node1", NAMESPACE, gateway=True)

    def pod(self, name: str, node: str, app: str, version: str = "", account: str = "", **labels: str) -> Pod:
        labels |= {"version": version} if version else {}
        spec = PodSpec(name, node, NAMESPACE, app=app, labels=labels, service_account=account or name)
        return self.mesh.add_pod(spec, with_apps=False)

    def echo(self, name: str, node: str, app: str, version: str, **labels: str) -> Pod:
        pod = self.pod(name, node, app, version, account=app, **labels)
        self.mesh.start_in(pod, f"echo-{name}", apps.echo(name, version))
        url = f"127.0.0.1:{apps.HTTP_PORT}/seen"
        wait_until(f"{name} answers", lambda: self.mesh.http_status(pod.netns, url) == 200, EFFECT_S)
        return pod

    def listens(self, pod: Pod, port: int) -> None:
        wait_until(f"{pod.name} listens at {port}", lambda: self.mesh.listens(pod, port), EFFECT_S)

    def service(self, name: str, waypoint: str = "way", app: str = "", **ports: tuple[int, int]) -> str:
        """`ports`: name -> (port, pods' port). `app`: whose pods, its own without."""
        vip = self.mesh.add_service(name, {80: apps.HTTP_PORT}, NAMESPACE)
        document = self.service_document(name, vip, waypoint, **ports)
        document["spec"]["selector"] = {"app": app or name}
        self.mesh.apply(f"service-{NAMESPACE}-{name}", document)
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

    def apply(self, text: str, again: bool = False) -> None:
        """Documents as an operator writes them; namespace `mall` unless they say another. In force everywhere when this
        returns, gone after the test. `again`: in the place of the last ones."""
        documents = [each for each in yaml.safe_load_all(text) if each]
        for document in documents:
            document["metadata"].setdefault("namespace", NAMESPACE)
        if not again:
            self.number += 1
            self.applied.append(f"l7-{self.number}")
        name = self.applied[-1]
        before = self.version
        self.mesh.apply(name, yaml.safe_dump_all(documents))
        self.settled(before)

    def clean(self) -> None:
        if self.applied:
            before = self.version
            for name in self.applied:
                self.mesh.remove(name)
            self.applied.clear()
            self.settled(before)

    @property
    def version(self) -> int:
        return int(self.mesh.ask("controlplane", "/status")["world"]["version"])

    def settled(self, before: int) -> None:
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
        whole = url if "://" in url else f"http://{self.vip('reviews')}{url}"
        return asking.ask_many(self.mesh, client or self.alice, whole, times, *options)

    def counted(self, url: str, times: int, *options: str, client: Pod | None = None) -> Counter[str]:
        return asking.counted(self.ask_many(url, times, *options, client=client))

    def series(self, name: str, *options: str) -> Series:
        """Requests of alice to reviews, one after the other over one connection, until it is ended."""
        log = self.mesh.layout.log(name)
        log.unlink(missing_ok=True)
        url = f"http://{self.vip('reviews')}/?[1-1000000]"
        command = ["stdbuf", "-oL", "curl", "-sN", "-m", "60", "--rate", "100/s", *options, url]
        return Series(self.mesh.start_in(self.alice, name, command), log)

    def admin(self, target: str, pod: Pod | None = None, method: str = "GET") -> str:
        """The waypoint's admin socket; `/envoy/…` is Envoy's own."""
        socket = self.mesh.layout.run_dir((pod or self.way).name) / "waypoint.sock"
        command = ["curl", "-sg", "-X", method, "--unix-socket", str(socket), f"http://waypoint{target}"]
        return self.mesh.exec(pod or self.way, command).stdout

    def seen(self, pod: Pod) -> dict[str, int]:
        """Requests by path, in the application's own words."""
        found = self.mesh.exec(pod, ["curl", "-s", f"http://127.0.0.1:{apps.HTTP_PORT}/seen"]).stdout
        return dict(json.loads(found))

    def received(self, pod: Pod) -> list[tuple[str, str]]:
        """What was posted to the application: path and body."""
        found = self.mesh.exec(pod, ["curl", "-s", f"http://127.0.0.1:{apps.HTTP_PORT}/received"]).stdout
        return [(path, body) for path, body in json.loads(found)]
