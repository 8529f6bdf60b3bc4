"""Applications of pods: an echo that remembers whom it saw."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading

from tests.boundary.wire import Pod


class Echo:
    """Answers every connection with what it sends, until that side has ended. `seen`: the clients' addresses."""

    def __init__(self, pod: Pod, port: int, address: str = "") -> None:
        self.seen: queue.Queue[str] = queue.Queue()
        self._listener = pod.listen(port, address)
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError as error:
                if error.errno == errno.EMFILE:
                    continue  # a test took the descriptors away from the whole process
                return
            self.seen.put(peer[0])
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side ends. Raises ConnectionResetError."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Sends, ends its side, and reads to the end. Raises ConnectionResetError, whichever step hears of it."""
    with connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:  # ENOTCONN of shutdown(2) after a reset, EPIPE of a second send(2)
            raise ConnectionResetError(error.errno, "reset before everything was sent") from error
        return read_all(connection)
