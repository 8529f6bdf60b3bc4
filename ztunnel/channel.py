"""gRPC towards the control plane: TLS with our roots, bearer token. Shared by xDS and the CA; owns no retry."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from mesh.errors import OperatorError
from ztunnel.settings import Endpoint, Settings

_OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", 200 * 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # bounds one connection attempt
    # Otherwise a new channel inherits the old one's back-off, and ours would not count.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


def open_channel(endpoint: Endpoint, delivered: str = "") -> grpc.aio.Channel:
    """Reads the roots anew, so that a rotated root takes effect with the next connection. Raises OperatorError.

    `delivered`: roots of the mesh, PEM, which count beside the file's: the mesh's CA signs the control plane's
    certificate, and a rotation must not wait for every node's file.
    """
    options = list(_OPTIONS)
    if endpoint.alt_hostname:
        options.append(("grpc.ssl_target_name_override", endpoint.alt_hostname))
    roots = read_roots(endpoint)
    if roots is not None and delivered:
        roots += b"\n" + delivered.encode()
    credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    return grpc.aio.secure_channel(endpoint.target, credentials, options=options)


def read_roots(endpoint: Endpoint) -> bytes | None:
    """PEM; None stands for the system's own roots. Raises OperatorError: no such file, no certificate in it."""
    if endpoint.root == "SYSTEM":
        return None
    pem = endpoint.root if "-----BEGIN" in endpoint.root else _read(endpoint.root, endpoint.root_variable)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise OperatorError("holds no certificate in PEM", where=endpoint.root_variable) from None
    return pem.encode()


def read_token(token: str) -> str:
    """A literal, or a file's content: read for each call, since the kubelet renews it. Raises OperatorError."""
    if "/" in token or Path(token).is_file():  # neither a JWT nor a join token has a slash
        token = _read(token, "AUTH_TOKEN")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise OperatorError("is not a token: printable ASCII is expected", where="AUTH_TOKEN")
    return token


def call_metadata(endpoint: Endpoint, token: str, cluster_id: str) -> tuple[tuple[str, str], ...]:
    """Raises OperatorError when the token cannot be read."""
    return (("authorization", f"Bearer {read_token(token)}"), ("clusterid", cluster_id), *endpoint.headers)


def _read(path: str, variable: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise OperatorError(f"{path}: {why}", where=variable) from None


def check_files(settings: Settings) -> None:
    """Says at the start, not at the first connection, which file is missing or unusable. Raises OperatorError."""
    for endpoint in (settings.xds, settings.ca):
        read_roots(endpoint)
    read_token(settings.auth_token)
    if settings.access_log not in ("stderr", "off"):
        try:
            Path(settings.access_log).open("ab").close()
        except OSError as error:
            raise OperatorError(f"{settings.access_log}: {error.strerror}", where="NODEMESH_ACCESS_LOG") from None
