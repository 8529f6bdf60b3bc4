"""Whose a Gateway is: its class says which controller it is for, and what is another's is not looked at. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.objects import KubernetesGateway, Resource

CONTROLLER: Final = "nodemesh.io/controlplane"
"""As a route's `status.parents` names who has judged it."""
# Istio's names for what we do in its place: a cluster has the one or the other.
_ISTIO: Final = ("gateway-controller", "mesh-controller", "unmanaged-gateway", "eastwest-controller")
OURS: Final = frozenset((CONTROLLER, *(f"istio.io/{each}" for each in _ISTIO)))
_BUILT_IN: Final = frozenset(("nodemesh", "istio", "istio-waypoint", "istio-remote", "istio-east-west"))


class Classes:
    """`shared`: others' objects may be among ours; then a class without a document is nobody's, but for the built-in
    ones. In files of our own every class is ours unless a document gives it to somebody else."""

    def __init__(self, documents: Iterable[Resource], shared: bool) -> None:
        self._controllers = {each.meta.name: each.spec.get("controllerName", "") for each in documents}
        self._shared = shared

    def ours(self, name: str) -> bool:
        if (controller := self._controllers.get(name)) is not None:
            return controller in OURS
        return name in _BUILT_IN or not self._shared

    def own(self, gateways: Iterable[KubernetesGateway]) -> list[KubernetesGateway]:
        return [each for each in gateways if self.ours(each.gateway_class)]
