"""Waypoints and gateways of a lab: each is a pod of its own outside the capture, with `waypoint` as its program.

Several pods of one Gateway are its replicas. What an operator would write is written: the Gateway and the pod.
"""

from __future__ import annotations

from lab import daemons, documents
from lab.cluster import Cluster, Pod
from lab.documents import PodSpec
from lab.processes import Process, wait_until

READY_S = 90.0
LABELS = {"istio.io/dataplane-mode": "none", "networking.istio.io/tunnel": "http"}


def add(
    cluster: Cluster, name: str, node: str, namespace: str = "shop", replica: int = 1, gateway: bool = False
) -> Pod:
    """A running, ready proxy `namespace/name` as pod `name-REPLICA` on the node. Its Gateway must be there.

    `gateway`: a way in or out, chosen by Istio's Gateways with `istio: NAME`; else a waypoint.
    """
    return start(cluster, prepare(cluster, name, node, namespace, replica, gateway), gateway)


def prepare(
    cluster: Cluster, name: str, node: str, namespace: str = "shop", replica: int = 1, gateway: bool = False
) -> Pod:
    """The pod without its program."""
    own = {"istio": name, "istio.io/dataplane-mode": "none"} if gateway else LABELS
    labels = {"gateway.networking.k8s.io/gateway-name": name, **own}
    spec = PodSpec(f"{name}-{replica}", node, namespace, service_account=name, app=name, labels=labels)
    return cluster.add_pod(spec, with_apps=False)


def start(cluster: Cluster, pod: Pod, gateway: bool = False) -> Pod:
    """A gateway is ready once it has a server, which the tests give it later."""
    key = f"{pod.namespace}/{pod.service_account}"
    token = key.replace("/", "-")
    if not daemons.token_path(cluster.layout, token).exists():  # one for all of its pods: a new one ends the old one
        daemons.issue_token(cluster.layout, token, key)
    cluster.start_proxy(key, pod)
    if not gateway:
        wait_until(f"{pod.name} is ready", lambda: is_ready(cluster, pod), READY_S)
    return pod


def process(cluster: Cluster, pod: Pod) -> Process:
    return cluster.daemons[f"waypoint-{pod.name}"]


def is_ready(cluster: Cluster, pod: Pod) -> bool:
    """Envoy has its configuration and its certificate."""
    return cluster.http_status(pod.netns, "127.0.0.1:15021/healthz/ready") == 200


def apply(cluster: Cluster, name: str, namespace: str = "shop", **labels: str) -> None:
    """Its Gateway."""
    cluster.apply(f"gateway-{namespace}-{name}", documents.gateway(namespace, name, labels))


def metrics(cluster: Cluster, pod: Pod) -> str:
    return cluster.exec(pod, ["curl", "-s", "-m", "20", "127.0.0.1:15020/metrics"]).stdout
