"""Files that nobody but the owner may read, written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from mesh.errors import OperatorError


def private_directory(path: Path) -> None:
    """Makes it, mode 0700. Raises OperatorError: it cannot be made, or others may enter it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(path, "0700")
    except OSError as error:
        raise OperatorError(f"cannot be used as a private directory: {error.strerror}", where=str(path)) from None


def require_private(path: Path, mode: str) -> None:
    """Raises OperatorError: group or others have any right, or it belongs to somebody else; OSError."""
    status = path.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise OperatorError("is a symbolic link, where a file of our own is expected", where=str(path))
    if status.st_mode & 0o077:
        raise OperatorError(f"has mode {stat.S_IMODE(status.st_mode):04o}; only {mode} is accepted", where=str(path))
    if status.st_uid != os.geteuid():
        raise OperatorError(f"belongs to user {status.st_uid}, not to user {os.geteuid()}", where=str(path))


def write_private(path: Path, data: bytes, *, replace: bool, mode: int = 0o600) -> bool:
    """Whole or not at all, also across a power loss. Without `replace`, false if it exists already.

    Raises OperatorError: the directory cannot be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return _place(aside, path, replace)
    except OSError as error:
        raise OperatorError(f"cannot be written: {error.strerror}", where=str(path)) from None
    finally:
        aside.unlink(missing_ok=True)


def _place(aside: Path, path: Path, replace: bool) -> bool:
    if replace:
        os.replace(aside, path)
    else:
        try:
            os.link(aside, path)  # unlike rename, never over an existing one
        except FileExistsError:
            return False
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True
