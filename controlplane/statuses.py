"""What became of each object, written into its status in the API by server-side apply.

A comparison of what should stand there with what does, repeated after every change: nothing is lost over a restart, and
nothing is written twice. Other people's conditions stay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from controlplane.sources.kubernetes import KubernetesSource
from kube.client import Client, Patch
from kube.errors import Conflict, NotFound
from kube.objects import Object
from kube.objects import Resource as Kind
from mesh import log
from mesh.backoff import Backoff
from mesh.errors import MeshError

OWNER: Final = "nodemesh-controlplane"
# As a route's `status.parents` names who has judged it; a list that is written as a whole, others' entries kept.
CONTROLLER: Final = "nodemesh.io/controlplane"
ROUTES: Final = ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
# Has a status per ancestor.
WITHOUT: Final = ("BackendTLSPolicy",)
# Whose lists of conditions are merged by type; of all others the list is one value.
KEYED: Final = ("gateway.networking.k8s.io",)
MAX_MESSAGE: Final = 32768
_log: Final = log.get("statuses")
Condition = Mapping[str, Any]


class Statuses:
    """`told`: the entries of `Store.conditions`."""

    def __init__(
        self, client: Client, source: KubernetesSource, told: Callable[[], Iterable[Mapping[str, Any]]]
    ) -> None:
        self._client, self._source, self._told = client, source, told
        self._dirty = asyncio.Event()
        self._backoff = Backoff(0.5, 30.0)
        self._written: dict[str, tuple[str, str]] = {}

    def touch(self) -> None:
        self._dirty.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if await self._write_all():
                self._backoff.worked()
            else:
                await asyncio.sleep(self._backoff.failed() * (0.5 + random.random() / 2))
                self._dirty.set()

    async def _write_all(self) -> bool:
        done, written = True, {}
        for entry in list(self._told()):
            found = self._source.find(entry["file"]) if entry["kind"] not in WITHOUT else None
            if found is None or (body := applied(*found, entry["conditions"], _now())) is None:
                continue
            # Our own write comes back by the watch a moment later: until then the object looks as it did before.
            this = found[1].version, str(entry["conditions"])
            if self._written.get(entry["file"]) == this or await self._write(found[0], body):
                written[entry["file"]] = this
            else:
                done = False
        self._written = written
        return done

    async def _write(self, kind: Kind[Any], body: Mapping[str, Any]) -> bool:
        about = body["metadata"]
        try:
            await self._client.patch(
                kind, about["namespace"], about["name"], Patch.APPLY, body, subresource="status", owner=OWNER
            )
        except NotFound:
            return True
        except Conflict:
            return False  # the watch will bring what it is now
        except MeshError as error:
            name = f"{about['namespace']}/{about['name']}"
            _log.warning("status not written", kind=kind.kind, name=name, why=str(error))
            return False
        return True


def applied(kind: Kind[Any], item: Object, wanted: Iterable[Condition], now: str) -> dict[str, Any] | None:
    """The body of a server-side apply; None: it stands there already. Pure."""
    if kind.kind in ROUTES:
        status = _of_route(item, list(wanted), now)
    else:
        status = _of_object(item, wanted, now, kind.group in KEYED)
    if status is None:
        return None
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": _about(item), "status": status}


def _of_object(item: Object, wanted: Iterable[Condition], now: str, keyed: bool) -> dict[str, Any] | None:
    has = _by_type((getattr(item, "status", None) or {}).get("conditions"))
    made = {each["type"]: _condition(each, has.get(each["type"]), item, now) for each in wanted if "parent" not in each}
    if not made or all(has.get(name) == each for name, each in made.items()):
        return None
    theirs = [] if keyed else [each for name, each in has.items() if name not in made]
    return {"conditions": [*theirs, *made.values()]}


def _of_route(item: Object, wanted: list[Condition], now: str) -> dict[str, Any] | None:
    """One entry for each of its parents that somebody here judges."""
    listed = [each for each in (getattr(item, "status", None) or {}).get("parents") or () if isinstance(each, dict)]
    before = [each for each in listed if each.get("controllerName") == CONTROLLER]
    made = []
    for ref in (getattr(item, "spec", None) or {}).get("parentRefs") or ():
        name = parent(ref, item.metadata.namespace or "")
        said = [each for each in wanted if each.get("parent", name) == name]
        if name and said:
            has = _by_type(next((each["conditions"] for each in before if each.get("parentRef") == ref), None))
            conditions = [_condition(each, has.get(each["type"]), item, now) for each in said]
            made.append({"parentRef": ref, "controllerName": CONTROLLER, "conditions": conditions})
    theirs = [each for each in listed if each.get("controllerName") != CONTROLLER]
    return {"parents": [*theirs, *made]} if made != before else None


def parent(ref: Mapping[str, Any], namespace: str) -> str:
    """A route's parent as notices call it (`translate/parents.py`); "": another controller's."""
    kind = ref.get("kind", "Gateway")
    if kind not in ("Gateway", "Service", "ServiceEntry"):
        return ""
    section = f"/{ref['sectionName']}" if "sectionName" in ref else ""
    return f"{kind} {ref.get('namespace', namespace)}/{ref.get('name', '')}{section}"


def _by_type(listed: Any) -> dict[str, Condition]:
    return {each["type"]: each for each in listed or () if isinstance(each, dict) and "type" in each}


def _about(item: Object) -> dict[str, Any]:
    """Which object, and in which state: a list that has changed meanwhile is not to be written over."""
    about = item.metadata
    return {"name": about.name, "namespace": about.namespace or "", "uid": about.uid, "resourceVersion": item.version}


def _condition(wanted: Condition, has: Condition | None, item: Object, now: str) -> dict[str, Any]:
    since = has.get("lastTransitionTime", now) if has and has.get("status") == wanted["status"] else now
    return {
        "type": wanted["type"],
        "status": wanted["status"],
        "reason": wanted["reason"],
        "message": wanted["message"][:MAX_MESSAGE],
        "observedGeneration": item.metadata.generation or 0,
        "lastTransitionTime": since,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
