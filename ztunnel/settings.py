"""The tunnel's environment, read once. Istio's names, so that one manifest runs either tunnel. Opens no file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from mesh import log
from mesh.errors import OperatorError
from mesh.ids import SpiffeId
from mesh.settings import Env

_ROOT: Final = "./var/run/secrets/istio/root-cert.pem"
_TOKEN: Final = "./var/run/secrets/tokens/istio-token"
_CONTROL_PLANE: Final = "https://localhost:15012"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A gRPC server of the control plane. `variable` is the setting that a person has to correct."""

    variable: str
    target: str
    """HOST:PORT."""
    root_variable: str
    root: str
    """A path, PEM itself, or `SYSTEM`."""
    alt_hostname: str
    """The name that the server's certificate has instead of the host; "" for none."""
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Collector:
    """An OpenTelemetry collector. `url`: where traces are posted to. `ratio`: share of the connections with which a
    trace begins that are sampled."""

    url: str
    headers: tuple[tuple[str, str], ...]
    ratio: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Units: `_s` seconds. Addresses to listen on are (IP, port)."""

    node_name: str
    cluster_id: str
    network: str
    trust_domain: str
    cluster_domain: str
    pod_name: str
    pod_namespace: str
    instance_ip: str
    metadata: Mapping[str, Any]
    """From `ISTIO_META_*` and `ISTIO_METAJSON_*`: what the control plane is told about this node."""
    xds: Endpoint
    ca: Endpoint
    auth_token: str
    """A path or the token itself."""
    zds_socket: Path
    run_dir: Path
    state_dir: Path | None
    """Where the last good configuration is kept; None: nowhere."""
    secret_ttl_s: float
    drain_deadline_s: float
    workers: int
    packet_mark: int
    ipv6: bool
    same_node_tls: bool
    outbound_policy: str
    key_dir: str
    """Where keys outlive a restart, on tmpfs; "": nowhere."""
    trust_domain_aliases: tuple[str, ...]
    trust_bundles: Path | None
    """A directory of TRUST-DOMAIN.json or .pem."""
    crl_path: Path | None
    svid_max_lifetime_s: float
    spiffe_socket: str
    """gRPC target of a SPIFFE Workload API, which then gives the certificates instead of the CA; "" for none."""
    admin: tuple[str, int]
    stats: tuple[str, int]
    readiness: tuple[str, int]
    access_log: str
    log_format: str
    log_level: str
    collector: Collector | None
    """Where spans go; None: tracing is off."""

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Settings:
        """Raises OperatorError that names the variable."""
        env = Env(variables)
        state_dir = env.text("NODEMESH_STATE_DIR", "")
        return cls(
            node_name=env.text("NODE_NAME", ""),
            cluster_id=env.text("CLUSTER_ID", env.text("ISTIO_META_CLUSTER_ID", "Kubernetes")),
            network=env.text("NETWORK", ""),
            trust_domain=env.text("TRUST_DOMAIN", "cluster.local"),
            cluster_domain=env.text("CLUSTER_DOMAIN", "cluster.local"),
            pod_name=env.text("POD_NAME", ""),
            pod_namespace=env.text("POD_NAMESPACE", ""),
            instance_ip=env.text("INSTANCE_IP", ""),
            metadata=_metadata(variables),
            xds=_endpoint(env, "XDS"),
            ca=_endpoint(env, "CA"),
            auth_token=env.text("AUTH_TOKEN", _TOKEN),
            zds_socket=env.path("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock"),
            run_dir=env.path("NODEMESH_RUN_DIR", "/run/nodemesh"),
            state_dir=Path(state_dir) if state_dir else None,
            secret_ttl_s=env.duration("SECRET_TTL", "24h"),
            drain_deadline_s=env.duration("CONNECTION_TERMINATION_DEADLINE", "5s"),
            workers=env.number("ZTUNNEL_WORKER_THREADS", 0, high=1024),
            packet_mark=env.number("PACKET_MARK", 1337),
            ipv6=env.flag("IPV6_ENABLED", True),
            same_node_tls=env.flag("NODEMESH_SAME_NODE_TLS", False),
            outbound_policy=env.choice("NODEMESH_OUTBOUND_POLICY", "ALLOW_ANY", ("ALLOW_ANY", "REGISTRY_ONLY")),
            key_dir=env.text("NODEMESH_KEY_DIR", ""),
            trust_domain_aliases=_trust_domains(env, "TRUST_DOMAIN_ALIASES"),
            trust_bundles=_optional_path(env, "NODEMESH_TRUST_BUNDLES"),
            crl_path=_optional_path(env, "CRL_PATH"),
            svid_max_lifetime_s=env.duration("NODEMESH_SVID_MAX_LIFETIME", "72h"),
            spiffe_socket=_spiffe_socket(env),
            admin=env.host_port("ADMIN_ADDR", "127.0.0.1:15000"),
            stats=env.host_port("STATS_ADDR", "0.0.0.0:15020"),
            readiness=env.host_port("READINESS_ADDR", "0.0.0.0:15021"),
            access_log=env.text("NODEMESH_ACCESS_LOG", "stderr"),
            log_format=env.choice("LOG_FORMAT", "console", log.FORMATS),
            log_level=env.choice("LOG_LEVEL", "info", log.LEVELS),
            collector=_collector(env),
        )

    def core_config(self) -> bytes:
        """The core's JSON, door 4."""
        keys = (
            "network",
            "cluster_id",
            "trust_domain",
            "cluster_domain",
            "node_name",
            "workers",
            "packet_mark",
            "ipv6",
        )
        logs = ("access_log", "log_level", "log_format")
        tls = ("same_node_tls", "key_dir")
        picked = {key: getattr(self, key) for key in (*keys, *tls, "outbound_policy", *logs)}
        picked["trace_ratio"] = self.collector.ratio if self.collector else None
        return json.dumps(picked).encode()

    def public(self) -> dict[str, Any]:
        """For people and tools to see: without the token and without headers, which may be secrets."""
        shown = {name: value for name, value in asdict(self).items() if name != "auth_token"}
        shown["collector"] = shown["collector"] and {key: shown["collector"][key] for key in ("url", "ratio")}
        for endpoint in ("xds", "ca"):
            shown[endpoint] = {"target": shown[endpoint]["target"], "alt_hostname": shown[endpoint]["alt_hostname"]}
        return shown


def _optional_path(env: Env, variable: str) -> Path | None:
    text = env.text(variable, "")
    return Path(text) if text else None


def _trust_domains(env: Env, variable: str) -> tuple[str, ...]:
    """Separated by commas."""
    names = tuple(name for name in (part.strip() for part in env.text(variable, "").split(",")) if name)
    for name in names:
        try:
            SpiffeId(name, "any", "any")
        except ValueError as error:
            raise OperatorError(f"{name!r}: {error}", where=variable) from None
    return names


def _spiffe_socket(env: Env) -> str:
    """SPIFFE Workload Endpoint §4. NODEMESH_IDENTITY_SOURCE chooses: the variable may be set for others' sake."""
    if env.choice("NODEMESH_IDENTITY_SOURCE", "ca", ("ca", "spiffe")) == "ca":
        return ""
    variable = "SPIFFE_ENDPOINT_SOCKET"
    url = urlsplit(env.text(variable, None))
    if url.scheme == "unix" and not url.netloc and url.path.startswith("/") and not url.query:
        return f"unix://{url.path}"
    if url.scheme == "tcp" and url.hostname and not url.path:
        return url.netloc
    raise OperatorError(f"{url.geturl()!r} is neither unix:///PATH nor tcp://IP:PORT", where=variable)


def _endpoint(env: Env, prefix: str) -> Endpoint:
    variable = f"{prefix}_ADDRESS"
    url = urlsplit(env.text(variable, _CONTROL_PLANE))
    try:
        host, port = url.hostname, url.port
    except ValueError as error:
        raise OperatorError(str(error), where=variable) from None
    if url.scheme != "https" or not host or url.path.strip("/"):
        raise OperatorError(f"{url.geturl()!r} is not https://HOST:PORT", where=variable)
    return Endpoint(
        variable=variable,
        target=f"[{host}]:{port or 443}" if ":" in host else f"{host}:{port or 443}",
        root_variable=f"{prefix}_ROOT_CA",
        root=env.text(f"{prefix}_ROOT_CA", _ROOT),
        alt_hostname=env.text(f"ALT_{prefix}_HOSTNAME", ""),
        headers=_prefixed(env.variables, f"{prefix}_HEADER_"),
    )


def _collector(env: Env) -> Collector | None:
    """OpenTelemetry's own variables."""
    variable = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    url = env.text(variable, "")
    if not url:
        variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
        url = env.text(variable, "")
        url = url and url.rstrip("/") + "/v1/traces"
    if not url:
        return None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise OperatorError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT", where=variable)
    headers = _pairs(env.text("OTEL_EXPORTER_OTLP_HEADERS", ""), "OTEL_EXPORTER_OTLP_HEADERS")
    return Collector(url, headers, _ratio(env.text("OTEL_TRACES_SAMPLER_ARG", "0.01"), "OTEL_TRACES_SAMPLER_ARG"))


def _pairs(text: str, variable: str) -> tuple[tuple[str, str], ...]:
    """`name=value,…`, values percent-encoded."""
    found = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not (name.strip() and equals) for name, equals, _ in found):
        raise OperatorError("is not name=value,name=value", where=variable)
    return tuple((name.strip(), unquote(value.strip())) for name, _, value in found)


def _ratio(text: str, variable: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise OperatorError(f"{text!r} is not a number between 0 and 1", where=variable)
    return ratio


def _prefixed(variables: Mapping[str, str], prefix: str) -> tuple[tuple[str, str], ...]:
    """gRPC wants header names in lower case."""
    found = [(name.removeprefix(prefix), value) for name, value in variables.items() if name.startswith(prefix)]
    return tuple(sorted((name.lower(), value) for name, value in found))


def _metadata(variables: Mapping[str, str]) -> dict[str, Any]:
    plain = {n.removeprefix("ISTIO_META_"): v for n, v in variables.items() if n.startswith("ISTIO_META_")}
    parsed: dict[str, Any] = {}
    for name, value in variables.items():
        if name.startswith("ISTIO_METAJSON_"):
            try:
                parsed[name.removeprefix("ISTIO_METAJSON_")] = json.loads(value)
            except ValueError as error:
                raise OperatorError(f"is not JSON: {error}", where=name) from None
    return plain | parsed
