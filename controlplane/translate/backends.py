"""What the Gateway API's documents refer to: backends and certificates, and who grants it across namespaces. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controlplane.l7.routes import Target
from controlplane.objects import Resource
from controlplane.translate.hosts import Hosts
from mesh.model import HOSTNAME_SUFFIX, Service

Tree = Mapping[str, Any]
GROUP: Final = "gateway.networking.k8s.io"
NOWHERE: Final = Target("")


class Grants:
    """ReferenceGrants: they lie where what is referred to lies."""

    def __init__(self, resources: list[Resource]) -> None:
        self._allowed: set[tuple[str, str, str, str, str, str, str]] = set()
        for each in resources:
            for source in each.spec.get("from", ()):
                for to in each.spec.get("to", ()):
                    who = source["group"], source["kind"], source["namespace"]
                    self._allowed.add((*who, each.meta.namespace, to["group"], to["kind"], to.get("name", "")))

    def allow(self, kind: str, namespace: str, to: tuple[str, str, str, str]) -> bool:
        """`to`: namespace, group, kind, name. Within one namespace nothing has to be granted."""
        where, group, what, name = to
        if where == namespace:
            return True
        return any((GROUP, kind, namespace, where, group, what, each) in self._allowed for each in (name, ""))


class Backends:
    def __init__(self, hosts: Hosts, grants: Grants) -> None:
        self._hosts, self._grants = hosts, grants

    def target(self, ref: Tree, about: Resource) -> Target:
        """Nowhere: it does not exist, is not granted or of a kind that is not known; its share is answered with 500."""
        service = self._service(ref, about)
        port = self._hosts.port(service, ref.get("port", 0)) if service else None
        return Target(service.key, port) if service and port is not None else NOWHERE

    def problem(self, ref: Tree, about: Resource) -> tuple[str, str] | None:
        """Why it is nowhere, as a reason of the condition ResolvedRefs and a sentence."""
        group, kind, name = ref.get("group", ""), ref.get("kind", "Service"), ref["name"]
        where = ref.get("namespace", about.meta.namespace)
        if (group, kind) not in _KINDS:
            return "InvalidKind", f"{group or 'core'}/{kind} {name} cannot be a backend"
        if not self._grants.allow(about.kind, about.meta.namespace, (where, group, kind, name)):
            return (
                "RefNotPermitted",
                f"{kind} {where}/{name} is not granted to {about.meta.namespace} by a ReferenceGrant",
            )
        service = self._service(ref, about)
        if not service:
            return "BackendNotFound", f"{kind} {where}/{name} does not exist"
        if self._hosts.port(service, ref.get("port", 0)) is None:
            return "BackendNotFound", f"{kind} {where}/{name} has no port {ref.get('port')}"
        return None

    def _service(self, ref: Tree, about: Resource) -> Service | None:
        group, kind, name = ref.get("group", ""), ref.get("kind", "Service"), ref["name"]
        where = ref.get("namespace", about.meta.namespace)
        if (group, kind) not in _KINDS:
            return None
        if not self._grants.allow(about.kind, about.meta.namespace, (where, group, kind, name)):
            return None
        if kind == "Hostname":
            return self._hosts.find(name, about.meta.namespace)
        if kind == "ServiceEntry":
            keys = self._hosts.of_entry(where, name)
            return self._hosts.service(keys[0]) if keys else None
        return self._hosts.service(f"{where}/{name}.{where}.{HOSTNAME_SUFFIX}")


# Hostname is Istio's: a service by its host, wherever it lies.
_KINDS: Final = (("", "Service"), ("networking.istio.io", "Hostname"), ("networking.istio.io", "ServiceEntry"))
