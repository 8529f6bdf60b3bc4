"""The shell's own listening sockets, taken before anything else starts: an occupied port ends the start, no more."""

from __future__ import annotations

import errno
import os
import socket
import stat
from ipaddress import ip_address
from pathlib import Path

from mesh.errors import OperatorError


def bind_tcp(address: tuple[str, int], variable: str) -> socket.socket:
    """Raises OperatorError that names the setting."""
    host, port = address
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # bound alone, another process may still take it
    except OSError as error:
        listener.close()
        why = "is in use by another process" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise OperatorError(f"{host}:{port} {why}", where=variable) from None
    return listener


def bind_unix(path: Path) -> socket.socket:
    """Mode 0600 before the first connection. A dead predecessor's socket is replaced; a living one's is not.

    Raises OperatorError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_dead(path)
        if path.exists():
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        bound = path.with_name(f".{path.name}.{os.getpid()}")
        bound.unlink(missing_ok=True)
        listener.bind(str(bound))
        bound.chmod(0o600)
        listener.listen()
        bound.rename(path)  # whoever sees it can connect
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise OperatorError(f"{path}: {error.strerror or error}", where="NODEMESH_RUN_DIR") from None
        raise
    return listener


def _remove_dead(path: Path) -> None:
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OperatorError(f"{path}: another ztunnel is running", where="NODEMESH_RUN_DIR")
