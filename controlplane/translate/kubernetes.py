"""Kubernetes documents to typed objects: Namespace, Node, ServiceAccount, Pod, Service, EndpointSlice.

Reads what the mesh needs and ignores the rest, since the API server owns these schemas. Pure; mistakes are collected in
the document's problems.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from controlplane.objects import (
    EndpointSlice,
    KubernetesGateway,
    KubernetesService,
    Meta,
    Namespace,
    Node,
    Owner,
    Pod,
    ServiceAccount,
    ServicePort,
    SliceEndpoint,
)
from controlplane.validate import Field
from mesh.model import (
    AppProtocol,
    IPAddress,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    OutboundPolicy,
    Spread,
)

PHASES: Final = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
TRAFFIC_DISTRIBUTION: Final = "networking.istio.io/traffic-distribution"
SPREAD: Final = "nodemesh.io/load-balancing"
OUTBOUND: Final = "nodemesh.io/outbound-policy"
HBONE_PORT: Final = 15008
_NEAR: Final = (LoadBalancingScope.NETWORK, LoadBalancingScope.REGION, LoadBalancingScope.ZONE)
_DISTRIBUTION: Final = {
    "PreferClose": _NEAR,
    "PreferSameZone": _NEAR,
    "PreferSameNode": (*_NEAR, LoadBalancingScope.SUBZONE, LoadBalancingScope.NODE),
}
# appProtocol and, in the first part of a port's name, Istio's convention.
PROTOCOLS: Final = {
    "http": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "tcp": AppProtocol.TCP,
    "tls": AppProtocol.TLS,
    "https": AppProtocol.TLS,
    "kubernetes.io/wss": AppProtocol.TLS,
}


def meta(document: Field, namespaced: bool = True) -> Meta:
    metadata = document.get("metadata")
    return Meta(
        name=metadata.get("name").string(),
        namespace=metadata.get("namespace").string("default") if namespaced else "",
        labels=metadata.get("labels").labels(),
        annotations=metadata.get("annotations").labels(),
        created=metadata.get("creationTimestamp").string(),
    )


def namespace(document: Field) -> Namespace:
    word = document.get("metadata").get("annotations").get(OUTBOUND)
    outbound = OutboundPolicy(word.one_of([each for each in OutboundPolicy if each], OutboundPolicy.UNSET))
    return Namespace(meta(document, namespaced=False), outbound)


def node(document: Field) -> Node:
    return Node(meta(document, namespaced=False))


def service_account(document: Field) -> ServiceAccount:
    return ServiceAccount(meta(document))


def pod(document: Field) -> Pod:
    spec, status = document.get("spec"), document.get("status")
    going = document.get("metadata").get("deletionTimestamp").present
    return Pod(
        meta=meta(document),
        owner=_owner(document.get("metadata").get("ownerReferences")),
        node=spec.get("nodeName").name(),
        service_account=spec.get("serviceAccountName").name() or "default",
        host_network=spec.get("hostNetwork").boolean(),
        ports=_container_ports(spec),
        phase=status.get("phase").one_of(PHASES, "Running" if status.get("podIP").present else "Pending"),
        ips=_pod_ips(status),
        ready=not going and _ready(status.get("conditions")),
    )


def _owner(references: Field) -> Owner | None:
    for reference in references.items():
        if reference.get("controller").boolean():
            return Owner(reference.get("kind").string(), reference.get("name").string())
    return None


def _container_ports(spec: Field) -> dict[str, int]:
    """Of the containers, and of the init containers that go on running. The first of a name counts."""
    sidecars = (c for c in spec.get("initContainers").items() if c.get("restartPolicy").string() == "Always")
    ports: dict[str, int] = {}
    for container in (*spec.get("containers").items(), *sidecars):
        for port in container.get("ports").items():
            number, name = port.get("containerPort").required().port(), port.get("name").string()
            if name and _is_tcp(port):
                ports.setdefault(name, number)
    return ports


def _is_tcp(port: Field) -> bool:
    return port.get("protocol").one_of(("TCP", "UDP", "SCTP"), "TCP") == "TCP"


def _pod_ips(status: Field) -> tuple[IPAddress, ...]:
    listed = [status.get("podIP").address(), *(item.get("ip").address() for item in status.get("podIPs").items())]
    return _unique(listed)


def _unique(addresses: Iterable[IPAddress | None]) -> tuple[IPAddress, ...]:
    return tuple(dict.fromkeys(address for address in addresses if address))


def _ready(conditions: Field) -> bool:
    for condition in conditions.items():
        if condition.get("type").string() == "Ready":
            return condition.get("status").one_of(("True", "False", "Unknown"), "True") == "True"
    return True


def service(document: Field) -> KubernetesService:
    spec = document.get("spec")
    kind = spec.get("type").one_of(("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"), "ClusterIP")
    return KubernetesService(
        meta=meta(document),
        selector=spec.get("selector").labels(),
        cluster_ips=_cluster_ips(spec),
        ports=_service_ports(spec.get("ports")),
        load_balancing=_load_balancing(document, spec),
        ip_families=_ip_families(spec.get("ipFamilies")),
        external_name=kind == "ExternalName",
    )


def _cluster_ips(spec: Field) -> tuple[IPAddress, ...]:
    listed = [spec.get("clusterIP"), *spec.get("clusterIPs").items()]
    return _unique(item.address() for item in listed if item.string() not in ("", "None"))


def _service_ports(listed: Field) -> tuple[ServicePort, ...]:
    ports: dict[int, ServicePort] = {}
    for item in listed.items():
        number = item.get("port").required().port()
        if not _is_tcp(item):
            continue
        if number in ports:
            item.fail(f"port {number} is given twice")
        name = item.get("name").string()
        ports[number] = ServicePort(name, number, _target(item.get("targetPort"), number), _protocol(item, name))
    return tuple(ports.values())


def _target(value: Field, default: int) -> int | str:
    """A number, or a container port's name."""
    if not value.present:
        return default
    text = str(value.node.value) if value.node is not None else ""
    return value.port() if text.isdecimal() else value.label()


def _protocol(port: Field, name: str) -> AppProtocol:
    given = port.get("appProtocol").string()
    return PROTOCOLS.get(given or name.partition("-")[0], AppProtocol.UNKNOWN)


def _load_balancing(document: Field, spec: Field) -> LoadBalancing | None:
    """A node-local traffic policy is a promise, and goes before a preference."""
    sticky = spec.get("sessionAffinity").one_of(("None", "ClientIP"), "None") == "ClientIP"
    found = LoadBalancing(
        allow_unhealthy=spec.get("publishNotReadyAddresses").boolean(),
        spread=spread(document, Spread.CLIENT_ADDRESS if sticky else Spread.RANDOM),
    )
    if spec.get("internalTrafficPolicy").one_of(("Cluster", "Local"), "Cluster") == "Local":
        found = replace(found, scopes=(LoadBalancingScope.NODE,), mode=LoadBalancingMode.STRICT)
    elif preference := distribution(document, spec.get("trafficDistribution")):
        found = replace(found, scopes=preference, mode=LoadBalancingMode.FAILOVER)
    return found if found != LoadBalancing() else None


def spread(document: Field, default: Spread = Spread.RANDOM) -> Spread:
    return Spread(document.get("metadata").get("annotations").get(SPREAD).one_of(Spread, default))


def distribution(document: Field, field: Field | None = None) -> tuple[LoadBalancingScope, ...]:
    """The annotation goes before the field."""
    wanted = document.get("metadata").get("annotations").get(TRAFFIC_DISTRIBUTION)
    if field and not wanted.present:
        wanted = field
    return _DISTRIBUTION.get(wanted.one_of(_DISTRIBUTION, ""), ())


def _ip_families(listed: Field) -> IPFamilies:
    families = {item.one_of(("IPv4", "IPv6"), "IPv4") for item in listed.items()}
    if not families:
        return IPFamilies.AUTOMATIC
    if len(families) == 2:
        return IPFamilies.DUAL
    return IPFamilies.IPV4_ONLY if "IPv4" in families else IPFamilies.IPV6_ONLY


def gateway(document: Field) -> KubernetesGateway:
    """Of the Gateway API: waypoints, and other networks' gateways."""
    spec, status = document.get("spec"), document.get("status")
    listed = status.get("addresses").items() or spec.get("addresses").items()
    kinds = [(item, item.get("type").string("IPAddress")) for item in listed]
    ports = [item.get("port") for item in spec.get("listeners").items() if item.get("protocol").string() == "HBONE"]
    return KubernetesGateway(
        meta=meta(document),
        gateway_class=spec.get("gatewayClassName").required().string(),
        addresses=_unique(item.get("value").address() for item, kind in kinds if kind == "IPAddress"),
        hostnames=tuple(item.get("value").string() for item, kind in kinds if kind == "Hostname"),
        port=ports[0].port() if ports else HBONE_PORT,
    )


def endpoint_slice(document: Field) -> EndpointSlice:
    labels = document.get("metadata").get("labels")
    family = document.get("addressType").one_of(("IPv4", "IPv6", "FQDN"), "IPv4")
    if family == "FQDN":
        document.get("addressType").warn("FQDN endpoints are not used: write a ServiceEntry with resolution DNS")
    ports: dict[str, int] = {}
    for port in document.get("ports").items():
        if _is_tcp(port):
            ports[port.get("name").string()] = port.get("port").required().port()
    return EndpointSlice(
        meta=meta(document),
        service=labels.get(SERVICE_NAME_LABEL).required().string(),
        ports=ports,
        endpoints=() if family == "FQDN" else tuple(map(_endpoint, document.get("endpoints").items())),
    )


def _endpoint(item: Field) -> SliceEndpoint:
    target = item.get("targetRef")
    return SliceEndpoint(
        addresses=_unique(address.address() for address in item.get("addresses").items()),
        ready=item.get("conditions").get("ready").boolean(default=True),
        pod=target.get("name").string() if target.get("kind").string() == "Pod" else "",
        node=item.get("nodeName").string(),
        zone=item.get("zone").string(),
    )
