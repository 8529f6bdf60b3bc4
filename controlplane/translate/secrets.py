"""Certificates and keys that gateways and destinations name, and nobody else's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.l7.model import Proxy, Secret
from controlplane.l7.traffic import Credential, Destination, Traffic
from controlplane.translate.inventory import Inventory
from controlplane.translate.istio_gateways import CA_SUFFIX

_CA_KEY = "ca.crt"


class Secrets:
    def __init__(self, inventory: Inventory) -> None:
        self._all = {
            f"{each.meta.namespace}/{each.meta.name}": Secret(each.chain, each.key, each.ca)
            for each in inventory.secrets
        }
        for each in inventory.resources("ConfigMap"):
            if each.spec.get(_CA_KEY):
                self._all[f"configmap:{each.key}"] = Secret(ca=each.spec[_CA_KEY])
        for name, secret in list(self._all.items()):
            if secret.ca:  # where Istio looks for it in a Secret of its own
                self._all.setdefault(name + CA_SUFFIX, Secret(ca=secret.ca))

    @property
    def names(self) -> set[str]:
        return set(self._all)

    def used(self, proxies: Iterable[Proxy], destinations: Iterable[Destination]) -> dict[str, Secret]:
        named = {each.secret for each in (*_of_proxies(proxies), *_of_destinations(destinations)) if each.secret}
        return {name: self._all[name] for name in sorted(named) if name in self._all}


def _of_proxies(proxies: Iterable[Proxy]) -> Iterator[Credential]:
    for proxy in proxies:
        yield from _of_destinations(proxy.destinations.values())
        for server in proxy.servers:
            if server.tls:
                yield from server.tls.credentials
                yield from [server.tls.client_ca] if server.tls.client_ca else ()


def _of_destinations(destinations: Iterable[Destination]) -> Iterator[Credential]:
    for each in destinations:
        subsets = each.subsets.values()
        traffics = [each.traffic, *each.ports.values(), *(s.traffic for s in subsets)]
        for traffic in (*traffics, *(port for s in subsets for port in s.ports.values())):
            yield from _of_traffic(traffic)


def _of_traffic(traffic: Traffic) -> Iterator[Credential]:
    if traffic.tls:
        yield from (each for each in (traffic.tls.ca, traffic.tls.client) if each)
