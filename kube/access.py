"""Where the API server is and how we prove who we are: what the kubelet puts into every pod.

Reads token and certificate anew whenever they are used, because the kubelet renews both.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError
from mesh.settings import Env

SERVICE_ACCOUNT_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
HOST: Final = "KUBERNETES_SERVICE_HOST"


@dataclass(slots=True)
class Access:
    """`directory` holds `token` and `ca.crt`."""

    server: str
    directory: Path
    _context: tuple[int, ssl.SSLContext] | None = field(default=None)

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Access:
        """From the environment of a container. Raises OperatorError."""
        env = Env(variables)
        host = env.text(HOST)
        shown = f"[{host}]" if ":" in host else host
        port = env.number("KUBERNETES_SERVICE_PORT", 443, low=1, high=65535)
        directory = env.path("NODEMESH_SERVICE_ACCOUNT_DIR", SERVICE_ACCOUNT_DIR)
        return cls(f"https://{shown}:{port}", directory)

    def check(self) -> None:
        """Raises OperatorError: a file is missing or unusable."""
        self.token()
        self.context()

    def token(self) -> str:
        """Raises OperatorError."""
        path = self.directory / "token"
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise OperatorError(f"cannot be read: {_why(error)}", where=str(path)) from None
        if not token or not token.isprintable():
            raise OperatorError("is not a token", where=str(path))
        return token

    def context(self) -> ssl.SSLContext:
        """That trusts only the cluster's authority; the same one until its file changes. Raises OperatorError."""
        path = self.directory / "ca.crt"
        try:
            stamp = path.stat().st_mtime_ns
            if self._context is None or self._context[0] != stamp:
                self._context = stamp, ssl.create_default_context(cadata=path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise OperatorError(f"cannot be read: {_why(error)}", where=str(path)) from None
        return self._context[1]


def _why(error: Exception) -> str:
    """ssl.SSLError is an OSError, too, whose strerror says little."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    return "it is not what belongs there"
