"""The directory that a runtime reads its networks from: our entry in the list that counts, and how it was without us.

Every file is replaced as a whole (temporary file, rename), so that a runtime never sees half of one. What another CNI
wrote is kept beside it, as it was, until we go. Owns no other file of the directory; who holds its lock is alone in it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = "nodemesh-cni"
_SUFFIXES: Final = (".conf", ".conflist", ".json")
_WRAPPED_NAME: Final = "nodemesh"
"""Of a list made from a single .conf without a name."""
_ORIGINAL: Final = ".nodemesh-original"
"""Behind a dot and a file's name: what stood there. No runtime reads files that end so."""
_TEMPORARY: Final = ".*.nodemesh-*.tmp"
_TRIES: Final = 10


class InstallError(Exception):
    """A sentence for the operator."""


class _Changed(Exception):
    """Somebody else wrote the file meanwhile."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it was read. `conflist`: None when libcni would skip it."""

    path: Path
    content: bytes
    about: os.stat_result
    conflist: dict[str, Any] | None

    @property
    def mode(self) -> int:
        return self.about.st_mode & 0o777

    @property
    def has_entry(self) -> bool:
        return self.conflist is not None and _others(self.conflist) != self.conflist["plugins"]

    @property
    def target(self) -> Path:
        """Where a list made of it belongs: a single plugin's `NAME.conf` becomes `NAME.conflist`."""
        is_list = self.path.suffix == ".conflist" or "plugins" in json.loads(self.content)
        return self.path if is_list else self.path.with_suffix(".conflist")


def chain(net_dir: Path, agent_socket: str) -> tuple[Path, bool]:
    """Our entry at the end of the lexicographically first valid list, libcni's choice. (The list, whether it had to be
    changed.) Lists behind it keep an entry that they have: they count when the first one goes. Raises InstallError."""
    with locked(net_dir):
        for _ in range(_TRIES):
            with suppress(_Changed):
                return _chain(net_dir, agent_socket)
    raise InstallError(f"{net_dir}: somebody else writes it all the time")


def _chain(net_dir: Path, agent_socket: str) -> tuple[Path, bool]:
    first = next((file for file in _files(net_dir) if file.conflist), None)
    if first is None or first.conflist is None:
        raise InstallError(
            f"{net_dir} has no valid CNI configuration yet: the primary plugin has to be installed first"
        )
    entry = {"type": PLUGIN, "agentSocket": agent_socket}
    wanted = first.conflist | {"plugins": [*_others(first.conflist), entry]}
    if wanted == first.conflist and first.target == first.path:
        return first.path, False
    if not first.has_entry:
        replace(_original(first.path), first.content, first.mode)
    replace(first.target, _render(wanted), first.mode, instead_of=first)
    if first.target != first.path:
        first.path.unlink()
    return first.target, True


def unchain(net_dir: Path) -> None:
    """Every list as the other CNI would have it: its own bytes while only our entry was added, else without that entry.
    Nothing to do is no error. Raises InstallError."""
    if not net_dir.is_dir():
        return
    with locked(net_dir):
        for file in _files(net_dir):
            if file.has_entry:
                _restore(file)
        for original in net_dir.glob(f".*{_ORIGINAL}"):
            original.unlink(missing_ok=True)


def _restore(file: _File) -> None:
    assert file.conflist is not None
    without = file.conflist | {"plugins": _others(file.conflist)}
    for path in (file.path, file.path.with_suffix(".conf")):
        original = _read(_original(path), path.name)
        if original is not None and original.conflist == without:
            replace(path, original.content, original.mode)
            if path != file.path:
                file.path.unlink()
            return
    replace(file.path, _render(without), file.mode)


# Files ----------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Waits for whoever else installs or takes away here; what such a one left half done goes. Raises InstallError."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InstallError(f"{directory} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for temporary in directory.glob(_TEMPORARY):
            temporary.unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)


def replace(path: Path, content: bytes, mode: int, instead_of: _File | None = None) -> None:
    """`instead_of`: what the content was made of; _Changed when that is not there any more. Raises InstallError."""
    temporary = path.with_name(f".{path.name}.nodemesh-{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if instead_of is not None and not _is_still(instead_of):
            temporary.unlink()
            raise _Changed
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InstallError(f"{path} cannot be written: {error.strerror}") from None


def _is_still(file: _File) -> bool:
    try:
        now = os.stat(file.path)
    except OSError:
        return False
    return (now.st_ino, now.st_mtime_ns, now.st_size) == (file.about.st_ino, file.about.st_mtime_ns, file.about.st_size)


def _files(net_dir: Path) -> list[_File]:
    """In the order in which libcni looks at them."""
    try:
        paths = sorted(path for path in net_dir.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    except OSError:
        return []
    return [file for path in paths if (file := _read(path, path.name)) is not None]


def _read(path: Path, name: str) -> _File | None:
    """As a file of that name. None: it cannot be read."""
    try:
        with path.open("rb") as file:
            about, content = os.fstat(file.fileno()), file.read()
    except OSError:
        return None
    return _File(path, content, about, _parse(content, name))


def _original(path: Path) -> Path:
    return path.with_name(f".{path.name}{_ORIGINAL}")


# Lists ----------------------------------------------------------------------------------------------------------------


def _parse(content: bytes, name: str) -> dict[str, Any] | None:
    """The file as a list; None when libcni would skip it."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if not name.endswith(".conflist") and "plugins" not in found:
        return _wrap(found)
    plugins = found.get("plugins")
    is_valid = isinstance(plugins, list) and plugins and all(isinstance(p, dict) and p.get("type") for p in plugins)
    return found if is_valid and found.get("name") else None


def _wrap(single: dict[str, Any]) -> dict[str, Any] | None:
    if not single.get("type"):
        return None
    head = {"cniVersion": single.get("cniVersion", "0.3.1"), "name": single.get("name", _WRAPPED_NAME)}
    inner = {key: value for key, value in single.items() if key not in head}
    return head | {"plugins": [inner]}


def _others(conflist: dict[str, Any]) -> list[Any]:
    return [plugin for plugin in conflist["plugins"] if plugin["type"] != PLUGIN]


def _render(conflist: dict[str, Any]) -> bytes:
    return (json.dumps(conflist, indent=2) + "\n").encode()
