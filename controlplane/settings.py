"""The control plane's environment, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.objects import Mesh
from mesh import log
from mesh.errors import OperatorError
from mesh.ids import SpiffeId
from mesh.settings import Env


@dataclass(frozen=True, slots=True)
class Settings:
    config_dir: Path
    state_dir: Path
    run_dir: Path
    address: tuple[str, int]
    sans: tuple[str, ...]
    mesh: Mesh
    log_format: str
    log_level: str


def load(variables: Mapping[str, str]) -> Settings:
    """Raises OperatorError that names the variable."""
    env = Env(variables)
    sans = env.text("CONTROLPLANE_SANS", " ").split(",")
    return Settings(
        config_dir=env.path("NODEMESH_CONFIG_DIR", "/etc/nodemesh/config"),
        state_dir=env.path("NODEMESH_STATE_DIR", "/var/lib/nodemesh"),
        run_dir=env.path("NODEMESH_RUN_DIR", "/run/nodemesh"),
        address=env.host_port("CONTROLPLANE_ADDR", "0.0.0.0:15012"),
        sans=tuple(name.strip() for name in sans if name.strip()),
        mesh=_mesh(env),
        log_format=env.choice("LOG_FORMAT", "console", log.FORMATS),
        log_level=env.choice("LOG_LEVEL", "info", log.LEVELS),
    )


def _mesh(env: Env) -> Mesh:
    mesh = Mesh(
        cluster_id=env.text("CLUSTER_ID", "Kubernetes"),
        trust_domain=env.text("TRUST_DOMAIN", "cluster.local"),
        root_namespace=env.text("ROOT_NAMESPACE", "istio-system"),
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
