"""One core with a certificate authority at its bell; its access log as a stream of lines."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.authorization_pb2 import Authorization
from mesh.gen.workload_pb2 import HBONE, Address, Workload
from tests.boundary.wire import Pod
from tests.ztunnel.authority import Authority

PATIENCE_S = 60
"""Only how long a broken core keeps a test waiting."""


def identity(pod: Pod) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{pod.name}"


def uid(pod: Pod) -> str:
    return f"Kubernetes//Pod/shop/{pod.name}"


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def record(pod: Pod, **fields: Any) -> tuple[str, bytes]:
    """The pod as the control plane tells about it."""
    workload = Workload(
        uid=uid(pod),
        name=pod.name,
        namespace="shop",
        service_account=pod.name,
        addresses=[packed(pod.ip), packed(pod.ip6)],
        tunnel_protocol=HBONE,
        workload_name=pod.name,
        canonical_name=pod.name,
        **fields,
    )
    return uid(pod), Address(workload=workload).SerializeToString()


LOG_ROOM = 1 << 20
"""Nobody reads the log while a test goes on: a full pipe would stop the core's log thread, and `close` waits for it."""


class Node:
    def __init__(self, access_log: Path, authority: Authority | None = None, **config: Any) -> None:
        core = pytest.importorskip("ztunnel._core", reason="the native core is not built")
        os.mkfifo(access_log)
        self._log = os.open(access_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._log, fcntl.F_SETPIPE_SZ, LOG_ROOM)
        self._text = b""
        given = {"workers": 2, "access_log": str(access_log), "log_level": "info", **config}
        self.core = core.Core(json.dumps(given).encode())
        self.authority = authority or Authority()
        self.answers = True
        """Whether the authority does."""
        self.events: queue.Queue[tuple[str, str, str]] = queue.Queue()
        self._stop_reading, self._stop = os.pipe()
        self._bell = threading.Thread(target=self._listen)
        self._bell.start()

    def deafen(self) -> None:
        """Nobody answers the bell any longer."""
        os.write(self._stop, b".")
        self._bell.join()

    def close(self) -> None:
        self.deafen()
        self.core.close()
        for fd in (self._log, self._stop, self._stop_reading):
            os.close(fd)

    def _listen(self) -> None:
        bell = self.core.fileno()
        while self._stop_reading not in select.select([bell, self._stop_reading], [], [])[0]:
            for event in self.core.take():
                kind, who, _ = event
                if kind == "need_certificate" and self.answers:
                    with contextlib.suppress(ValueError):  # the last pod with it has left since
                        self.core.install_chain(who, self.authority.chain(who, self.core.new_key(who).decode()))
                self.events.put(event)

    def event(self, kind: str) -> tuple[str, str, str]:
        """The next event of that kind."""
        while (event := self.events.get(timeout=PATIENCE_S))[0] != kind:
            pass
        return event

    def enrol(self, pod: Pod) -> None:
        fd = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.core.enrol(f"uid-{pod.name}", pod.name, "shop", pod.name, fd)
        finally:
            os.close(fd)

    def withdraw(self, pod: Pod) -> None:
        self.core.withdraw(f"uid-{pod.name}")

    def tell(self, *pods: Pod, **fields: Any) -> None:
        assert self.core.apply(ADDRESS_TYPE, [record(pod, **fields) for pod in pods], []) == []

    def put_policy(self, policy: Authorization) -> None:
        named = (f"{policy.namespace}/{policy.name}", policy.SerializeToString())
        assert self.core.apply(AUTHORIZATION_TYPE, [named], []) == []

    def line(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next access-log line that is wanted; those before it are gone."""
        while True:
            head, newline, rest = self._text.partition(b"\n")
            if newline:
                self._text = rest
                if wanted(line := json.loads(head)):
                    return line
            else:
                assert select.select([self._log], [], [], PATIENCE_S)[0], "no such line"
                self._text += os.read(self._log, 1 << 16)

    def connections(self, pod: Pod, direction: str) -> list[dict[str, Any]]:
        return json.loads(self.core.dump())["workloadState"][f"uid-{pod.name}"]["connections"][direction]

    def sample(self, metric: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        total = 0.0
        for text in self.core.metrics().decode().splitlines():
            name, _, value = text.rpartition(" ")
            if name.split("{")[0] == metric and all(f'{k}="{v}"' in name for k, v in labels.items()):
                total += float(value)
        return total
