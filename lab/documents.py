"""The lab's configuration: Kubernetes and Istio documents as a kubelet and an operator would leave them.

One document per file, replaced atomically, so that a watcher never reads half of one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

Document = dict[str, Any]
AMBIENT: Final = {"istio.io/dataplane-mode": "ambient"}
OUT_OF_MESH: Final = {"istio.io/dataplane-mode": "none"}


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What a person asks for; `service_account` and `app` default to the name. `versions`: of the pod's addresses."""

    name: str
    node: str
    namespace: str = "shop"
    service_account: str = ""
    app: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    versions: tuple[int, ...] = (4, 6)

    @property
    def account(self) -> str:
        return self.service_account or self.name


def write(directory: Path, name: str, document: Document | str) -> Path:
    """Replaces `name`.yaml as a whole. Text is written as it is, for documents that are meant to be wrong."""
    path = directory / f"{name}.yaml"
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    # A leading dot: the watchers look at *.yaml only.
    aside = directory / f".{name}.new"
    aside.write_text(text)
    os.replace(aside, path)
    return path


def remove(directory: Path, name: str) -> None:
    (directory / f"{name}.yaml").unlink(missing_ok=True)


def namespace(name: str, labels: dict[str, str]) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: str, *addresses: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"topology.kubernetes.io/region": "lab", "topology.kubernetes.io/zone": f"zone-{name}"},
        },
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


def service_account(namespace: str, name: str) -> Document:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


def service(namespace: str, name: str, vips: Sequence[str], ports: dict[int, int]) -> Document:
    """`ports`: the Service's port -> the pods'. Selects pods with label `app: NAME`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "clusterIP": vips[0],
            "clusterIPs": list(vips),
            "ipFamilies": ["IPv6" if ":" in vip else "IPv4" for vip in vips],
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": name},
            "ports": [{"name": f"tcp-{p}", "port": p, "targetPort": t, "protocol": "TCP"} for p, t in ports.items()],
        },
    }


def http_service(namespace: str, name: str, vips: Sequence[str], labels: dict[str, str] | None = None) -> Document:
    """Port 80 to the pods' 8080, HTTP, with these labels."""
    found = service(namespace, name, vips, {80: 8080})
    found["metadata"]["labels"] = labels or {}
    found["spec"]["ports"][0] |= {"name": "http"}
    return found


def gateway(namespace: str, name: str, labels: dict[str, str] | None = None) -> Document:
    """A waypoint, by default for services."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }


def pod(spec: PodSpec, uid: str) -> Document:
    """As the API server has it when the runtime is about to start it: bound to a node, without a status."""
    labels = {"app": spec.app or spec.name, **spec.labels}
    about = {"name": spec.name, "namespace": spec.namespace, "uid": uid, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": about | ({"annotations": spec.annotations} if spec.annotations else {}),
        "spec": {
            "nodeName": spec.node,
            "serviceAccountName": spec.account,
            "containers": [{"name": "app", "image": "lab"}],
        },
    }


def host_workload(spec: PodSpec, ips: Sequence[str], group: str) -> Document:
    """A control group of a node, with an identity and addresses of its own."""
    notes = {"nodemesh/node": spec.node, "nodemesh/cgroup": group, "nodemesh/addresses": ",".join(ips[1:])}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "annotations": notes | spec.annotations},
        "spec": {
            "address": ips[0],
            "serviceAccount": spec.account,
            "labels": {"app": spec.app or spec.name, **spec.labels},
        },
    }


def running(document: Document, ips: Sequence[str], host_ips: Sequence[str]) -> Document:
    """What the kubelet adds once the pod runs."""
    status = {
        "phase": "Running",
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": ip} for ip in host_ips],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return {**document, "status": status}


def strict(namespace: str) -> Document:
    return peer_authentication(namespace, "STRICT")


def peer_authentication(namespace: str, mode: str, app: str = "", ports: dict[int, str] | None = None) -> Document:
    """Of a namespace (of the mesh: `istio-system`), or of the pods with label `app: APP`. `ports`: port -> mode."""
    spec: Document = {"mtls": {"mode": mode}}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    if ports:
        spec["portLevelMtls"] = {port: {"mode": each} for port, each in ports.items()}
    return _istio("PeerAuthentication", namespace, app or "default", spec)


def authorization(namespace: str, name: str, action: str, app: str, rules: list[Document]) -> Document:
    """`rules` in the notation of AuthorizationPolicy; selects pods with label `app: APP`."""
    spec = {"selector": {"matchLabels": {"app": app}}, "action": action, "rules": rules}
    return _istio("AuthorizationPolicy", namespace, name, spec)


def deny_from(namespace: str, name: str, app: str, principal: str) -> Document:
    rule = {"from": [{"source": {"principals": [principal]}}]}
    return authorization(namespace, name, "DENY", app, [rule])


def _istio(kind: str, namespace: str, name: str, spec: Document) -> Document:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
