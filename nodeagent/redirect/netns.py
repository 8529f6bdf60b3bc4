"""A pod's network namespace: held open, told apart from every other, entered on a thread that dies with the job.

A thread that has changed its namespace must never be used again: pyroute2 and sockets made there would silently act
on the wrong pod. So every job gets a thread of its own. Nothing here forks.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from typing import Final, Self, TypeVar

from mesh.errors import MeshError

CLONE_NEWNET: Final = 0x40000000
NS_GET_NSTYPE: Final = 0xB703
"""ioctl of include/uapi/linux/nsfs.h: which kind of namespace a descriptor is."""
SO_NETNS_COOKIE: Final = 71
"""Linux 5.14: a number never used twice since boot; inodes of namespaces are reused within seconds."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class NamespaceError(MeshError):
    """A path is no network namespace that a pod could have."""


def enter(fd: int) -> None:
    """The calling thread, for good: see above. Raises OSError."""
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


class Namespace:
    """An open descriptor and an `identity` that tells whether a path still means the same namespace."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over. Raises NamespaceError: not a network namespace, or the agent's own."""
        self._fd = fd
        try:
            _require_foreign_netns(fd)
            self.identity = run_on_thread(fd, lambda: _identify(fd))
        except (NamespaceError, OSError):
            self.close()
            raise

    @classmethod
    def open(cls, path: str) -> Self:
        """Raises NamespaceError."""
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise NamespaceError(f"{path} cannot be opened as a network namespace: {error.strerror}") from None
        except NamespaceError as error:
            raise NamespaceError(f"{path} {error}") from None

    def fileno(self) -> int:
        """Raises ValueError once closed, like a socket's user expects."""
        if self._fd < 0:
            raise ValueError("the namespace is closed")
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    async def run(self, job: Callable[[], T]) -> T:
        """`job()` on a thread inside the namespace. Its exception is raised here. Cancelling abandons the thread.

        Cost: about 0.2 ms beside the job.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def report(settle: Callable[[], None]) -> None:
            try:
                loop.call_soon_threadsafe(lambda: None if done.done() else settle())
            except RuntimeError:
                return  # the loop closed while the job ran: nobody waits any more

        _start_thread(
            os.dup(self.fileno()),
            job,
            lambda value: report(lambda: done.set_result(value)),
            lambda error: report(lambda: done.set_exception(error)),
        )
        return await done


def in_scratch(job: Callable[[], T]) -> T:
    """`job()` in a namespace that nobody else sees and that ends with it. Blocks. Raises OSError: not permitted."""

    def body() -> T:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "unshare")
        return job()

    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return run_on_thread(here, body)
    finally:
        os.close(here)


def _start_thread(
    fd: int, job: Callable[[], T], succeed: Callable[[T], None], fail: Callable[[BaseException], None]
) -> threading.Thread:
    """Owns `fd` from here on."""

    def body() -> None:
        try:
            enter(fd)
            value = job()
        except BaseException as error:  # carried to the caller, whatever it is
            fail(error)
        else:
            succeed(value)
        finally:
            os.close(fd)

    thread = threading.Thread(target=body, name="in-netns", daemon=True)
    thread.start()
    return thread


def run_on_thread(fd: int, job: Callable[[], T]) -> T:
    """The blocking form, for jobs of microseconds."""
    values: list[T] = []
    errors: list[BaseException] = []
    _start_thread(os.dup(fd), job, values.append, errors.append).join()
    if errors:
        raise errors[0]
    return values[0]


def _require_foreign_netns(fd: int) -> None:
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        raise NamespaceError("is not a network namespace")
    mine, other = os.stat("/proc/self/ns/net"), os.fstat(fd)
    if (mine.st_dev, mine.st_ino) == (other.st_dev, other.st_ino):
        raise NamespaceError("is the node's own network namespace")


def _identify(fd: int) -> str:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            cookie = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        except OSError:
            stat = os.fstat(fd)
            return f"inode:{stat.st_dev}:{stat.st_ino}"
    return f"cookie:{cookie}"
