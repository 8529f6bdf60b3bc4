"""A lab on a real Kubernetes API server and its etcd, of which somebody has built the programs: docs/kubernetes.md.

DIRECTORY has `bin/etcd`, `bin/kube-apiserver`, `bin/pilot-discovery` and `crds/*.yaml`. There is no controller and no
kubelet: what those do for the mesh, the lab does. Everything is applied by server-side apply with strict validation.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import daemons, documents, netns
from lab.apiserver.__main__ import certificate
from lab.cluster import READY_S, Say
from lab.documents import Document
from lab.kubernetes import NAMESPACE, PLURALS, Api, KubernetesCluster, namespace_of, path_of
from lab.layout import SERVICES, Layout, underlay_address
from lab.needs import REPOSITORY
from lab.processes import Process, start, wait_until
from mesh.errors import OperatorError, PeerError

WHERE: Final = "NODEMESH_REAL_KUBERNETES"
PORT: Final = 6443
APPLY: Final = "application/apply-patch+yaml"
START_S: Final = 120.0
ISTIO: Final = "istio-system"
ISTIOD_READY: Final = "127.0.0.1:8080/ready"
_ISTIOD: Final = {
    "POD_NAME": "istiod-1",
    "POD_NAMESPACE": ISTIO,
    "CLUSTER_ID": "Kubernetes",
    "PILOT_ENABLE_AMBIENT": "true",
    "CA_TRUSTED_NODE_ACCOUNTS": f"{NAMESPACE}/ztunnel",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",
}
CRDS: Final = "deploy/crds.yaml"
_OWN: Final = "fieldManager=lab&force=true&fieldValidation=Strict"


class RealApi(Api):
    """The same door: to the API server over TLS, as a member of system:masters."""

    def __init__(self, path: Path, token: str) -> None:
        super().__init__(path, {"Authorization": f"Bearer {token}"})

    def apply(self, document: Document) -> Document:
        """Raises PeerError also when the server would only warn of a field that it does not know."""
        about = {name: value for name, value in document["metadata"].items() if name != "uid"}
        status = document.get("status")
        body = {name: value for name, value in document.items() if name != "status"} | {"metadata": about}
        place = path_of(document, namespace_of(document), about["name"])
        made: Document = self.ask("PATCH", f"{place}?{_OWN}", body, APPLY)
        if status is not None:
            made = self.ask("PATCH", f"{place}/status?fieldValidation=Strict", {"status": status})
        return made

    def delete(self, document: Document) -> None:
        """At once: nobody is there who would let a pod end."""
        place = path_of(document, namespace_of(document), document["metadata"]["name"])
        self.ask("DELETE", f"{place}?gracePeriodSeconds=0")


class RealCluster(KubernetesCluster):
    """`directory`: of the programs."""

    def __init__(self, layout: Layout, say: Say = lambda _: None, capture: str = daemons.AUTO) -> None:
        super().__init__(layout, say, capture)
        self._programs = Path(os.environ[WHERE])
        self._token = secrets.token_hex(16)
        self.api = RealApi(self._directory / "apiserver.sock", self._token)

    def start_api(self) -> None:
        if not self._directory.exists():
            self._prepare()
            self._start("etcd", _etcd(self._directory))
            # The test's own way in.
            tls = f"OPENSSL:127.0.0.1:{PORT},cafile={self._directory / 'ca.crt'}"
            door = f"UNIX-LISTEN:{self._directory / 'apiserver.sock'},fork,mode=600"
            start(self.layout, "apiserver-door", self.layout.control, ["socat", door, tls], {})
        process = self._start("kube-apiserver", _apiserver(self._directory))
        self.api_process = process
        wait_until("the API server is ready", lambda: self._is_ready(process), START_S)

    def _start(self, program: str, arguments: list[str]) -> Process:
        argv = [str(self._programs / "bin" / program), *arguments]
        return start(self.layout, program, self.layout.control, argv, {})

    def _prepare(self) -> None:
        self._directory.mkdir(parents=True, mode=0o700)
        certificate(self._directory, ("127.0.0.1", *(underlay_address(0, version) for version in (4, 6))))
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        (self._directory / "accounts.key").write_bytes(key.private_bytes(*pem))
        (self._directory / "tokens.csv").write_text(f'{self._token},lab,lab,"system:masters"\n')

    def _is_ready(self, process: Process) -> bool:
        if not process.alive:
            raise OperatorError(f"kube-apiserver ended: {daemons.last_words(self.layout, 'kube-apiserver')}")
        try:
            # The rest of its start comes after its door is open.
            return bool(self.api.ask("GET", "/readyz") == "ok")
        except PeerError:
            return False

    def _install(self) -> None:
        """All of it, workloads included, which nobody starts."""
        crds = [*sorted((self._programs / "crds").glob("*.yaml")), REPOSITORY / CRDS]
        for path in crds:
            for document in yaml.safe_load_all(path.read_text()):
                if document and document["kind"] == "CustomResourceDefinition":
                    self.api.apply({name: each for name, each in document.items() if name != "status"})
        wait_until("the kinds are served", self._all_served, READY_S)
        for name in ("controlplane.yaml", "daemonset.yaml"):
            for document in yaml.safe_load_all((REPOSITORY / name).read_text()):
                self.api.apply(document)

    def lose(self, document: Document) -> None:
        group = document["apiVersion"].partition("/")[0]
        about = document["metadata"]
        key = f"/registry/{group}/{PLURALS[document['kind']]}/{about['namespace']}/{about['name']}"
        gone = self.etcd("kv/deleterange", {"key": base64.b64encode(key.encode()).decode()})
        assert gone["deleted"] == "1", key
        self.etcd("kv/compaction", {"revision": gone["header"]["revision"], "physical": True})

    def etcd(self, what: str, body: Document) -> Any:
        """Of its JSON gateway."""
        command = ["curl", "-sS", "-d", json.dumps(body), f"http://127.0.0.1:2379/v3/{what}"]
        return json.loads(netns.run(*netns.inside(self.layout.control), *command))

    def _all_served(self) -> bool:
        listed: Any = self.api.ask("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
        told = [each.get("status", {}).get("conditions", []) for each in listed]
        return all(any(c["type"] == "Established" and c["status"] == "True" for c in each) for each in told)


class IstiodCluster(RealCluster):
    """Our tunnels and agents under a real istiod (`bin/pilot-discovery`) instead of our control plane."""

    def start_controlplane(self) -> None:
        self.api.apply(documents.namespace(ISTIO, {}))
        directory = self.layout.node_dir(daemons.CONTROL) / "istiod"
        directory.mkdir(exist_ok=True)
        (directory / "kubeconfig").write_text(json.dumps(self._kubeconfig()))
        (directory / "mesh.yaml").write_text("trustDomain: cluster.local\n")
        self.start_istiod()
        wait_until("istiod's root is published", self._take_root, READY_S)

    def start_istiod(self) -> None:
        directory = self.layout.node_dir(daemons.CONTROL) / "istiod"
        argv = [str(self._programs / "bin/pilot-discovery"), "discovery", *_istiod(directory)]
        self.istiod_process = start(self.layout, "istiod", self.layout.control, argv, _ISTIOD)
        wait_until("istiod is ready", lambda: self.http_status(self.layout.control, ISTIOD_READY) == 200, START_S)

    def _take_root(self) -> bool:
        found = self.api.find("ConfigMap", ISTIO, "istio-ca-root-cert")
        path = daemons.root_certificate(self.layout)
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        path.write_text(found["data"]["root-cert.pem"] if found else "")
        return found is not None

    def istiod(self, what: str) -> Any:
        """One of its debug pages."""
        command = ["curl", "-sS", f"http://127.0.0.1:8080/debug/{what}"]
        return json.loads(netns.run(*netns.inside(self.layout.control), *command))

    def _kubeconfig(self) -> Document:
        server = {"server": f"https://127.0.0.1:{PORT}", "certificate-authority": str(self._directory / "ca.crt")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": server}],
            "users": [{"name": "lab", "user": {"token": self._token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        }

    def _node_settings(self, node: str) -> dict[str, str]:
        names = {"ALT_XDS_HOSTNAME": "istiod.istio-system.svc", "ALT_CA_HOSTNAME": "istiod.istio-system.svc"}
        return {**super()._node_settings(node), **names}


def _istiod(directory: Path) -> list[str]:
    return [
        f"--kubeconfig={directory / 'kubeconfig'}",
        f"--meshConfig={directory / 'mesh.yaml'}",
        "--networksConfig=",
        "--httpAddr=127.0.0.1:8080",
        "--grpcAddr=127.0.0.1:15010",
        "--secureGRPCAddr=[::]:15012",
        "--httpsAddr=",
        "--ctrlz_port=0",
    ]


def _etcd(directory: Path) -> list[str]:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(directory: Path) -> list[str]:
    ranges = ",".join(str(SERVICES[version]) for version in (4, 6))
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--secure-port={PORT}",
        f"--advertise-address={underlay_address(0)}",
        f"--tls-cert-file={directory / 'ca.crt'}",
        f"--tls-private-key-file={directory / 'server.key'}",
        f"--cert-dir={directory}",
        f"--token-auth-file={directory / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={directory / 'accounts.key'}",
        f"--service-account-signing-key-file={directory / 'accounts.key'}",
        "--authorization-mode=RBAC",
        # Nobody makes the accounts that it asks for.
        "--disable-admission-plugins=ServiceAccount",
        f"--service-cluster-ip-range={ranges}",
        "--allow-privileged=true",
        "--endpoint-reconciler-type=none",
        "--profiling=false",
    ]
