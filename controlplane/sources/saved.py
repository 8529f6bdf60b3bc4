"""The last known state of the cluster, on disk: what a control plane begins with while the API server is away.

Owns STATE/kubernetes: one file per kind, written when something of it changed, and a table of contents. All of it or
nothing is read: a copy without one kind would be half a world. Secrets stay out of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from controlplane.private_files import private_directory, write_private
from kube.objects import Object
from kube.objects import Resource as Kind
from mesh import log
from mesh.errors import OperatorError

_CONTENTS: Final = "contents.json"
_log: Final = log.get("kubernetes")
Objects = list[tuple[Kind[Any], list[Object]]]


class Saved:
    """`kinds`: every one that may be read again, all versions."""

    def __init__(self, state: Path, kinds: Iterable[Kind[Any]]) -> None:
        self.path = state / "kubernetes"
        self._kinds = {_name(each): each for each in kinds}

    def save(self, changed: Iterable[tuple[Kind[Any], list[Object]]], every: Iterable[Kind[Any]]) -> None:
        """Best effort: what cannot be written is logged, and the copy of before stays or is none."""
        try:
            private_directory(self.path)
            for kind, items in changed:
                if kind.kind != "Secret":
                    write_private(self.path / _name(kind), msgspec.json.encode(items), replace=True)
            names = sorted(_name(each) for each in every if each.kind != "Secret")
            write_private(self.path / _CONTENTS, msgspec.json.encode(names), replace=True)
        except (OSError, OperatorError) as error:
            _log.warning("the cluster's state cannot be kept on disk", path=str(self.path), why=str(error))

    def load(self) -> Objects | None:
        """None: there is no copy, or it cannot be read in full."""
        try:
            names = msgspec.json.decode((self.path / _CONTENTS).read_bytes(), type=list[str])
            return [(self._kinds[name], self._read(self._kinds[name])) for name in names]
        except FileNotFoundError:
            return None
        except (OSError, KeyError, msgspec.MsgspecError) as error:
            _log.warning("the copy of the cluster's state is not used", path=str(self.path), why=str(error))
            return None

    def _read(self, kind: Kind[Any]) -> list[Object]:
        shape: Any = list[kind.shape]  # type: ignore[name-defined]
        found: list[Object] = msgspec.json.decode((self.path / _name(kind)).read_bytes(), type=shape)
        return found


def _name(kind: Kind[Any]) -> str:
    group = f".{kind.group}" if kind.group else ""
    return f"{kind.plural}{group}.{kind.version}.json"
