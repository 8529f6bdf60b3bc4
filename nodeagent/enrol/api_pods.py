"""This node's pods from the API server: `PodSource` by two informers, and a question of its own where they lag behind.

While the server is away, what is known stays, and a pod that is not known yet does not start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from kube.client import Client
from kube.errors import NotFound
from kube.informer import Informer
from kube.objects import NAMESPACES, PODS, Key, Pod, Whole
from kube.reflect import Change
from mesh import log
from mesh.errors import MeshError
from nodeagent.enrol.pods import FINISHED, PodName, PodSpec, UnknownYet

ASK_S: Final = 5.0
MOST_ASKED: Final = 1024
"""Answers held until the informer has caught up."""
_log: Final = log.get("pods")


class ApiPods:
    """Not for several event loops."""

    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self.node_pods: Informer[Pod] = Informer(
            client, PODS, self._heard, selectors={"fieldSelector": f"spec.nodeName={node}"}, cached=True
        )
        self._namespaces: Informer[Whole] = Informer(client, NAMESPACES, lambda _: self._changed.set(), cached=True)
        self._asked: dict[Key, Pod] = {}
        self._asked_namespaces: dict[str, Mapping[str, str]] = {}
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, told: Callable[[], None]) -> None:
        """`told` after each change of this node's pods."""
        self._listeners.append(told)

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self.node_pods.run(), self._namespaces.run())

    @property
    def trouble(self) -> str:
        """ "" while both are in step with the API server."""
        return self.node_pods.trouble or self._namespaces.trouble

    @property
    def synced(self) -> bool:
        """Both have been in step once."""
        return self.node_pods.synced.is_set() and self._namespaces.synced.is_set()

    async def prepare(self, namespace: str, name: str, uid: str) -> None:
        key = Key(namespace, name)
        known = self._asked.get(key) or self.node_pods.objects.get(key)
        # Without a uid nobody can tell an earlier pod of this name but an informer that is in step.
        if known is None or (known.metadata.uid != uid if uid else self.node_pods.trouble):
            await self._ask(key, uid)
        if Key("", namespace) not in self._namespaces.objects:
            await self._ask_namespace(namespace)

    async def _ask(self, key: Key, uid: str) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                found = await self._client.get(PODS, key.namespace, key.name)
        except NotFound:
            raise UnknownYet(f"pod {key} is not known to the API server") from None
        except (MeshError, TimeoutError) as error:
            raise UnknownYet(f"pod {key} is not known yet: {error or 'no answer from the API server'}") from None
        if uid and found.metadata.uid != uid:
            raise UnknownYet(f"pod {key} is another one now, with uid {found.metadata.uid}")
        self._asked[key] = found
        while len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]

    async def _ask_namespace(self, name: str) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                found = await self._client.get(NAMESPACES, "", name)
        except (MeshError, TimeoutError) as error:
            raise UnknownYet(f"namespace {name} is not known yet: {error or 'no answer from the API server'}") from None
        self._asked_namespaces[name] = found.metadata.labels or {}

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def pods(self) -> Mapping[PodName, PodSpec]:
        specs = (_spec(pod) for pod in (dict(self.node_pods.objects) | self._asked).values())
        return {(spec.namespace, spec.name): spec for spec in specs}

    def pod(self, namespace: str, name: str) -> PodSpec:
        key = Key(namespace, name)
        found = self._asked.get(key) or self.node_pods.objects.get(key)
        if found is None:
            raise UnknownYet(f"pod {key} is not known yet (asked the API server)")
        return _spec(found)

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        found = self._namespaces.objects.get(Key("", namespace))
        labels = found.metadata.labels or {} if found is not None else self._asked_namespaces.get(namespace)
        if labels is None:
            raise UnknownYet(f"namespace {namespace} is not known yet (asked the API server)")
        return labels

    def _heard(self, changes: list[Change[Pod]]) -> None:
        for each in changes:
            asked = self._asked.get(each.key)
            # Of an earlier pod with that name: our own answer is the newer one.
            seen = each.after or each.before
            if asked is not None and seen is not None and seen.metadata.uid == asked.metadata.uid:
                del self._asked[each.key]
        self._changed.set()
        for told in self._listeners:
            told()


def _spec(pod: Pod) -> PodSpec:
    about, spec, status = pod.metadata, pod.spec, pod.status
    listed = [status.pod_ip, *(each.ip for each in status.pod_ips or ())] if status else []
    return PodSpec(
        namespace=about.namespace or "default",
        name=about.name,
        service_account=spec.service_account_name or "default",
        node=spec.node_name or "",
        host_network=bool(spec.host_network),
        labels=about.labels or {},
        annotations=about.annotations or {},
        search=tuple(spec.dns_config.searches or ()) if spec.dns_config else (),
        uid=about.uid or "",
        ips=tuple(dict.fromkeys(each for each in listed if each)),
        finished=status is not None and status.phase in FINISHED,
    )
