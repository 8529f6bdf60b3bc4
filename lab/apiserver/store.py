"""Objects under one rising version, and the history that watches are served from. No I/O but the state file.

What a server is asked for in an old version it answers only as far as its history reaches: `compact` and a new process
forget it, which is what 410 Gone is about.
"""

from __future__ import annotations

import copy
import json
import os
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lab.apiserver.kinds import Kind
from lab.apiserver.selectors import Matches

Item = dict[str, Any]
Name = tuple[str, str]
HISTORY: Final = 10_000
NOT_READY: Final = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


class Refused(Exception):
    """An HTTP status with Kubernetes' reason for it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


def expired(version: int, oldest: int) -> Refused:
    return Refused(410, "Expired", f"too old resource version: {version} ({oldest})")


@dataclass(frozen=True, slots=True)
class Written:
    """One entry of the history. `before` None: created; `after` of a deletion is the last state."""

    version: int
    kind: str
    before: Item | None
    after: Item
    deleted: bool = False

    def seen_through(self, matches: Matches) -> tuple[str, Item] | None:
        """As the watch of a selector has it: what leaves the selection is deleted, what enters it is added."""
        was = self.before is not None and matches(self.before)
        now = not self.deleted and matches(self.after)
        if was and now:
            return "MODIFIED", self.after
        if now:
            return "ADDED", self.after
        return ("DELETED", self.after) if was else None


class Store:
    """`file`: where the state survives the process. Kinds are told apart by group and plural, versions share them."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.version = 1
        self._items: dict[str, dict[Name, Item]] = {}
        self.history: deque[Written] = deque(maxlen=HISTORY)
        if file is not None and file.exists():
            state = json.loads(file.read_text())
            self.version = state["version"]
            for kind, namespace, name, item in state["items"]:
                self._items.setdefault(kind, {})[namespace, name] = item
        self.oldest = self.version

    def compact(self) -> None:
        self.history.clear()
        self.oldest = self.version

    def since(self, kind: Kind, version: int) -> Iterator[Written]:
        """Raises Refused: the history does not reach back so far."""
        if version < self.oldest:
            raise expired(version, self.oldest)
        return (each for each in list(self.history) if each.version > version and each.kind == _id(kind))

    def all(self, kind: Kind, namespace: str = "") -> list[Item]:
        found = self._items.get(_id(kind), {})
        return [found[name] for name in sorted(found) if not namespace or name[0] == namespace]

    def get(self, kind: Kind, namespace: str, name: str) -> Item:
        try:
            return self._items[_id(kind)][namespace, name]
        except KeyError:
            group = f".{kind.group}" if kind.group else ""
            raise Refused(404, "NotFound", f'{kind.plural}{group} "{name}" not found') from None

    def create(self, kind: Kind, namespace: str, item: Item) -> Item:
        about = item.setdefault("metadata", {})
        if "name" not in about and "generateName" in about:
            about["name"] = about["generateName"] + uuid.uuid4().hex[:5]
        if not about.get("name"):
            raise Refused(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        if kind.namespaced:
            about["namespace"] = namespace
        if (namespace, about["name"]) in self._items.get(_id(kind), {}):
            raise Refused(409, "AlreadyExists", f'{kind.plural} "{about["name"]}" already exists')
        about |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
        about.pop("resourceVersion", None)
        if kind.status:
            item.pop("status", None)
        if kind.name == "Node":
            _admit_node(item)
        return self._write(kind, (namespace, about["name"]), None, item)

    def replace(self, kind: Kind, namespace: str, item: Item, subresource: str = "") -> Item:
        """Through the object, its status stays; through its status, everything stays but status and, of pods as in the
        real one, metadata."""
        before = self.get(kind, namespace, item["metadata"]["name"])
        about, known = item["metadata"], before["metadata"]
        if about.get("resourceVersion") not in (None, known["resourceVersion"]):
            raise Refused(409, "Conflict", f'Operation cannot be fulfilled on {kind.plural} "{about["name"]}": '
                          "the object has been modified; please apply your changes to the latest version")  # fmt: skip
        if about.get("uid") not in (None, known["uid"]):
            raise Refused(409, "Conflict", "Precondition failed: UID in precondition differs")
        after = self._half(kind, before, item, subresource)
        kept = ("uid", "creationTimestamp", "namespace", "name", "generation", "resourceVersion")
        after["metadata"] |= {name: known[name] for name in kept if name in known}
        after |= {"apiVersion": kind.api_version, "kind": kind.name}
        if after == before:
            return before
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = known.get("generation", 0) + 1
        return self._write(kind, (namespace, about["name"]), before, after)

    def _half(self, kind: Kind, before: Item, item: Item, subresource: str) -> Item:
        if subresource == "status":
            metadata = item["metadata"] if kind.name == "Pod" else before["metadata"]
            halves = {**before, "metadata": metadata, "status": item.get("status")}
        else:
            halves = {**item, **({"status": before.get("status")} if kind.status else {})}
        return copy.deepcopy({name: value for name, value in halves.items() if value is not None})

    def delete(self, kind: Kind, namespace: str, name: str) -> Item:
        before = self.get(kind, namespace, name)
        return self._write(kind, (namespace, name), before, copy.deepcopy(before), deleted=True)

    def _write(self, kind: Kind, name: Name, before: Item | None, after: Item, *, deleted: bool = False) -> Item:
        self.version += 1
        after["metadata"]["resourceVersion"] = str(self.version)
        after |= {"apiVersion": kind.api_version, "kind": kind.name}
        items = self._items.setdefault(_id(kind), {})
        if deleted:
            del items[name]
        else:
            items[name] = after
        if len(self.history) == HISTORY:
            self.oldest = self.history[0].version
        self.history.append(Written(self.version, _id(kind), before, after, deleted))
        self._save()
        return after

    def _save(self) -> None:
        if self._file is None:
            return
        items = [(kind, *name, item) for kind, named in self._items.items() for name, item in named.items()]
        aside = self._file.with_suffix(".new")
        aside.write_text(json.dumps({"version": self.version, "items": items}))
        os.replace(aside, self._file)


def _id(kind: Kind) -> str:
    return f"{kind.plural}.{kind.group}"


def _admit_node(item: Item) -> None:
    """A new node takes nothing before its kubelet has said that it is ready."""
    taints = item.setdefault("spec", {}).setdefault("taints", [])
    if all(each["key"] != NOT_READY["key"] for each in taints):
        taints.append(dict(NOT_READY))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
