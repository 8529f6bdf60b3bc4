"""Istio's networking documents and PeerAuthentication to typed objects. AuthorizationPolicy: `authorization.py`.

An unknown field is a mistake, as in Istio's strict mode. Pure; mistakes are collected in the document's problems.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from controlplane.objects import (
    Endpoint,
    Labels,
    MtlsMode,
    PeerAuthentication,
    Resolution,
    ServiceEntry,
    ServicePort,
    WorkloadEntry,
)
from controlplane.translate.allocation import wants
from controlplane.translate.kubernetes import distribution, meta, spread
from controlplane.validate import Field
from mesh.model import AppProtocol, IPAddress, IPNetwork, LoadBalancing, LoadBalancingMode, Locality

HEADER: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_PROTOCOLS: Final = {
    "HTTP": AppProtocol.HTTP11,
    "HTTP2": AppProtocol.HTTP2,
    "GRPC": AppProtocol.GRPC,
    "GRPC-WEB": AppProtocol.HTTP11,
    "HTTPS": AppProtocol.TLS,
    "TLS": AppProtocol.TLS,
    "TCP": AppProtocol.TCP,
    "MONGO": AppProtocol.TCP,
    "MYSQL": AppProtocol.TCP,
    "REDIS": AppProtocol.TCP,
    "UDP": AppProtocol.UNKNOWN,
}
_ENDPOINT_FIELDS: Final = ("address", "ports", "labels", "network", "locality", "weight", "serviceAccount")
_MAX_WEIGHT: Final = 2**31 - 1


def spec_of(document: Field, *fields: str) -> Field:
    document.only(*HEADER)
    return document.get("spec").only(*fields)


def selector(spec: Field) -> Labels:
    """`selector.matchLabels`; empty selects everything. Wildcards are not part of it."""
    labels = spec.get("selector").only("matchLabels").get("matchLabels")
    for name, value in labels.entries():
        if "*" in name or "*" in value.string():
            value.fail("a selector compares labels exactly, '*' is not allowed")
    return labels.labels()


def workload_entry(document: Field) -> WorkloadEntry:
    spec = spec_of(document, *_ENDPOINT_FIELDS)
    return WorkloadEntry(meta(document), _endpoint(spec.required(), dns=True))


def _endpoint(spec: Field, dns: bool) -> Endpoint:
    """`dns`: the address may be a name, which the tunnel resolves."""
    spec.only(*_ENDPOINT_FIELDS)
    address, hostname = _address_or_name(spec.get("address").required(), dns)
    weight = spec.get("weight")
    return Endpoint(
        address=address,
        hostname=hostname,
        ports={name: port.port() for name, port in spec.get("ports").entries()},
        labels=spec.get("labels").labels(),
        network=spec.get("network").string(),
        locality=_locality(spec.get("locality").string()),
        weight=weight.integer(1, _MAX_WEIGHT) if weight.present else None,
        service_account=spec.get("serviceAccount").name(),
    )


def _address_or_name(value: Field, dns: bool) -> tuple[IPAddress | None, str]:
    text = value.string()
    try:
        return ip_address(text), ""
    except ValueError:
        if text.startswith("unix://"):
            value.fail("Unix sockets are not supported: a tunnel can only reach IP addresses")
        elif not dns:
            value.fail(f"{text!r} is not an IP address, as resolution STATIC requires")
        else:
            value.name()
        return None, text


def _locality(text: str) -> Locality | None:
    region, zone, subzone, *_ = (*text.split("/"), "", "", "")
    return Locality(region, zone, subzone) if text else None


_SERVICE_ENTRY_FIELDS: Final = (
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
)


def service_entry(document: Field) -> ServiceEntry:
    spec = spec_of(document, *_SERVICE_ENTRY_FIELDS).required()
    resolution = Resolution(spec.get("resolution").one_of(Resolution, "NONE"))
    location = spec.get("location").one_of(("MESH_EXTERNAL", "MESH_INTERNAL"), "MESH_EXTERNAL")
    dns = resolution is not Resolution.STATIC
    chosen = spec.get("workloadSelector")
    exported = spec.get("exportTo").strings()
    entry = ServiceEntry(
        meta=meta(document),
        hosts=tuple(_host(host) for host in spec.get("hosts").required().items()),
        addresses=_addresses(spec.get("addresses"), resolution),
        ports=_ports(spec.get("ports")),
        resolution=resolution,
        endpoints=tuple(_endpoint(item, dns) for item in spec.get("endpoints").items()),
        selector=chosen.only("labels").get("labels").labels() if chosen.present else None,
        subject_alt_names=spec.get("subjectAltNames").strings(),
        namespace_only=bool(exported)
        and set(exported) <= {".", "~", document.get("metadata").get("namespace").string()},
        load_balancing=_load_balancing(document, resolution),
        external=location == "MESH_EXTERNAL",
    )
    _check(spec, entry)
    return entry


def _load_balancing(document: Field, resolution: Resolution) -> LoadBalancing | None:
    how, scopes = spread(document), distribution(document)
    if resolution is Resolution.NONE:
        return LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH)
    mode = LoadBalancingMode.FAILOVER if scopes else LoadBalancingMode.UNSPECIFIED
    found = LoadBalancing(scopes, mode, spread=how)
    return found if found != LoadBalancing() else None


def _host(value: Field) -> str:
    text = value.string()
    if "*" in text.removeprefix("*.") or not text:
        value.fail(f"{text!r} is not a host: '*' only stands alone as the first label")
    return text


def _addresses(listed: Field, resolution: Resolution) -> tuple[IPNetwork, ...]:
    networks = []
    for item in listed.items():
        network = item.network()
        if network is None:
            continue
        if network.num_addresses > 1 and resolution not in (Resolution.NONE, Resolution.STATIC):
            item.fail(f"a CIDR range needs resolution NONE or STATIC, not {resolution}")
        networks.append(network)
    return tuple(networks)


def _ports(listed: Field) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for item in listed.items():
        item.only("number", "protocol", "name", "targetPort")
        number = item.get("number").required().port()
        name = item.get("name").required().string()
        target = item.get("targetPort").port() if item.get("targetPort").present else number
        protocol = item.get("protocol")
        _PROTOCOLS.get(kind := protocol.string("TCP").upper()) or protocol.one_of(_PROTOCOLS, "TCP")
        if any(number == other.number for other in ports):
            item.fail(f"port {number} is given twice")
        if any(name == other.name for other in ports):
            item.fail(f"port name {name!r} is given twice")
        ports.append(ServicePort(name, number, target, _PROTOCOLS.get(kind, AppProtocol.UNKNOWN)))
    return tuple(ports)


def _check(spec: Field, entry: ServiceEntry) -> None:
    """What no single field can say."""
    if not entry.hosts and spec.get("hosts").present:
        spec.get("hosts").fail("needs at least one host")
    if entry.endpoints and entry.selector is not None:
        spec.get("workloadSelector").fail("endpoints and workloadSelector exclude each other")
    if entry.endpoints and entry.resolution is Resolution.NONE:
        spec.get("endpoints").fail("resolution NONE goes to the address the client chose: no endpoints allowed")
    if entry.resolution is Resolution.DNS_ROUND_ROBIN and len(entry.endpoints) > 1:
        spec.get("endpoints").fail("resolution DNS_ROUND_ROBIN allows one endpoint")
    by_name = entry.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    if by_name and not entry.endpoints and entry.selector is None and any("*" in host for host in entry.hosts):
        spec.get("hosts").fail(f"resolution {entry.resolution} without endpoints needs full host names")
    if entry.resolution is Resolution.DYNAMIC_DNS:
        spec.get("resolution").warn("DYNAMIC_DNS needs a waypoint: the service gets no endpoints")
    if not entry.addresses and (not wants(entry) or any("*" in host for host in entry.hosts)):
        spec.warn("without addresses no connection can be recognised as going to it (IST0134)")


def peer_authentication(document: Field, root_namespace: str) -> PeerAuthentication:
    spec = spec_of(document, "selector", "mtls", "portLevelMtls")
    chosen = selector(spec)
    listed = spec.get("portLevelMtls")
    policy = PeerAuthentication(
        meta=meta(document),
        selector=chosen,
        mode=_mode(spec.get("mtls")),
        port_modes={_port_key(name, value): _mode(value) for name, value in listed.entries()},
    )
    if listed.present and not chosen:
        listed.fail("needs a selector: a port belongs to a workload")
    if listed.present and not policy.port_modes:
        listed.fail("is empty; leave it out or name at least one port")
    if chosen and policy.meta.namespace == root_namespace:
        spec.get("selector").warn(f"has no effect in the root namespace {root_namespace}")
    return policy


def _mode(mtls: Field) -> MtlsMode:
    return MtlsMode(mtls.only("mode").get("mode").one_of(MtlsMode, "UNSET"))


def _port_key(text: str, value: Field) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        value.fail(f"{text!r} is not a port from 1 to 65535")
        return 0
    return int(text)
