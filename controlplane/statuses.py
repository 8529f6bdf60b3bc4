"""What became of each object, written into its status in the API by server-side apply.

A comparison of what should stand there with what does, repeated after every change: nothing is lost over a restart, and
nothing is written twice. Other people's conditions stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from controlplane.sources.kubernetes import KubernetesSource
from controlplane.translate.backends import GROUP
from controlplane.translate.classes import CONTROLLER, OURS
from controlplane.translate.parents import parent_of
from kube.client import Client, Patch
from kube.errors import Conflict, NotFound
from kube.objects import Object
from kube.objects import Resource as Kind
from kube.reconcile import Reconciler
from mesh import log
from mesh.errors import MeshError

OWNER: Final = "nodemesh-controlplane"
ROUTES: Final = ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
MAX_ANCESTORS: Final = 16
# Whose lists of conditions are merged by type; of all others the list is one value.
KEYED: Final = ("gateway.networking.k8s.io",)
MAX_MESSAGE: Final = 32768
_log: Final = log.get("statuses")
Condition = Mapping[str, Any]


class Judge(Protocol):
    """What is for us to judge; another controller's Gateways are not."""

    def judges_class(self, name: str) -> bool: ...
    def judges_parent(self, ref: Condition, namespace: str) -> bool: ...


class Statuses:
    """`told`: the entries of `Store.conditions`. `judge`: what they were made by."""

    def __init__(
        self,
        client: Client,
        source: KubernetesSource,
        told: Callable[[], Iterable[Mapping[str, Any]]],
        judge: Callable[[], Judge],
    ) -> None:
        self._client, self._source, self._told, self._judge = client, source, told, judge
        self._reconciler = Reconciler(self._write_all, 0.5)
        self._written: dict[str, tuple[str, str]] = {}

    @property
    def settled(self) -> bool:
        return self._reconciler.settled

    def touch(self) -> None:
        self._reconciler.touch()

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.run()

    async def _write_all(self) -> bool:
        done, written, judge = True, {}, self._judge()
        for entry in list(self._told()):
            found = self._source.find(entry["file"])
            if found is None or (body := applied(*found, entry, _now(), judge)) is None:
                continue
            # Our own write comes back by the watch a moment later: until then the object looks as it did before.
            this = found[1].version, str(entry)
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


def applied(kind: Kind[Any], item: Object, entry: Mapping[str, Any], now: str, judge: Judge) -> dict[str, Any] | None:
    """The body of a server-side apply; None: it stands there already, or is not for us to judge. Pure. `entry`: as
    `conditions.of` has it."""
    wanted: list[Condition] = list(entry["conditions"])
    if kind.kind in ROUTES:
        status = _of_route(item, wanted, now, judge)
    elif kind.kind == "BackendTLSPolicy":
        status = _of_policy(item, wanted, now)
    elif _foreign(kind, item, judge):
        return None
    else:
        status = _of_object(item, entry, now, kind.group in KEYED)
    if status is None:
        return None
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": _about(item), "status": status}


def _foreign(kind: Kind[Any], item: Object, judge: Judge) -> bool:
    if (kind.kind, kind.group) == ("Gateway", GROUP):
        return not judge.judges_class(_spec(item).get("gatewayClassName", ""))
    return kind.kind == "GatewayClass" and _spec(item).get("controllerName") not in OURS


def _of_object(item: Object, entry: Condition, now: str, keyed: bool) -> dict[str, Any] | None:
    wanted = entry["conditions"]
    has = _by(_status(item).get("conditions"), "type")
    made = {each["type"]: _condition(each, has.get(each["type"]), item, now) for each in wanted if "parent" not in each}
    listeners = _listeners(item, entry, now)
    known = _by(_status(item).get("listeners"), "name")
    same = all(has.get(name) == each for name, each in made.items())
    if not made or (same and all(known.get(each["name"]) == each for each in listeners)):
        return None
    theirs = [] if keyed else [each for name, each in has.items() if name not in made]
    return {"conditions": [*theirs, *made.values()], **({"listeners": listeners} if listeners else {})}


def _listeners(item: Object, entry: Condition, now: str) -> list[dict[str, Any]]:
    known = _by(_status(item).get("listeners"), "name")
    made = []
    for facts in entry.get("listeners", ()):
        said = [each for each in entry["conditions"] if each.get("parent") == f"listener {facts['name']}"]
        made.append({**facts, "conditions": _merged(said, known.get(facts["name"]), item, now)})
    return made


def _of_route(item: Object, wanted: list[Condition], now: str, judge: Judge) -> dict[str, Any] | None:
    """One entry for each of its parents that is ours to judge; the list is written as a whole, others' entries kept."""
    theirs, before = _shared(item, "parents")
    namespace, made = item.metadata.namespace or "", []
    for ref in _spec(item).get("parentRefs") or ():
        name = parent_of(ref, namespace)
        said = [each for each in wanted if each.get("parent", name) == name]
        if said and judge.judges_parent(ref, namespace):
            has = next((each for each in before if each.get("parentRef") == ref), None)
            conditions = _merged(said, has, item, now)
            made.append({"parentRef": ref, "controllerName": CONTROLLER, "conditions": conditions})
    return {"parents": [*theirs, *made]} if made != before else None


def _of_policy(item: Object, wanted: list[Condition], now: str) -> dict[str, Any] | None:
    """One entry for each that sends to its targets; of one that cannot be read for its targets."""
    theirs, before = _shared(item, "ancestors")
    own = [{"group": "", **ref} for ref in _spec(item).get("targetRefs") or () if isinstance(ref, dict)]
    told = list(dict.fromkeys(each["parent"] for each in wanted if "parent" in each))
    made = []
    for ref, name in [(_ancestor(name), name) for name in told] or [(ref, "") for ref in own]:
        said = [each for each in wanted if each.get("parent", name) == name]
        has = next((each for each in before if each.get("ancestorRef") == ref), None)
        made.append({"ancestorRef": ref, "controllerName": CONTROLLER, "conditions": _merged(said, has, item, now)})
    made = made[: max(0, MAX_ANCESTORS - len(theirs))]
    return {"ancestors": [*theirs, *made]} if made != before else None


def _ancestor(name: str) -> dict[str, Any]:
    """As notices call it: `Gateway shop/edge`."""
    kind, _, path = name.partition(" ")
    namespace, _, name = path.partition("/")
    return {"group": GROUP if kind == "Gateway" else "", "kind": kind, "namespace": namespace, "name": name}


def _shared(item: Object, name: str) -> tuple[list[Any], list[Any]]:
    """Of a list that controllers share: the others' entries, and ours."""
    listed = [each for each in _status(item).get(name) or () if isinstance(each, dict)]
    ours = [each for each in listed if each.get("controllerName") == CONTROLLER]
    return [each for each in listed if each.get("controllerName") != CONTROLLER], ours


def _merged(said: Iterable[Condition], before: Condition | None, item: Object, now: str) -> list[dict[str, Any]]:
    """`before`: what has conditions already."""
    has = _by((before or {}).get("conditions"), "type")
    return [_condition(each, has.get(each["type"]), item, now) for each in said]


def _spec(item: Object) -> Condition:
    return getattr(item, "spec", None) or {}


def _status(item: Object) -> Condition:
    return getattr(item, "status", None) or {}


def _by(listed: Any, name: str) -> dict[str, Condition]:
    return {each[name]: each for each in listed or () if isinstance(each, dict) and name in each}


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
