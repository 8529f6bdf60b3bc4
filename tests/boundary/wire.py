"""Three pods on one wire: network namespaces joined by a bridge, with the node agent's own rules where asked."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from nodeagent.redirect import kernel
from nodeagent.redirect.plan import Options, make_plan

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)


@dataclass(frozen=True)
class Pod:
    name: str
    netns: str
    ip: str
    ip6: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.netns}"

    def inside(self, job: Callable[[], T]) -> T:
        """Runs the job in the pod's namespace, on a thread that ends with it."""
        done: Future[T] = Future()

        def enter_and_run() -> None:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                if _libc.setns(fd, 0x40000000) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                os.close(fd)
                done.set_result(job())
            except BaseException as error:
                done.set_exception(error)

        thread = threading.Thread(target=enter_and_run)
        thread.start()
        thread.join()
        return done.result()

    def listen(self, port: int, address: str = "") -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.inside(lambda: socket.create_server((address, port), family=family))

    def connect(self, address: str, port: int, timeout: float = 10) -> socket.socket:
        return self.inside(lambda: socket.create_connection((address, port), timeout))


class Wire:
    """Its names carry the process id, so that two test runs do not meet."""

    def __init__(self, *names: str) -> None:
        self.names = [f"nmw{os.getpid()}", *(f"nm{os.getpid()}-{name}" for name in names)]
        self.pods = [Pod(n, self.names[i], f"10.77.0.{i}", f"fd77::{i}") for i, n in enumerate(names, start=1)]

    def __enter__(self) -> Wire:
        try:
            for netns in self.names:
                run("ip", "netns", "add", netns)
            run("ip", "-n", self.names[0], "-batch", "-", stdin="link add br0 type bridge\nlink set br0 up\n")
            for pod in self.pods:
                self._plug_in(pod)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for netns in self.names:
            subprocess.run(["ip", "netns", "del", netns], capture_output=True)

    def _plug_in(self, pod: Pod) -> None:
        wire = self.names[0]
        port = f"to-{pod.name}"
        run("ip", "-n", wire, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pod.netns)
        run("ip", "-n", wire, "-batch", "-", stdin=f"link set {port} master br0\nlink set {port} up\n")
        lines = [
            "link set lo up",
            "link set eth0 up",
            f"addr add {pod.ip}/24 dev eth0",
            f"addr add {pod.ip6}/64 dev eth0 nodad",
            "route add default dev eth0",
            "route add ::/0 dev eth0",
        ]
        run("ip", "-n", pod.netns, "-batch", "-", stdin="\n".join(lines) + "\n")

    def capture(self, pod: Pod) -> None:
        """What the node agent does to a pod's namespace."""
        pod.inside(lambda: kernel.put(kernel.find_nft(), make_plan(Options())))
