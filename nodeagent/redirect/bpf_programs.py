"""The programs that this agent ships: loaded once, pinned, found again by the next agent, replaced by the next version.

Owns the pins of maps and programs; what is attached where is `bpf.py`'s.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import libbpf
from nodeagent.libbpf import BpfError, Map
from nodeagent.redirect import orphans
from nodeagent.redirect.bpf_records import (
    ADDRESS_BYTES,
    COOKIE_BYTES,
    ID_BYTES,
    LISTENER_BYTES,
    OWN_BYTES,
    PORT_BYTES,
    RANGE_BYTES,
    WORKLOAD_BYTES,
    pack_abilities,
    pack_cookie,
)
from nodeagent.redirect.pins import Pins

OBJECTS: Final = Path(__file__).parent / "objects"
"""Built from bpf/ by tools/setup.sh and shipped in the package."""
CAPTURE: Final = OBJECTS / "capture.bpf.o"
INBOUND: Final = OBJECTS / "inbound.bpf.o"
ABLE: Final = ".rodata.able"
"""Of the former: what this kernel lets it do."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program and where it belongs; `attach_type` of enum bpf_attach_type."""

    program: str
    attach_type: int


WORKLOAD_HOOKS: Final = {
    "getpeername4": Hook("mesh_getpeername4", 29),  # before sockops: it finds also what an earlier one files
    "getpeername6": Hook("mesh_getpeername6", 30),
    "sockops": Hook("mesh_sockops", 3),  # before connect4: a diverted connection must not go without its destination
    "release": Hook("mesh_release", 34),
    "bind4": Hook("mesh_bind4", 8),
    "bind6": Hook("mesh_bind6", 9),
    "recvmsg4": Hook("mesh_recvmsg4", 19),
    "recvmsg6": Hook("mesh_recvmsg6", 20),
    "sendmsg4": Hook("mesh_sendmsg4", 14),
    "sendmsg6": Hook("mesh_sendmsg6", 15),
    "connect4": Hook("mesh_connect4", 10),
    "connect6": Hook("mesh_connect6", 11),
}
"""On a workload's control group, in this order."""
DIRECT_HOOKS: Final = {"setsockopt": Hook("mesh_setsockopt", 22)}
"""Before them, where a workload may talk to others of its node directly."""
TUNNEL_HOOKS: Final = {
    "getsockopt": Hook("mesh_tunnel_getsockopt", 21),  # before sockops, which once did a part of its work
    "sockops": Hook("mesh_tunnel_sockops", 3),
    "recvmsg4": Hook("mesh_tunnel_recvmsg4", 19),
    "recvmsg6": Hook("mesh_tunnel_recvmsg6", 20),
    "connect4": Hook("mesh_tunnel_connect4", 10),
    "connect6": Hook("mesh_tunnel_connect6", 11),
}
PROBE_HOOKS: Final = {"connect4": Hook("mesh_probe_connect4", 10), "connect6": Hook("mesh_probe_connect6", 11)}
"""On the kubelet's control group."""
SK_LOOKUP: Final = Hook("mesh_arrives", 36)
_MAPS: Final = {
    "mesh_workloads": (ID_BYTES, WORKLOAD_BYTES),
    "mesh_own": (OWN_BYTES, 1),
    "mesh_left_ports": (PORT_BYTES, 1),
    "mesh_left_ranges": (RANGE_BYTES, 1),
    "mesh_listeners": (LISTENER_BYTES, COOKIE_BYTES),
    "mesh_probed": (ADDRESS_BYTES, 1),
}
_DIRECT_MAPS: Final = ("mesh_passes", "mesh_issuers", "mesh_direct")
"""In the order in which the tunnel gets them."""


class Programs:
    """Loaded or found. Holds descriptors until `close`. Raises BpfError."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        pins.make()
        self.digest = _digest()
        directory = pins.programs / self.digest
        self._fds = _find(directory) or _load(pins, directory)
        self.ids = {name: libbpf.program_id(fd) for name, fd in self._fds.items()}
        opened = {name: libbpf.open_pin(pins.maps / name) for name in (*_MAPS, *_DIRECT_MAPS)}
        self._map_fds = list(opened.values())
        self.direct_fds = [opened[name] for name in _DIRECT_MAPS]
        self.direct = Map(opened["mesh_direct"], orphans.KEY_BYTES, orphans.RECORD_BYTES)
        self.workloads, self.own, self.left_ports, self.left_ranges, self.listeners, self.probed = (
            Map(opened[name], *sizes) for name, sizes in _MAPS.items()
        )

    def fd(self, hook: Hook) -> int:
        return self._fds[hook.program]

    def earlier(self) -> list[Path]:
        """Directories of versions whose links may still be in force."""
        return [each for each in sorted(self._pins.programs.iterdir()) if each.name != self.digest]

    def inbound(self, cookie: int) -> libbpf.Object:
        """For one namespace; it is its link that keeps it. Cost: about 2 ms."""
        return libbpf.Object(INBOUND, self._pins.maps, pack_cookie(cookie))

    def close(self) -> None:
        for fd in (*self._fds.values(), *self._map_fds):
            os.close(fd)


def _digest() -> str:
    try:
        return hashlib.sha256(CAPTURE.read_bytes() + INBOUND.read_bytes()).hexdigest()[:12]
    except OSError:
        raise BpfError(f"{CAPTURE} is not built: run `make setup`") from None


def _names() -> set[str]:
    every = (DIRECT_HOOKS, WORKLOAD_HOOKS, TUNNEL_HOOKS, PROBE_HOOKS)
    return {hook.program for hooks in every for hook in hooks.values()}


def _find(directory: Path) -> dict[str, int]:
    """Empty unless all of them are there."""
    if {each.name for each in directory.iterdir()} != _names() if directory.is_dir() else True:
        return {}
    return {name: libbpf.open_pin(directory / name) for name in _names()}


def _load(pins: Pins, directory: Path) -> dict[str, int]:
    directory.mkdir(mode=0o700, exist_ok=True)
    with _capture(pins.maps) as loaded:
        for name in _names():
            (directory / name).unlink(missing_ok=True)  # of an agent that was killed half way
            libbpf.pin(loaded.programs[name], directory / name)
        return {name: os.dup(loaded.programs[name]) for name in _names()}


def _capture(maps: Path | None) -> libbpf.Object:
    """With what not every kernel can that captures, where it can. Raises BpfError."""
    try:
        return libbpf.Object(CAPTURE, maps, pack_abilities(multipath=True), ABLE)
    except BpfError:
        return libbpf.Object(CAPTURE, maps, pack_abilities(multipath=False), ABLE)


def try_out() -> None:
    """Loads everything, pins nothing, and lets it go again. Raises BpfError: this kernel cannot."""
    with _capture(None), libbpf.Object(INBOUND, None, pack_cookie(1)):
        pass
