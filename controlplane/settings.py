"""The control plane's environment, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.objects import Mesh
from kube.access import HOST, Access
from mesh import log
from mesh.errors import OperatorError
from mesh.ids import SpiffeId
from mesh.settings import Env


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """How the cluster is followed. `tunnel_accounts`: `namespace/account` of those that speak for a node. `namespace`:
    our own. `secrets`: follow Secrets, too, for gateways. `statuses`: write conditions on objects."""

    access: Access
    audience: str
    tunnel_accounts: tuple[str, ...]
    namespace: str
    secrets: bool
    statuses: bool


@dataclass(frozen=True, slots=True)
class Settings:
    config_dir: Path
    state_dir: Path
    run_dir: Path
    address: tuple[str, int]
    sans: tuple[str, ...]
    mesh: Mesh
    kubernetes: Kubernetes | None
    """None: the configuration comes from `config_dir`."""
    log_format: str
    log_level: str


def load(variables: Mapping[str, str]) -> Settings:
    """Raises OperatorError that names the variable."""
    env = Env(variables)
    sans = env.text("CONTROLPLANE_SANS", " ").split(",")
    kubernetes = _kubernetes(env)
    return Settings(
        config_dir=env.path("NODEMESH_CONFIG_DIR", "/etc/nodemesh/config"),
        state_dir=env.path("NODEMESH_STATE_DIR", "/var/lib/nodemesh"),
        run_dir=env.path("NODEMESH_RUN_DIR", "/run/nodemesh"),
        address=env.host_port("CONTROLPLANE_ADDR", "0.0.0.0:15012"),
        sans=tuple(name.strip() for name in sans if name.strip()),
        mesh=_mesh(env, kubernetes is not None),
        kubernetes=kubernetes,
        log_format=env.choice("LOG_FORMAT", "console", log.FORMATS),
        log_level=env.choice("LOG_LEVEL", "info", log.LEVELS),
    )


def _kubernetes(env: Env) -> Kubernetes | None:
    source = "kubernetes" if env.variables.get(HOST) else "files"
    if env.choice("NODEMESH_CONFIG_SOURCE", source, ("files", "kubernetes")) == "files":
        return None
    accounts = tuple(each.strip() for each in env.text("NODEMESH_TUNNEL_ACCOUNTS", "istio-system/ztunnel").split(","))
    for each in accounts:
        if each.count("/") != 1:
            raise OperatorError(f"{each!r} is not NAMESPACE/SERVICE-ACCOUNT", where="NODEMESH_TUNNEL_ACCOUNTS")
    return Kubernetes(
        access=Access.read(env.variables),
        audience=env.text("NODEMESH_TOKEN_AUDIENCE", "istio-ca"),
        tunnel_accounts=accounts,
        namespace=env.text("POD_NAMESPACE", "nodemesh-system"),
        secrets=env.flag("NODEMESH_READ_SECRETS", False),
        statuses=env.flag("NODEMESH_WRITE_STATUS", True),
    )


def _mesh(env: Env, kubernetes: bool) -> Mesh:
    mesh = Mesh(
        cluster_id=env.text("CLUSTER_ID", "Kubernetes"),
        trust_domain=env.text("TRUST_DOMAIN", "cluster.local"),
        root_namespace=env.text("ROOT_NAMESPACE", "istio-system"),
        marked=kubernetes,
        shared=kubernetes,
    )
    for name, parts in (
        ("TRUST_DOMAIN", (mesh.trust_domain, "ns", "sa")),
        ("ROOT_NAMESPACE", ("td", mesh.root_namespace, "sa")),
    ):
        try:
            SpiffeId(*parts)
        except ValueError as error:
            raise OperatorError(str(error), where=name) from None
    if "/" in mesh.cluster_id:
        raise OperatorError(f"{mesh.cluster_id!r} contains '/', which separates the parts of a uid", where="CLUSTER_ID")
    return mesh
