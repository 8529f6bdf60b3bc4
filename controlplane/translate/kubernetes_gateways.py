"""Gateways of the Gateway API (no waypoints) to servers: listeners, TLS, virtual hosts. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.l7.model import Server, ServerTls, ServerTlsMode, VirtualHost
from controlplane.l7.routes import L4Match, L4Route
from controlplane.l7.traffic import Credential
from controlplane.objects import KubernetesGateway, Resource
from controlplane.translate import gateway_routes
from controlplane.translate.backends import Backends
from controlplane.translate.gateway_routes import Ranked
from controlplane.translate.listeners import Listeners
from controlplane.translate.parents import Parents

Tree = Mapping[str, Any]
_CLEAR_HTTP = "HTTP"


class KubernetesGateways:
    """`listeners`: says which of them are served."""

    def __init__(self, parents: Parents, backends: Backends, listeners: Listeners, mesh: Tree) -> None:
        self._parents, self._backends, self._listeners, self._mesh = parents, backends, listeners, mesh

    def servers(self, gateway: KubernetesGateway) -> tuple[Server, ...]:
        """Listeners for HTTP without TLS that share a port become one server: only the Host tells them apart."""
        clear: dict[int, dict[str, list[Ranked]]] = defaultdict(lambda: defaultdict(list))
        found: list[Server] = []
        for listener in self._listeners.served(gateway):
            if listener["protocol"] == _CLEAR_HTTP:
                for domain, routes in self._domains(gateway, listener).items():
                    clear[listener["port"]][domain] += routes
            else:
                found.append(self._server(gateway, listener))
        for port, domains in clear.items():
            found.append(Server(f"http-{port}", port, virtual_hosts=_virtual_hosts(domains)))
        return tuple(sorted(found, key=lambda each: (each.port, each.name)))

    def _routes(self, gateway: KubernetesGateway, listener: Tree) -> list[tuple[Resource, tuple[str, ...]]]:
        return self._parents.of_listener.get((gateway.meta.namespace, gateway.meta.name, listener["name"]), [])

    def _domains(self, gateway: KubernetesGateway, listener: Tree) -> dict[str, list[Ranked]]:
        domains: dict[str, list[Ranked]] = defaultdict(list)
        for each, names in self._routes(gateway, listener):
            routes = list(gateway_routes.http(each, self._backends, self._mesh))
            for name in names:
                domains[name] += routes
        return domains

    def _server(self, gateway: KubernetesGateway, listener: Tree) -> Server:
        name, port, hostname = listener["name"], listener["port"], listener.get("hostname", "")
        tls = self._tls(gateway, listener) if "tls" in listener else None
        if listener["protocol"] == "HTTPS":
            hosts = _virtual_hosts(self._domains(gateway, listener))
            return Server(name, port, (hostname or "*",), tls=tls, virtual_hosts=hosts)
        routes = tuple(self._l4(gateway, listener))
        return Server(name, port, (hostname or "*",), http=False, tls=tls, l4=routes)

    def _l4(self, gateway: KubernetesGateway, listener: Tree) -> Iterator[L4Route]:
        """The oldest route wins where two are for one name."""
        for each, names in self._routes(gateway, listener):
            match = L4Match(sni=names) if listener["protocol"] == "TLS" and names != ("*",) else L4Match()
            for route in gateway_routes.l4(each, self._backends):
                yield L4Route(route.name, route.shares, () if match == L4Match() else (match,))

    def _tls(self, gateway: KubernetesGateway, listener: Tree) -> ServerTls:
        tls: Tree = listener["tls"]
        if tls.get("mode") == "Passthrough":
            return ServerTls(ServerTlsMode.PASSTHROUGH)
        own = gateway.meta.namespace
        refs: list[Tree] = tls.get("certificateRefs", [])
        found = tuple(Credential(secret=f"{ref.get('namespace', own)}/{ref['name']}") for ref in refs)
        authority, demanded = _frontend(gateway, listener["port"])
        mode = ServerTlsMode.SIMPLE
        if authority:
            mode = ServerTlsMode.MUTUAL if demanded else ServerTlsMode.OPTIONAL_MUTUAL
        return ServerTls(mode, found, client_ca=authority)


def _frontend(gateway: KubernetesGateway, port: int) -> tuple[Credential | None, bool]:
    """What clients' certificates are checked against, and whether there must be one."""
    frontend: Tree = gateway.spec.get("tls", {}).get("frontend", {})
    special = [each["tls"] for each in frontend.get("perPort", ()) if each["port"] == port]
    validation: Tree = (special[0] if special else frontend.get("default", {})).get("validation", {})
    for ref in validation.get("caCertificateRefs", ()):
        name = authority(ref.get("kind", "ConfigMap"), ref.get("namespace", gateway.meta.namespace), ref["name"])
        return Credential(secret=name), validation.get("mode") != "AllowInsecureFallback"
    return None, False


def authority(kind: str, namespace: str, name: str) -> str:
    """Under which name a certificate authority goes in `L7.secrets`."""
    return f"{namespace}/{name}" if kind == "Secret" else f"configmap:{namespace}/{name}"


def _virtual_hosts(domains: Mapping[str, list[Ranked]]) -> tuple[VirtualHost, ...]:
    return tuple(
        VirtualHost(name=domain, domains=(domain,), routes=gateway_routes.ordered(routes))
        for domain, routes in sorted(domains.items())
    )
