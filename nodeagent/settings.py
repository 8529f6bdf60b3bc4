"""The agent's settings, all from its environment; names and defaults in ARCHITECTURE.md."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kube.access import HOST, Access
from mesh import log
from mesh.errors import OperatorError
from mesh.settings import Env


@dataclass(frozen=True, slots=True)
class Settings:
    node: str
    cluster: str
    run_dir: Path
    state_dir: Path
    pods_dir: Path
    zds_socket: Path
    tunnel_user: int
    """The uid that the tunnel runs as; -1: this process's."""
    canary: bool
    same_node_direct: bool
    """Pods that are captured by BPF may talk to each other without the tunnel between."""
    dns_capture: bool
    capture: str
    cgroup_root: Path | None
    bpf_root: Path
    api: Access | None
    """None: pods come from `pods_dir`."""
    taint_after_s: float
    cni_cache_dir: Path
    drain_s: float
    watch_s: float
    listeners_kept_s: float
    listener_group: str
    exempt_probes: bool
    """The kubelet's probes pass by the tunnel, whatever a policy says about plaintext."""
    kubelet_group: str
    """The kubelet's control group; "": to be found."""
    log_format: str
    log_level: str

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Self:
        """Raises OperatorError."""
        env = Env(variables)
        source = "kubernetes" if variables.get(HOST) else "files"
        return cls(
            node=env.text("NODE_NAME"),
            cluster=env.text("CLUSTER_ID", "Kubernetes"),
            run_dir=env.path("NODEMESH_RUN_DIR", "/run/nodemesh"),
            state_dir=env.path("NODEMESH_STATE_DIR", "/var/lib/nodemesh"),
            pods_dir=env.path("NODEMESH_PODS_DIR", "/etc/nodemesh/config"),
            zds_socket=env.path("ZDS_SOCKET", "/var/run/ztunnel/ztunnel.sock"),
            tunnel_user=_uid(env.text("NODEMESH_TUNNEL_USER", "")),
            canary=env.flag("NODEMESH_CANARY", True),
            same_node_direct=env.flag("NODEMESH_SAME_NODE_DIRECT", False),
            dns_capture=env.flag("AMBIENT_DNS_CAPTURE", True),
            capture=env.choice("NODEMESH_CAPTURE", "auto", ("auto", "bpf", "nft", "iptables")),
            cgroup_root=Path(root) if (root := env.text("NODEMESH_CGROUP_ROOT", "")) else None,
            bpf_root=env.path("NODEMESH_BPF_DIR", "/sys/fs/bpf/nodemesh"),
            api=Access.read(variables)
            if env.choice("NODEMESH_PODS_SOURCE", source, ("files", "kubernetes")) == "kubernetes"
            else None,
            taint_after_s=env.duration("NODEMESH_TAINT_AFTER", "1m"),
            cni_cache_dir=env.path("NODEMESH_CNI_CACHE_DIR", "/var/lib/cni"),
            drain_s=env.duration("NODEMESH_DRAIN", "30s"),
            watch_s=env.duration("NODEMESH_WATCH_INTERVAL", "1s"),
            listeners_kept_s=env.duration("NODEMESH_LISTENERS_KEPT", "30s"),
            listener_group=_group("NODEMESH_LISTENER_GROUP", env.text("NODEMESH_LISTENER_GROUP", "nodemesh-listeners")),
            exempt_probes=env.flag("NODEMESH_EXEMPT_PROBES", True),
            kubelet_group=_group("NODEMESH_KUBELET_GROUP", path)
            if (path := env.text("NODEMESH_KUBELET_GROUP", ""))
            else "",
            log_format=env.choice("LOG_FORMAT", "console", log.FORMATS),
            log_level=env.choice("LOG_LEVEL", "info", log.LEVELS),
        )

    @property
    def plugin_socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "nodeagent.sock"


def _uid(user: str) -> int:
    if user == "":
        return -1
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OperatorError(f"there is no user {user!r}", where="NODEMESH_TUNNEL_USER") from None


def _group(setting: str, name: str) -> str:
    """From the root of the unified hierarchy, and not that root, where everybody may be. Raises OperatorError."""
    parts = name.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OperatorError(f"{name!r} is no name of a control group", where=setting)
    return "/".join(parts)
