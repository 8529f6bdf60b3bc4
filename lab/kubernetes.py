"""A lab whose daemons follow an API server instead of a directory: the stand-in, with the RBAC of the real manifests.

Owns what a cluster's other parts would do: kubelets that mount tokens and write pods' status, an administrator who
applies documents. The pods' life is the base class's.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from lab import daemons, documents
from lab.cluster import READY_S, Cluster, Say
from lab.documents import Document, PodSpec
from lab.layout import Layout, underlay_address
from lab.needs import REPOSITORY
from lab.processes import Process, start, wait_until
from lab.runtime import Sandbox
from mesh.errors import OperatorError, PeerError

PORT: Final = 6443
NAMESPACE: Final = "nodemesh-system"
MANIFESTS: Final = ("controlplane.yaml", "daemonset.yaml")
TAINT: Final = {"key": "cni.istio.io/not-ready", "effect": "NoSchedule"}
_MERGE: Final = "application/merge-patch+json"
_KEPT: Final = "ambient.istio.io/redirection"
# Of what a document says in YAML, what the path needs.
PLURALS: Final = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "Pod": "pods",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "ConfigMap": "configmaps",
    "EndpointSlice": "endpointslices",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "CustomResourceDefinition": "customresourcedefinitions",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "DaemonSet": "daemonsets",
    "Deployment": "deployments",
    "GatewayClass": "gatewayclasses",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
    "BackendTLSPolicy": "backendtlspolicies",
    "RateLimit": "ratelimits",
    "ServiceEntry": "serviceentries",
    "WorkloadEntry": "workloadentries",
}
_WORKLOADS: Final = ("Service", "PersistentVolumeClaim", "DaemonSet", "Deployment")
_CLUSTER_SCOPED: Final = (
    *("Namespace", "Node", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"),
    "GatewayClass",
)


class Api:
    """The administrator's door of a stand-in. Every method raises PeerError: nobody answers, or it says no."""

    def __init__(self, path: Path, headers: dict[str, str] | None = None) -> None:
        self._socket, self._headers = path, headers or {}

    def ask(self, method: str, target: str, body: Any = None, media: str = "") -> Any:
        connection = http.client.HTTPConnection("localhost", timeout=30.0)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(30.0)
            connection.sock.connect(str(self._socket))
            kind = media or (_MERGE if method == "PATCH" else "application/json")
            text = json.dumps(body) if body is not None else None
            connection.request(method, target, text, {"Content-Type": kind, **self._headers})
            response = connection.getresponse()
            content = response.read()
            plain = (response.getheader("Content-Type") or "").startswith("text/")
            said: Any = content.decode() if plain else json.loads(content or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PeerError(f"{self._socket}: {error}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise PeerError(
                f"{method} {target}: {response.status} {said['message'] if isinstance(said, dict) else said}"
            )
        return said

    def find(self, kind: str, namespace: str, name: str, version: str = "v1") -> Document | None:
        try:
            found: Document = self.ask("GET", path_of({"apiVersion": version, "kind": kind}, namespace, name))
        except PeerError:
            return None
        return found

    def apply(self, document: Document) -> Document:
        """As it is written, but for what agents write on pods. Its status through the subresource."""
        about = document["metadata"]
        namespace = namespace_of(document)
        place = path_of(document, namespace, about["name"])
        found = self.find(document["kind"], namespace, about["name"], document["apiVersion"])
        if found is None:
            made = self.ask("POST", path_of(document, namespace), document)
        else:
            made = self.ask("PUT", place, _over(found, document))
        if "status" in document:
            made = self.ask("PATCH", f"{place}/status", {"status": document["status"]})
        return dict(made)

    def delete(self, document: Document) -> None:
        self.ask("DELETE", path_of(document, namespace_of(document), document["metadata"]["name"]))

    def token(self, account: str, audience: str = "", pod: str = "") -> str:
        """As the kubelet asks for one."""
        spec: Document = {"audiences": [audience] if audience else []}
        if pod:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod}
        target = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        return str(self.ask("POST", target, {"spec": spec})["status"]["token"])


def namespace_of(document: Document) -> str:
    """Nothing for cluster-scoped kinds."""
    if document["kind"] in _CLUSTER_SCOPED:
        return ""
    return str(document["metadata"].get("namespace", "default"))


def path_of(document: Document, namespace: str, name: str = "") -> str:
    version = document["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{inside}/{PLURALS[document['kind']]}" + (f"/{name}" if name else "")


def _over(found: Document, document: Document) -> Document:
    about = dict(document["metadata"])
    about.pop("uid", None)
    if (kept := found["metadata"].get("annotations", {}).get(_KEPT)) is not None:
        about["annotations"] = {**about.get("annotations", {}), _KEPT: kept}
    return {**document, "metadata": about}


class KubernetesCluster(Cluster):
    """A `Cluster` in which `apply` and `remove` speak to the API server."""

    def __init__(self, layout: Layout, say: Say = lambda _: None, capture: str = daemons.AUTO) -> None:
        super().__init__(layout, say, capture)
        self._applied: dict[str, Document] = {}
        self.api_process: Process | None = None
        self._directory = layout.node_dir(daemons.CONTROL) / "apiserver"
        self.api = Api(self._directory / "apiserver.sock")

    def start_api(self) -> None:
        """With what it held before, if it ran before; of what happened before it knows nothing more."""
        argv = [sys.executable, "-m", "lab.apiserver", str(self._directory), "--rbac", "--bookmarks", "1"]
        addresses = [underlay_address(0, version) for version in (4, 6)]
        argv += [word for address in addresses for word in ("--address", address)]
        process = start(self.layout, "apiserver", self.layout.control, argv, {"PYTHONPATH": str(REPOSITORY)})
        self.api_process = process
        wait_until("the API server answers", lambda: self._api_answers(process), READY_S)

    def _api_answers(self, process: Process) -> bool:
        if not process.alive:
            raise OperatorError(f"the API server ended: {daemons.last_words(self.layout, 'apiserver')}")
        try:
            return "version" in self.api.ask("GET", "/status")
        except PeerError:
            return False

    def apply(self, name: str, document: Document | str) -> Path:
        if self.api_process is None:  # the first document is a node's, when the network is there
            self.start_api()
            self._install()
        assert isinstance(document, dict), "the API server takes only what it can parse"
        if document["kind"] == "Node":
            document = {**document, "spec": {"taints": [TAINT]}}
        self._applied[name] = document
        self.api.apply(document)
        return self._directory

    def remove(self, name: str) -> None:
        if (document := self._applied.pop(name, None)) is not None:
            self.api.delete(document)

    def _install(self) -> None:
        """What of the manifests is not a workload."""
        for name in MANIFESTS:
            for document in yaml.safe_load_all((REPOSITORY / name).read_text()):
                if document["kind"] not in _WORKLOADS:
                    self.api.apply(document)

    def lose(self, document: Document) -> None:
        """While no API server runs: the object goes, and with it the history that would tell of it."""
        path = self._directory / "objects.json"
        state = json.loads(path.read_text())
        state["version"] += 1000
        name = document["metadata"]["name"]
        state["items"] = [each for each in state["items"] if each[2] != name]
        path.write_text(json.dumps(state))

    # What the kubelet does ------------------------------------------------------------------------------------------

    def start_controlplane(self) -> None:
        more = {"NODEMESH_TUNNEL_ACCOUNTS": f"{NAMESPACE}/ztunnel", "POD_NAMESPACE": NAMESPACE}
        if not daemons.more_settings(self.layout, daemons.CONTROL).exists():
            self._mount(daemons.CONTROL, "controlplane", more)
        super().start_controlplane()

    def _start_nodes(self) -> None:
        for node in self.nodes:
            self._run_pod(f"nodemesh-node-{node}", node, "nodemesh-node")
            self._run_pod(f"ztunnel-{node}", node, "ztunnel")
            self._mount(node, "nodemesh-node", self._node_settings(node), pod=f"nodemesh-node-{node}")
        super()._start_nodes()

    def _node_settings(self, node: str) -> dict[str, str]:
        return {"NODEMESH_DRAIN": "3s", "POD_NAME": f"ztunnel-{node}", "POD_NAMESPACE": NAMESPACE}

    def _run_pod(self, name: str, node: str, account: str) -> None:
        spec = PodSpec(name, node, NAMESPACE, account, labels={"app": account}, app=account)
        self.api.apply(documents.pod(spec, ""))

    def _mount(self, owner: str, account: str, more: dict[str, str], pod: str = "") -> None:
        directory = self.layout.node_dir(owner) / "account"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "token").write_text(self.api.token(account, pod=pod))
        (directory / "ca.crt").write_text((self._directory / "ca.crt").read_text())
        settings = {
            "KUBERNETES_SERVICE_HOST": underlay_address(0),
            "KUBERNETES_SERVICE_PORT": str(PORT),
            "NODEMESH_SERVICE_ACCOUNT_DIR": str(directory),
            **more,
        }
        daemons.more_settings(self.layout, owner).write_text(json.dumps(settings))

    def _admit(self, node: str) -> None:
        path = daemons.token_path(self.layout, node)
        path.touch(0o600)
        path.write_text(self.api.token("ztunnel", "istio-ca", f"ztunnel-{node}"))

    def _sandbox(self, spec: PodSpec) -> Sandbox:
        """The API server gives a pod its uid, and the runtime hears of it."""
        made = self.api.apply(documents.pod(spec, ""))
        sandbox = super()._sandbox(spec)
        return Sandbox(
            sandbox.container_id, sandbox.netns, spec.namespace, spec.name, made["metadata"]["uid"], spec.versions
        )

    def annotation(self, namespace: str, name: str) -> str | None:
        """What the agent says of a pod."""
        found = self.api.find("Pod", namespace, name)
        return found["metadata"].get("annotations", {}).get(_KEPT) if found else None

    def set_labels(self, namespace: str, name: str, labels: dict[str, str | None]) -> None:
        """As `kubectl label pod` does; None takes a label away."""
        target = f"/api/v1/namespaces/{namespace}/pods/{name}"
        self.api.ask("PATCH", target, {"metadata": {"labels": labels}})
