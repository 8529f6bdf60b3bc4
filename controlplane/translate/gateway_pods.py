"""Which proxies serve Istio's Gateways: pods and WorkloadEntries, by the labels that Gateways select. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from controlplane.objects import Labels, Resource
from controlplane.translate.inventory import Inventory, selects

# What names a gateway, the surest first.
NAME_LABELS: Final = ("gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name", "istio", "app")


@dataclass(frozen=True, slots=True)
class GatewayProxy:
    """`labels`: those that its pods have in common."""

    namespace: str
    name: str
    service_account: str
    labels: Labels


def proxies(inventory: Inventory, gateways: list[Resource]) -> list[tuple[GatewayProxy, list[Resource]]]:
    """Each with its Gateways. One without pods yet is of a proxy that is named as its selector says."""
    known = _known(inventory, gateways)
    found: dict[str, tuple[GatewayProxy, list[Resource]]] = {}
    for gateway in gateways:
        selector = gateway.spec.get("selector", {})
        chosen = [each for each in known.values() if selects(selector, each.labels)] or [_expected(gateway, selector)]
        for each in chosen:
            found.setdefault(f"{each.namespace}/{each.name}", (each, []))[1].append(gateway)
    return [found[key] for key in sorted(found)]


def _expected(gateway: Resource, selector: Labels) -> GatewayProxy:
    name = next((selector[label] for label in NAME_LABELS if label in selector), gateway.meta.name)
    return GatewayProxy(gateway.meta.namespace, name, name, selector)


def _known(inventory: Inventory, gateways: list[Resource]) -> dict[str, GatewayProxy]:
    selectors = [gateway.spec.get("selector", {}) for gateway in gateways]
    found: dict[str, GatewayProxy] = {}
    for namespace, account, labels in _members(inventory) if selectors else ():
        name = next((labels[label] for label in NAME_LABELS if label in labels), "")
        if not name or not any(selects(selector, labels) for selector in selectors):
            continue
        before = found.get(f"{namespace}/{name}")
        common = labels if not before else {k: v for k, v in labels.items() if before.labels.get(k) == v}
        found[f"{namespace}/{name}"] = GatewayProxy(namespace, name, account, common)
    return found


def accounts(inventory: Inventory) -> dict[tuple[str, str], str]:
    """Of the pods of the Gateway API's Gateways, by namespace and name."""
    label = NAME_LABELS[0]
    pods = (pod for pod in inventory.pods if label in pod.meta.labels)
    return {(pod.meta.namespace, pod.meta.labels[label]): pod.service_account for pod in pods}


def _members(inventory: Inventory) -> Iterator[tuple[str, str, Labels]]:
    for pod in inventory.pods:
        yield pod.meta.namespace, pod.service_account, pod.meta.labels
    for entry in inventory.workload_entries:
        labels = {**entry.meta.labels, **entry.endpoint.labels}
        yield entry.meta.namespace, entry.endpoint.service_account or "default", labels
