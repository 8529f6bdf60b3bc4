"""Puts the plugin on a node and takes it away: the binary into the CNI binaries, an entry into the primary's conflist.

    python -m cni.install install   --binary build/nodemesh-cni [--bin-dir DIR] [--net-dir DIR] [--agent-socket PATH]
    python -m cni.install uninstall [--bin-dir DIR] [--net-dir DIR]

Every file is replaced as a whole (temporary file, rename), so that a runtime never sees half of one and a binary that
is being exec'ed is never written to. Idempotent. Owns no other file of these directories.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = "nodemesh-cni"
BIN_DIR: Final = Path("/opt/cni/bin")
NET_DIR: Final = Path("/etc/cni/net.d")
AGENT_SOCKET: Final = "/run/nodemesh/cni.sock"
_SUFFIXES: Final = (".conf", ".conflist", ".json")
_WRAPPED_NAME: Final = "nodemesh"
"""Of a list made from a single .conf without a name."""


class InstallError(Exception):
    """A sentence for the operator."""


def install(binary: Path, bin_dir: Path = BIN_DIR, net_dir: Path = NET_DIR, agent_socket: str = AGENT_SOCKET) -> Path:
    """The conflist that now ends in our entry. The binary goes first: an entry without it would stop every pod."""
    try:
        content = binary.read_bytes()
    except OSError as error:
        raise InstallError(f"{binary} cannot be read: {error.strerror}") from None
    _replace(bin_dir / PLUGIN, content, 0o755)
    return chain(net_dir, agent_socket)


def uninstall(bin_dir: Path = BIN_DIR, net_dir: Path = NET_DIR) -> None:
    """The entry goes first, for the same reason. Nothing to do is no error."""
    for path in _candidates(net_dir):
        if (conflist := _read_list(path)) is not None and _has_entry(conflist):
            conflist["plugins"] = _others(conflist)
            _replace(path, _render(conflist), path.stat().st_mode & 0o777)
    (bin_dir / PLUGIN).unlink(missing_ok=True)


def chain(net_dir: Path, agent_socket: str) -> Path:
    """Appends our entry to the lexicographically first valid list, libcni's choice; one that is there moves to the end.

    A single .conf becomes a list: `NAME.conf` goes, `NAME.conflist` comes with its mode.
    """
    for path in _candidates(net_dir):
        if (conflist := _read_list(path)) is None:
            continue
        entry = {"type": PLUGIN, "agentSocket": agent_socket}
        wanted = conflist | {"plugins": [*_others(conflist), entry]}
        target = path if _is_list(path) else path.with_suffix(".conflist")
        if wanted != conflist or target != path:
            _replace(target, _render(wanted), path.stat().st_mode & 0o777)
        if target != path:
            path.unlink()
        return target
    raise InstallError(f"{net_dir} has no valid CNI configuration yet: the primary plugin has to be installed first")


def _candidates(net_dir: Path) -> list[Path]:
    try:
        return sorted(path for path in net_dir.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    except OSError:
        return []


def _is_list(path: Path) -> bool:
    content = _load(path)
    return isinstance(content, dict) and "plugins" in content


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_list(path: Path) -> dict[str, Any] | None:
    """The file as a list; None when libcni would skip it."""
    content = _load(path)
    if not isinstance(content, dict):
        return None
    if path.suffix != ".conflist" and "plugins" not in content:
        return _wrap(content)
    plugins = content.get("plugins")
    is_valid = isinstance(plugins, list) and plugins and all(isinstance(p, dict) and p.get("type") for p in plugins)
    return content if is_valid and content.get("name") else None


def _wrap(single: dict[str, Any]) -> dict[str, Any] | None:
    if not single.get("type"):
        return None
    head = {"cniVersion": single.get("cniVersion", "0.3.1"), "name": single.get("name", _WRAPPED_NAME)}
    inner = {key: value for key, value in single.items() if key not in head}
    return head | {"plugins": [inner]}


def _has_entry(conflist: dict[str, Any]) -> bool:
    return len(_others(conflist)) < len(conflist["plugins"])


def _others(conflist: dict[str, Any]) -> list[Any]:
    return [plugin for plugin in conflist["plugins"] if plugin["type"] != PLUGIN]


def _render(conflist: dict[str, Any]) -> bytes:
    return (json.dumps(conflist, indent=2) + "\n").encode()


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Temporary names start with a dot and end in none of the suffixes that a runtime reads."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InstallError(f"{path} cannot be written: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cni.install", description="Installs or removes the nodemesh CNI plugin.")
    parser.add_argument("what", choices=["install", "uninstall"])
    parser.add_argument("--binary", type=Path, default=Path("build") / PLUGIN)
    parser.add_argument("--bin-dir", type=Path, default=BIN_DIR)
    parser.add_argument("--net-dir", type=Path, default=NET_DIR)
    parser.add_argument("--agent-socket", default=AGENT_SOCKET)
    given = parser.parse_args(arguments)
    try:
        if given.what == "install":
            print(install(given.binary, given.bin_dir, given.net_dir, given.agent_socket))
        else:
            uninstall(given.bin_dir, given.net_dir)
    except InstallError as error:
        print(f"cni.install: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
