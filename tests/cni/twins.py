"""Runs either twin of the plugin as a runtime does, beside an agent that answers what it is told to."""

import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

CNI = Path(__file__).parents[2] / "cni"
SANITIZED = ["-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1"
ENVIRONMENT = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": ARGS,
    "CNI_PATH": "/opt/cni/bin",
}


@dataclass
class Said:
    """What a plugin left: exit status, stdout, stderr."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def error(self):
        assert self.status == 1, self
        assert self.stderr == "", "an error is said once, on stdout"
        said = json.loads(self.stdout)
        assert said["msg"], "an error is a sentence"
        return said

    @property
    def code(self):
        return self.error["code"]


def build(directory):
    """The C twin with address and undefined-behaviour sanitizers."""
    binary = directory / "nodemesh-cni"
    subprocess.run(["gcc", *SANITIZED, *WARNINGS, "-o", str(binary), str(CNI / "plugin.c")], check=True)
    return [str(binary)]


def readable():
    return [sys.executable, "-I", "-S", str(CNI / "plugin.py")]


def call(plugin, command, stdin, **environment):
    """`environment` overrides; None takes a variable away."""
    variables = ENVIRONMENT | {"CNI_COMMAND": command} | environment
    given = {key: value for key, value in variables.items() if value is not None}
    done = subprocess.run(plugin, input=stdin, env=given, capture_output=True, timeout=120)
    return Said(done.returncode, done.stdout, done.stderr.decode())


@dataclass
class Agent:
    """Answers every request with `answer`, raw; keeps what it was asked as (request line, JSON)."""

    path: Path
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    asked: list = field(default_factory=list)

    def refuse(self, status, body):
        self.answer = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

    def serve(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                head, _, body = self._read(client).partition(b"\r\n\r\n")
                self.asked.append((head.split(b"\r\n")[0].decode(), json.loads(body) if body else None))
                if self.answer is None:
                    client.recv(1)
                    continue
                with suppress(BrokenPipeError, ConnectionResetError):  # the plugin hangs up on what is too long for it
                    client.sendall(self.answer)

    def _read(self, client):
        """Up to Content-Length."""
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body


@contextmanager
def agent_at(path):
    agent = Agent(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=agent.serve, args=(listener,))
        thread.start()
        try:
            yield agent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
