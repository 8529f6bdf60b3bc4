"""A child process that makes workloads' listening sockets, in a control group that outlives agents and tunnels.

A socket, and every connection that is accepted from it, belongs for ever to the control group of the process that
made it, and by the group the guard knows what may leave a pod. What is to outlive a tunnel must not be the tunnel's.
Owns what such a socket is like; the same as `ztunnel/crates/net/src/{netns,dns}.rs` make, when nobody hands them any.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from mesh import log
from nodeagent.redirect.netns import enter

_log: Final = log.get("opener")

EVERYWHERE: Final = (15001, 15006, 15008)
NAMES: Final = 15053
_BACKLOG: Final = 1024
_KEEPALIVE_S: Final = 180
_KEEPALIVE_PROBES: Final = 9
_IPV6_TRANSPARENT: Final = 75
_IP_TRANSPARENT: Final = 19
_IPV6_FREEBIND: Final = 78
_IP_FREEBIND: Final = 15
_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_WHY_BYTES: Final = 256
_ADDRESSES_BYTES: Final = 512
_EVERYWHERE: Final = "-"
"""What is asked for instead of addresses: a packet without bytes is the end."""
_MOST: Final = 16
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Opener:
    """The child as the agent sees it; started when it is first needed, and again when it died."""

    def __init__(self, group: Path | None) -> None:
        self._group = group
        self._turn = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def open(self, netns_fd: int, addresses: Sequence[str] = ()) -> list[int]:
        """Listening sockets in that namespace, on these addresses where it is shared, the caller's to close; none when
        they cannot be made there, as when a process of the pod holds a port. Blocks for milliseconds; from any
        thread."""
        with self._turn:
            try:
                return self._ask(netns_fd, addresses)
            except OSError as error:
                self._end()
                _log.warning("the child that makes listening sockets died", why=str(error))
                return []

    def prepare(self) -> None:
        """Else the first pod waits for the child to begin. Never fails: `open` tries again. From any thread."""
        with self._turn, suppress(OSError):
            self._child = self._child or _start(self._group)

    def close(self) -> None:
        with self._turn:
            self._end()

    def leave_no_group(self) -> None:
        """After `close`, on a node without workloads in the mesh: no socket is left that the group tells from a pod's.
        Nothing when somebody else is in it; who needs it later makes it again."""
        if self._group is not None:
            with suppress(OSError):
                self._group.rmdir()

    def _ask(self, netns_fd: int, addresses: Sequence[str]) -> list[int]:
        if self._child is None:
            self._child = _start(self._group)
        _, connection = self._child
        socket.send_fds(connection, [(" ".join(addresses) or _EVERYWHERE).encode()], [netns_fd])
        why, descriptors, _, _ = socket.recv_fds(connection, _WHY_BYTES, _MOST)
        if not why:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        if not descriptors:
            _log.info("listening sockets not made", why=why.decode(errors="replace"))
        return list(descriptors)

    def _end(self) -> None:
        if self._child is not None:
            process, connection = self._child
            self._child = None
            connection.close()
            process.wait()


def revive(descriptor: int, ports: Collection[int]) -> int:
    """Makes a bound TCP socket listen that no longer does, or whose port is one of these: what looks at sockets that
    begin to listen then sees it begin. Its copies are the same socket: who accepts from one of them goes on. Returns
    the port that it listens at; 0: it is none for that, or cannot."""
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        if sock.type != socket.SOCK_STREAM:
            return 0
        try:
            port: int = sock.getsockname()[1]
            if port in ports or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                _disconnect(sock)
                sock.listen(_BACKLOG)
        except OSError as error:
            _log.warning("a socket does not listen again", why=str(error))
            return 0
        return port


def _disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which also takes back the shutdown that a destroyed socket would pass on to those that
    are accepted from it. Its port stays taken. Raises OSError."""
    nowhere = bytes(16)
    if _libc.connect(sock.fileno(), nowhere, len(nowhere)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "connect")


def _start(group: Path | None) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Raises OSError. The group is made here too: an agent that ended late may have taken it away."""
    if group is not None:
        group.mkdir(parents=True, exist_ok=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "nodeagent.opener", str(theirs.fileno()), str(group or "")]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL), ours


# In the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Ends with its parent, whose end of the connection closes."""
    descriptor, group = sys.argv[1:]
    if group:
        (Path(group) / "cgroup.procs").write_text("0")
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with socket.socket(fileno=int(descriptor)) as connection:
        while True:
            asked, descriptors, _, _ = socket.recv_fds(connection, _ADDRESSES_BYTES, 1)
            if not descriptors:
                return
            addresses = [] if asked == _EVERYWHERE.encode() else asked.decode().split()
            _answer(connection, descriptors[0], home, addresses)
            os.close(descriptors[0])


def _answer(connection: socket.socket, namespace: int, home: int, addresses: Sequence[str]) -> None:
    try:
        with ExitStack() as made:
            enter(namespace)
            try:
                sockets = [made.enter_context(each) for each in sockets_here(addresses)]
            finally:
                enter(home)
            socket.send_fds(connection, [b"."], [each.fileno() for each in sockets])
    except OSError as error:  # those that were made are closed: whoever is told may bind the same ports at once
        connection.send(str(error).encode()[:_WHY_BYTES])


def sockets_here(addresses: Sequence[str] = ()) -> Iterator[socket.socket]:
    """In the calling thread's namespace, on `addresses` alone where there are any. Raises OSError."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        yield from (_listening(family, address, port) for port in EVERYWHERE)
        yield _for_names(family, socket.SOCK_STREAM, address)
        yield _for_names(family, socket.SOCK_DGRAM, address)
    if addresses:
        return
    for port in EVERYWHERE:
        yield _everywhere(port)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            yield _for_names(family, socket.SOCK_STREAM, address)
            yield _for_names(family, socket.SOCK_DGRAM, address)
        except OSError as error:
            if family == socket.AF_INET or error.errno not in _NO_FAMILY:
                raise


def _everywhere(port: int) -> socket.socket:
    """Both families on one socket, where there is IPv6."""
    try:
        return _listening(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno not in _NO_FAMILY:
            raise
        return _listening(socket.AF_INET, "0.0.0.0", port)


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with _closed_on_error(made):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with suppress(OSError):  # only a TPROXY redirection needs it
            made.setsockopt(*_transparent(family), 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
        made.bind((address, port))
        made.listen(_BACKLOG)
    return made


def _transparent(family: socket.AddressFamily) -> tuple[int, int]:
    if family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, _IPV6_TRANSPARENT
    return socket.IPPROTO_IP, _IP_TRANSPARENT


def _for_names(family: socket.AddressFamily, kind: socket.SocketKind, address: str) -> socket.socket:
    """Whether the interface is up already or not."""
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    with _closed_on_error(made):
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, NAMES))
        if kind == socket.SOCK_STREAM:
            made.listen(_BACKLOG)
    return made


@contextmanager
def _closed_on_error(made: socket.socket) -> Iterator[None]:
    try:
        yield
    except OSError:
        made.close()
        raise


if __name__ == "__main__":
    main()
