"""A lab whose nodes run Istio's own agent and CNI plugin, of which somebody has built the programs, with our tunnels.

DIRECTORY has `bin/install-cni` and `bin/istio-cni`. The agent sees a root directory as its container would: its own
service account, the node's CNI directories below /host, and processes of its own alone, the first of which is in the
node's network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lab import daemons
from lab.cluster import Say
from lab.kubernetes import PORT, KubernetesCluster
from lab.layout import Layout, underlay_address
from lab.processes import Process, start, wait_until
from lab.runtime import Runtime

WHERE: Final = "NODEMESH_REAL_ISTIO_CNI"
NAMESPACE: Final = "istio-system"
READY: Final = "127.0.0.1:8000/readyz"
READY_S: Final = 120.0
SHARED: Final = ("bin", "sbin", "lib", "lib64", "usr", "etc", "dev", "sys", "tmp")

# $1: the root to be, $2: the node's directory, $3: the programs, the rest: what to run there.
CONTAINER: Final = """
set -eu
root=$1 node=$2 programs=$3; shift 3
mount -t tmpfs root "$root"
bind() { mkdir -p "$root$2"; mount --rbind "$1" "$root$2"; }
for each in SHARED; do
	if [ -L "/$each" ]; then cp -a "/$each" "$root/"; elif [ -d "/$each" ]; then bind "/$each" "/$each"; fi
done
mkdir -p "$root/run" "$root/var" "$root/opt/cni/bin"
ln -s /run "$root/var/run"
cp "$programs/istio-cni" "$root/opt/cni/bin/"
bind /run/netns /host/run/netns
bind "$node" "$node"
bind "$node/account" /run/secrets/kubernetes.io/serviceaccount
bind "$node/cni" /host/etc/cni/net.d
bind "$node/plugins" /host/opt/cni/bin
for each in /proc /host/proc; do mkdir -p "$root$each"; mount -t proc proc "$root$each"; done
cp "$programs/install-cni" "$root/opt/"
exec chroot "$root" /opt/install-cni "$@"
""".replace("SHARED", " ".join(SHARED))


class IstioNodeCluster(KubernetesCluster):
    """A stand-in API, our control plane and tunnels; Istio's agent enrols pods and tells the tunnels of them."""

    def __init__(self, layout: Layout, say: Say = lambda _: None, capture: str = daemons.AUTO) -> None:
        super().__init__(layout, say, capture)
        self.istio: dict[str, Process] = {}
        """Node name -> its agent."""

    def _start_nodes(self) -> None:
        for number, node in enumerate(self.nodes, 1):
            self._run_pod(f"istio-cni-node-{node}", node, "nodemesh-node")
            self._run_pod(f"ztunnel-{node}", node, "ztunnel")
            self._mount(node, "nodemesh-node", self._node_settings(node), pod=f"istio-cni-node-{node}")
            Runtime(self.layout, node).install(number, None)
            self.start_istio_cni(node)
        self._start_tunnels()
        for node in self.nodes:
            self.wait_chained(node)

    def start_istio_cni(self, node: str) -> None:
        directory = self.layout.node_dir(node)
        for name in ("root", "plugins", "istio-cni"):
            (directory / name).mkdir(exist_ok=True)
        programs = Path(os.environ[WHERE]) / "bin"
        where = map(str, (directory / "root", directory, programs))
        argv = [
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            CONTAINER,
            "istio-cni",
            *where,
        ]
        space = self.layout.node_netns(node)
        self.istio[node] = start(
            self.layout, f"istio-cni-{node}", space, argv, self._istio_settings(node), group="nodeagent"
        )
        wait_until(f"{node}'s istio-cni is ready", lambda: self.http_status(space, READY) == 200, READY_S)

    def wait_chained(self, node: str) -> None:
        """Until its plugin stands in the node's list and is where the runtime finds it."""
        runtime = Runtime(self.layout, node)
        wait_until(f"{node}'s chain has istio-cni", lambda: runtime.types[-1] == "istio-cni", READY_S)

    def _istio_settings(self, node: str) -> Mapping[str, str]:
        return {
            "NODE_NAME": node,
            "KUBERNETES_NODE_NAME": node,
            "POD_NAME": f"istio-cni-node-{node}",
            "POD_NAMESPACE": NAMESPACE,
            "KUBERNETES_SERVICE_HOST": underlay_address(0),
            "KUBERNETES_SERVICE_PORT": str(PORT),
            "CNI_AGENT_RUN_DIR": str(self.layout.node_dir(node) / "istio-cni"),
            "ZTUNNEL_UDS_ADDRESS": str(daemons.zds_socket(self.layout, node)),
            "AMBIENT_ENABLED": "true",
            "AMBIENT_IPV6": "true",
            "AMBIENT_DNS_CAPTURE": "true",
            "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP": "true",
            "AMBIENT_ENABLEMENT_SELECTOR": "[{podSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}}, "
            "{podSelector: {matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]}, "
            "namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}}]",
            "REPAIR_ENABLED": "false",
        }
