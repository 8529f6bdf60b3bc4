"""Istio's Gateways to servers, and the VirtualServices that are bound to them. Pure.

A Gateway is for every proxy whose pods its selector chooses; those of one name are one proxy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

from controlplane.l7.model import Server, ServerTls, ServerTlsMode, VirtualHost
from controlplane.l7.routes import HttpRoute, L4Route
from controlplane.l7.traffic import Credential
from controlplane.objects import Resource
from controlplane.schema.edge import CLEAR
from controlplane.translate.hosts import fqdn, intersection, specificity
from controlplane.translate.virtual_services import Place, VirtualServices, gateway_keys, joined

Tree = Mapping[str, Any]
_VERSIONS: Final = {"TLSV1_0": "TLSv1_0", "TLSV1_1": "TLSv1_1", "TLSV1_2": "TLSv1_2", "TLSV1_3": "TLSv1_3"}
CA_SUFFIX: Final = "-cacert"


def servers(gateway: Resource, namespace: str, all_services: VirtualServices) -> Iterator[Server]:
    """`namespace`: of the proxy, where credentials are looked for."""
    bound = [each for each in all_services.roots if gateway.key in gateway_keys(each)]
    for index, given in enumerate(gateway.spec.get("servers", ())):
        yield _server(gateway, given, index, namespace, _Bound(gateway, bound, all_services, namespace))


class _Bound:
    """The VirtualServices of one Gateway."""

    def __init__(self, gateway: Resource, bound: list[Resource], all_services: VirtualServices, proxy: str) -> None:
        self._gateway, self._all, self._proxy = gateway, all_services, proxy
        self._bound = [each for each in bound if all_services.visible(each, gateway.meta.namespace)]

    def domains(self, given: Tree) -> dict[str, list[Resource]]:
        """Hosts that both the server and VirtualServices name, the oldest of those first."""
        found: dict[str, list[Resource]] = defaultdict(list)
        for each in self._bound:
            for host in each.spec["hosts"]:
                for name in self._common(given, fqdn(host, each.meta.namespace), each.meta.namespace):
                    found[name].append(each)
        return found

    def _common(self, given: Tree, host: str, namespace: str) -> Iterator[str]:
        names = []
        for wanted in given.get("hosts", ()):
            where, _, pattern = wanted.rpartition("/")
            where = self._gateway.meta.namespace if where == "." else where
            both = intersection(pattern.lower(), host)
            if both and where in ("", "*", namespace):
                names.append(both)
        yield from dict.fromkeys(names)

    def routes(self, each: Resource, port: int) -> Iterator[HttpRoute]:
        yield from self._all.http(each, Place(self._gateway.key, self._proxy, port))

    def l4(self, given: Tree, port: int, terminated: bool) -> Iterator[L4Route]:
        seen: set[int] = set()
        domains = self.domains(given)
        for name in sorted(domains, key=specificity, reverse=True):
            for each in domains[name]:
                if id(each) not in seen:
                    seen.add(id(each))
                    for route in self._all.l4(each, Place(self._gateway.key, self._proxy, port)):
                        by_name = any(match.sni for match in route.matches)
                        if not (terminated and by_name) and _for_port(route, port):
                            yield route


def _for_port(route: L4Route, port: int) -> bool:
    return not route.matches or any(match.port in (0, port) for match in route.matches)


def _server(gateway: Resource, given: Tree, index: int, namespace: str, bound: _Bound) -> Server:
    port: Tree = given["port"]
    protocol, number = port["protocol"].upper(), port["number"]
    tls: Tree = given.get("tls", {})
    name = f"{gateway.key}/{given.get('name') or port['name'] or index}"
    secured = _tls(tls, namespace) if protocol in ("HTTPS", "TLS") else None
    passes = secured is not None and secured.mode is ServerTlsMode.PASSTHROUGH
    http = protocol in CLEAR or (protocol == "HTTPS" and not passes)
    bind = given.get("bind", "")
    return Server(
        name=name,
        port=number,
        hosts=tuple(dict.fromkeys(host.rpartition("/")[2].lower() for host in given["hosts"])),
        http=http,
        tls=secured,
        redirect_to_https=tls.get("httpsRedirect", False),
        bind=ip_address(bind) if bind else None,
        virtual_hosts=_virtual_hosts(given, number, bound) if http else (),
        l4=() if http else tuple(bound.l4(given, number, terminated=not passes)),
    )


def _virtual_hosts(given: Tree, port: int, bound: _Bound) -> tuple[VirtualHost, ...]:
    found = []
    for domain, sources in sorted(bound.domains(given).items()):
        routes = joined(route for each in sources for route in bound.routes(each, port))
        if routes:
            found.append(VirtualHost(domain, (domain,), routes))
    return tuple(found)


def _tls(tls: Tree, namespace: str) -> ServerTls:
    mode = tls.get("mode", "SIMPLE" if set(tls) - {"httpsRedirect"} else "PASSTHROUGH")
    if mode == "AUTO_PASSTHROUGH":
        mode = "PASSTHROUGH"
    found = ServerTlsMode(mode)
    names = [name if "/" in name else f"{namespace}/{name}" for name in _credential_names(tls)]
    files = tls.get("tlsCertificates") or ([tls] if tls.get("serverCertificate") else [])
    return ServerTls(
        mode=found,
        credentials=(
            *(Credential(secret=name) for name in names),
            *(Credential(chain_file=each["serverCertificate"], key_file=each.get("privateKey", "")) for each in files),
        ),
        client_ca=_client_ca(tls, names, namespace) if "MUTUAL" in mode and mode != "ISTIO_MUTUAL" else None,
        subject_alt_names=tuple(tls.get("subjectAltNames", ())),
        minimum=_VERSIONS.get(tls.get("minProtocolVersion", ""), ""),
        maximum=_VERSIONS.get(tls.get("maxProtocolVersion", ""), ""),
        ciphers=tuple(tls.get("cipherSuites", ())),
    )


def _credential_names(tls: Tree) -> list[str]:
    return [*([tls["credentialName"]] if tls.get("credentialName") else ()), *tls.get("credentialNames", ())]


def _client_ca(tls: Tree, names: list[str], namespace: str) -> Credential:
    """Of a credential: the same Secret's, or that of the Secret beside it (`-cacert`); `secrets.py` settles that."""
    if named := tls.get("caCertCredentialName"):
        return Credential(secret=named if "/" in named else f"{namespace}/{named}")
    return Credential(secret=names[0] + CA_SUFFIX) if names else Credential(ca_file=tls.get("caCertificates", ""))
