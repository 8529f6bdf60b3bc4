"""Unix sockets as this agent needs them: mode 0600 from the first moment, never taken from a living owner."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError

_UCRED: Final = struct.Struct("3i")


def listen_on(path: Path, kind: socket.SocketKind, owner: int = -1) -> socket.socket:
    """A non-blocking listening socket; a dead owner's file is replaced. `owner`: the uid that may connect besides root.
    Raises OperatorError."""
    listener = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        _make_way(path, kind)
        listener.bind(str(path))
        os.chown(path, owner, -1)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OperatorError(f"the socket cannot be made: {error.strerror or error}", where=str(path)) from None
    except OperatorError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _make_way(path: Path, kind: socket.SocketKind) -> None:
    os.umask(0o077)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.umask(0o177)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OperatorError("is there and is no socket", where=str(path))
    except FileNotFoundError:
        return
    if is_served(path, kind):
        raise OperatorError("another process is already listening there", where=str(path))
    path.unlink()


def is_served(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a living process listens there."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def peer_uid(peer: socket.socket) -> int:
    """SO_PEERCRED: the uid of the process that connected, at the time it did."""
    return _credentials(peer)[1]


def peer_pid(peer: socket.socket) -> int:
    """0: a process that this one cannot see."""
    return _credentials(peer)[0]


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def may_speak(peer: socket.socket, also: int = -1) -> bool:
    """Root, or whom the agent runs as, or that uid."""
    return peer_uid(peer) in (0, os.geteuid(), also)
