"""Puts the plugin on a node and takes it away: the binary into the CNI binaries, an entry into the primary's conflist.

    python -m cni.install install   --binary build/nodemesh-cni [--bin-dir DIR] [--net-dir DIR] [--agent-socket PATH]
    python -m cni.install watch     the same, and keeps it so until SIGTERM, which leaves everything as it is
    python -m cni.install uninstall [--bin-dir DIR] [--net-dir DIR]

A binary that is being exec'ed is never written to. Idempotent. What is done to the lists is `conflist.py`'s.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cni.conflist import PLUGIN, InstallError, chain, locked, replace, unchain
from cni.watch import Inotify, watch

BIN_DIR: Final = Path("/opt/cni/bin")
NET_DIR: Final = Path("/etc/cni/net.d")
AGENT_SOCKET: Final = "/run/nodemesh/cni.sock"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the plugin belongs on this node."""

    binary: Path
    bin_dir: Path = BIN_DIR
    net_dir: Path = NET_DIR
    agent_socket: str = AGENT_SOCKET


def install(place: Place) -> tuple[Path, list[str]]:
    """The conflist that ends in our entry, and a phrase for each thing that had to be put there. The binary goes first:
    an entry without it would stop every pod. Raises InstallError."""
    put = []
    if _put_binary(place):
        put.append(f"{place.bin_dir / PLUGIN} is put there")
    path, changed = chain(place.net_dir, place.agent_socket)
    return path, [*put, *([f"{path} ends in our entry now"] if changed else [])]


def _put_binary(place: Place) -> bool:
    """False: it is there."""
    try:
        content = place.binary.read_bytes()
    except OSError as error:
        raise InstallError(f"{place.binary} cannot be read: {error.strerror}") from None
    there = place.bin_dir / PLUGIN
    if there.is_file() and there.stat().st_mode & 0o777 == 0o755 and there.read_bytes() == content:
        return False
    with locked(place.bin_dir):
        replace(there, content, 0o755)
    return True


def uninstall(bin_dir: Path = BIN_DIR, net_dir: Path = NET_DIR) -> None:
    """The entry goes first, for the same reason. Nothing to do is no error. Raises InstallError."""
    unchain(net_dir)
    if bin_dir.is_dir():
        with locked(bin_dir):
            (bin_dir / PLUGIN).unlink(missing_ok=True)


def _keep(place: Place) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    directories, bell = [place.net_dir, place.bin_dir], Inotify()
    bell.look_at(directories)
    watch(lambda: install(place)[1], directories, bell, lambda phrase: print(f"cni.install: {phrase}", flush=True))


def _arguments(given: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="cni.install", description="Installs or removes the nodemesh CNI plugin.")
    parser.add_argument("what", choices=["install", "watch", "uninstall"])
    parser.add_argument("--binary", type=Path, default=Path("build") / PLUGIN)
    parser.add_argument("--bin-dir", type=Path, default=BIN_DIR)
    parser.add_argument("--net-dir", type=Path, default=NET_DIR)
    parser.add_argument("--agent-socket", default=AGENT_SOCKET)
    return parser.parse_args(given)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    place = Place(given.binary, given.bin_dir, given.net_dir, given.agent_socket)
    try:
        if given.what == "install":
            print(install(place)[0])
        elif given.what == "watch":
            _keep(place)
        else:
            uninstall(given.bin_dir, given.net_dir)
    except InstallError as error:
        print(f"cni.install: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
