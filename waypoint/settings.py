"""A waypoint's or gateway's environment, parsed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mesh import log
from mesh.errors import OperatorError
from mesh.ids import SpiffeId
from mesh.settings import Env
from waypoint.sinks import VARIABLE, Sink, parse


@dataclass(frozen=True, slots=True)
class Settings:
    """`proxy`: `namespace/name` of the Gateway. `server`: the control plane's. `token`: a path or a literal.

    `max_heap_mib` 0: by what the process may have (`memory.py`)."""

    proxy: str
    identity: SpiffeId
    server: tuple[str, int]
    roots: Path
    token: str
    trust_bundles: Path | None
    run_dir: Path
    envoy: str
    concurrency: int
    max_connections: int
    max_heap_mib: int
    drain_s: float
    stats: tuple[str, int]
    readiness: tuple[str, int]
    sinks: tuple[Sink, ...]
    flush_s: float
    cluster_id: str
    place: Mapping[str, str]
    envoy_log_level: str
    log_format: str
    log_level: str

    @property
    def said(self) -> dict[str, str]:
        """What Envoy's environment says in metrics and baggage (`controlplane/translate/envoy/telemetry.py`)."""
        return {"CLUSTER_ID": self.cluster_id, "NODEMESH_PRINCIPAL": str(self.identity)}

    @property
    def server_name(self) -> str:
        host, port = self.server
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def load(variables: Mapping[str, str]) -> Settings:
    """Raises OperatorError that names the variable."""
    env = Env(variables)
    proxy = env.text("WAYPOINT_NAME")
    namespace, slash, name = proxy.partition("/")
    account = env.text("SERVICE_ACCOUNT", name or " ")
    try:
        identity = SpiffeId(env.text("TRUST_DOMAIN", "cluster.local"), namespace, account)
    except ValueError as error:
        raise OperatorError(str(error), where="WAYPOINT_NAME") from None
    if not slash:
        raise OperatorError(f"{proxy!r} is not NAMESPACE/NAME of a Gateway", where="WAYPOINT_NAME")
    return Settings(
        proxy=proxy,
        identity=identity,
        server=_server(env.text("XDS_ADDRESS", "https://localhost:15012")),
        roots=env.path("XDS_ROOT_CA", "./var/run/secrets/istio/root-cert.pem"),
        token=env.text("AUTH_TOKEN", "./var/run/secrets/tokens/istio-token"),
        trust_bundles=_optional(env.text("NODEMESH_TRUST_BUNDLES", "")),
        run_dir=env.path("NODEMESH_RUN_DIR", "/run/nodemesh"),
        envoy=env.text("ENVOY", " ").strip(),
        concurrency=env.number("CONCURRENCY", 2, low=1, high=256),
        max_connections=env.number("MAX_CONNECTIONS", 50_000, low=1, high=10_000_000),
        max_heap_mib=env.number("MAX_HEAP_MIB", 0, low=0, high=1 << 20),
        drain_s=env.duration("DRAIN_TIME", "5s"),
        stats=env.host_port("STATS_ADDR", "0.0.0.0:15020"),
        readiness=env.host_port("READINESS_ADDR", "0.0.0.0:15021"),
        sinks=parse(env.text(VARIABLE, " ")),
        flush_s=_flush(env),
        cluster_id=env.text("CLUSTER_ID", "Kubernetes"),
        place={name: env.text(name, " ").strip() for name in ("REGION", "ZONE", "SUBZONE")},
        envoy_log_level=env.choice("ENVOY_LOG_LEVEL", "warning", ("trace", "debug", "info", "warning", "error")),
        log_format=env.choice("LOG_FORMAT", "console", log.FORMATS),
        log_level=env.choice("LOG_LEVEL", "info", log.LEVELS),
    )


def _optional(text: str) -> Path | None:
    return Path(text) if text else None


def _flush(env: Env) -> float:
    """Envoy takes no longer one."""
    seconds = env.duration("STATS_FLUSH_INTERVAL", "5s")
    if not 0.1 <= seconds < 300:
        raise OperatorError(f"{seconds:g}s is not between 100ms and 5m", where="STATS_FLUSH_INTERVAL")
    return seconds


def _server(text: str) -> tuple[str, int]:
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "https" or not parts.hostname or not port:
        raise OperatorError(f"{text!r} is not https://HOST:PORT", where="XDS_ADDRESS")
    return parts.hostname, port


def read_token(token: str) -> str:
    """A literal, or a file's content. Raises OperatorError."""
    if "/" in token or Path(token).is_file():
        try:
            token = Path(token).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"{token}: {error}", where="AUTH_TOKEN") from None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise OperatorError("is not a token: printable ASCII is expected", where="AUTH_TOKEN")
    return token
