"""Asking a daemon: JSON over HTTP over its admin socket, or from a file saved earlier."""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import OperatorError

DEFAULT_RUN_DIR: Final = "/run/nodemesh"
LABS: Final = Path("/run/nodemesh-lab")
_TIMEOUT_S: Final = 30.0
"""An agent looks at every pod of its node for `/verify`, one after the other; whoever has ended is known at once."""


class Unreachable(OperatorError):
    """Nobody answers."""

    exit_code = 3


class NotPermitted(OperatorError):
    """The answer is there, but not for this user."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask. `lab` and `node` choose among the run directories of a lab; else `run_dir` it is."""

    run_dir: Path | None = None
    lab: str = ""
    node: str = ""
    file: Path | None = None

    def run_dirs(self) -> dict[str, Path]:
        """Owner -> run directory, of one machine or of a whole lab. Raises OperatorError."""
        if not self.lab:
            if self.node:
                raise OperatorError("--node chooses a node of a lab: give --lab, or --run-dir of the node's daemons")
            return {"local": self.run_dir or Path(os.environ.get("NODEMESH_RUN_DIR") or DEFAULT_RUN_DIR)}
        directories = _lab_directories(self.lab)
        if not self.node:
            return directories
        if self.node not in directories:
            raise OperatorError(f"lab {self.lab} has no node {self.node}; there are: {', '.join(directories)}")
        return {self.node: directories[self.node]}

    def proxies(self) -> dict[str, Path]:
        """Run directories of a lab's waypoints and gateways, which are pods. Raises OperatorError."""
        return _lab_directories(self.lab, "proxies") if self.lab else {}

    def config_dump(self) -> dict[str, Any]:
        """A tunnel's whole state. Raises OperatorError."""
        found = _from_file(self.file) if self.file else get(next(iter(self.run_dirs().values())) / "ztunnel.sock")
        if not isinstance(found, dict):
            raise OperatorError(
                "this is not a config dump: a JSON object is expected", where=str(self.file or "ztunnel")
            )
        return found


def get(path: Path, target: str = "/config_dump") -> Any:
    """The JSON that `target` answers with. Raises Unreachable, NotPermitted, OperatorError."""
    return _parse(ask(path, target), str(path))


def ask(path: Path, target: str, method: str = "GET", timeout_s: float = _TIMEOUT_S) -> bytes:
    """Raises Unreachable, NotPermitted; OperatorError: the daemon says that the question is wrong."""
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(timeout_s)
        connection.sock.connect(str(path))
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    except PermissionError:
        raise NotPermitted("only root may ask this daemon: run with sudo", where=str(path)) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"nobody answers ({reason})", where=str(path)) from None
    finally:
        connection.close()
    if response.status == 400:
        raise OperatorError(body.decode(errors="replace").strip())
    if response.status != 200:
        raise Unreachable(f"answers {target} with status {response.status}", where=str(path))
    return body


def _from_file(path: Path) -> Any:
    try:
        return _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise OperatorError(error.strerror or str(error), where=str(path)) from None


def _parse(body: bytes, where: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise OperatorError(f"this is not JSON: {error}", where=where) from None


def _lab_directories(lab: str, key: str = "run_dirs") -> dict[str, Path]:
    try:
        state = json.loads((LABS / lab / "state.json").read_text())
    except PermissionError:
        raise NotPermitted("a lab belongs to root: run with sudo", where=str(LABS / lab)) from None
    except (OSError, ValueError):
        raise Unreachable(f"lab {lab} is not up: `meshctl lab up --name {lab}`") from None
    return {owner: Path(path) for owner, path in state.get(key, {}).items()}
