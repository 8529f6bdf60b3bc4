"""A config dump as the resources it was made from, so that a core can decide over it again. Pure.

Reads our dumps and those that Istio's ztunnel writes: lists or maps, `Healthy` or `HEALTHY`. What a dump does not hold
(extensions other than ours) does not come back; certificates and connections are nobody's resource.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.errors import OperatorError
from mesh.gen import authorization_pb2 as security
from mesh.gen import workload_pb2 as workload

Json = Mapping[str, Any]
Named = list[tuple[str, bytes]]

_SCOPES: Final = {
    "Global": security.GLOBAL,
    "Namespace": security.NAMESPACE,
    "WorkloadSelector": security.WORKLOAD_SELECTOR,
}
_STRINGS: Final = ("namespaces", "notNamespaces", "principals", "notPrincipals")
_RANGES: Final = ("sourceIps", "notSourceIps", "destinationIps", "notDestinationIps")
_PORTS: Final = ("destinationPorts", "notDestinationPorts")
_SERVICES: Final = {"services": "nodemesh/service", "notServices": "nodemesh/not-service"}
_ACCOUNTS: Final = ("serviceAccounts", "notServiceAccounts")
_SPREADS: Final = {"LeastRequest": "least-request", "ClientAddress": "client-address"}
_BALANCING_MODES: Final = {"Strict": "STRICT", "Failover": "FAILOVER", "Passthrough": "PASSTHROUGH"}
_FAMILIES: Final = {"IPv4": "IPV4_ONLY", "IPv6": "IPV6_ONLY", "Dual": "DUAL"}


def resources(dump: Json) -> dict[str, Named]:
    """By type URL: (name, serialized message). Raises OperatorError that names the object."""
    addresses = [*_each(dump, "workloads", _workload), *_each(dump, "services", _service)]
    return {ADDRESS_TYPE: addresses, AUTHORIZATION_TYPE: _each(dump, "policies", _policy)}


def _each(dump: Json, key: str, read: Any) -> Named:
    found = dump.get(key) or []
    entries: Iterable[Json] = found.values() if isinstance(found, Mapping) else found
    read_ones: Named = []
    for entry in entries:
        try:
            name, message = read(entry)
            read_ones.append((name, message.SerializeToString()))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            who = f"{entry.get('namespace')}/{entry.get('name')}" if isinstance(entry, Mapping) else str(entry)[:60]
            raise OperatorError(f"{key}: {who} cannot be read back: {error!r}") from None
    return read_ones


def _workload(entry: Json) -> tuple[str, Message]:
    locality = entry.get("locality") or {}
    made = workload.Workload(
        uid=entry["uid"],
        name=entry["name"],
        namespace=entry["namespace"],
        addresses=[ip_address(ip).packed for ip in entry.get("workloadIps") or []],
        hostname=entry.get("hostname") or "",
        network=entry.get("network") or "",
        tunnel_protocol=workload.HBONE if entry.get("protocol") == "HBONE" else workload.NONE,
        trust_domain=entry.get("trustDomain") or "",
        service_account=entry.get("serviceAccount") or "",
        node=entry.get("node") or "",
        canonical_name=entry.get("canonicalName") or "",
        canonical_revision=entry.get("canonicalRevision") or "",
        workload_type=_workload_type(entry.get("workloadType")),
        workload_name=entry.get("workloadName") or "",
        native_tunnel=bool(entry.get("nativeTunnel")),
        authorization_policies=list(entry.get("authorizationPolicies") or []),
        status=workload.HEALTHY if _healthy(entry) else workload.UNHEALTHY,
        cluster_id=entry.get("clusterId") or "",
        locality=workload.Locality(**{part: locality.get(part) or "" for part in ("region", "zone", "subzone")}),
        network_mode=workload.HOST_NETWORK if entry.get("networkMode") == "HostNetwork" else workload.STANDARD,
        services={key: workload.PortList(ports=_ports(of)) for key, of in _port_lists(entry.get("services")).items()},
    )
    if (capacity := entry.get("capacity")) is not None:
        made.capacity.value = capacity
    if tunnel := entry.get("applicationTunnel"):
        made.application_tunnel.port = tunnel.get("port") or 0
        made.application_tunnel.protocol = workload.ApplicationTunnel.Protocol.Value(tunnel.get("protocol") or "NONE")
    if outbound := entry.get("outboundPolicy"):
        made.extensions.add(name="nodemesh/outbound-policy").config.Pack(StringValue(value=outbound))
    for policy in entry.get("egressPolicies") or []:
        made.extensions.add(name="nodemesh/egress-policy").config.Pack(StringValue(value=policy))
    _gateways(made, entry, waypoint="waypoint", network_gateway="networkGateway")
    return made.uid, workload.Address(workload=made)


def _service(entry: Json) -> tuple[str, Message]:
    balancing = entry.get("loadBalancer") or {}
    made = workload.Service(
        name=entry["name"],
        namespace=entry["namespace"],
        hostname=entry["hostname"],
        addresses=[_vip(vip) for key in ("vips", "cidrVips") for vip in entry.get(key) or []],
        ports=_ports(entry.get("ports")),
        subject_alt_names=list(entry.get("subjectAltNames") or []),
        canonical=bool(entry.get("canonical")),
    )
    if mode := _BALANCING_MODES.get(balancing.get("mode", "")):
        made.load_balancing.mode = workload.LoadBalancing.Mode.Value(mode)
    for scope in balancing.get("routingPreferences") or []:
        made.load_balancing.routing_preference.append(workload.LoadBalancing.Scope.Value(scope.upper()))
    if spread := _SPREADS.get(balancing.get("spread") or ""):
        made.extensions.add(name="nodemesh/load-balancing").config.Pack(StringValue(value=spread))
    if balancing.get("healthPolicy") == "AllowAll":
        made.load_balancing.health_policy = workload.LoadBalancing.ALLOW_ALL
    if families := _FAMILIES.get(entry.get("ipFamilies") or ""):
        made.ip_families = workload.IPFamilies.Value(families)
    if entry.get("visibility") == "Namespace":
        made.visibility = workload.Service.NAMESPACE
    for weighted in entry.get("weightedWaypoints") or []:
        destination = _gateway(weighted["destination"])
        made.weighted_waypoints.add(destination=destination, weight=weighted.get("weight") or 0)
    _gateways(made, entry, waypoint="waypoint")
    return f"{made.namespace}/{made.hostname}", workload.Address(service=made)


def _policy(entry: Json) -> tuple[str, Message]:
    made = security.Authorization(
        name=entry["name"],
        namespace=entry.get("namespace") or "",
        scope=_SCOPES[entry["scope"]],
        action=security.ALLOW if (action := str(entry["action"]).upper()) == "ALLOW" else security.DENY,
        dry_run=bool(entry.get("dryRun")) or action == "AUDIT",
        extensions=[security.Extension(name="nodemesh/audit")] if action == "AUDIT" else [],
    )
    for clauses in entry.get("rules") or []:
        rule = made.rules.add()
        for matches in clauses:
            rule.clauses.add(matches=[_match(match) for match in matches])
    return f"{made.namespace}/{made.name}" if made.namespace else made.name, made


def _match(entry: Json) -> security.Match:
    made = security.Match()
    for key in _STRINGS:
        getattr(made, _snake(key)).extend(_text(text) for text in entry.get(key) or [])
    for key in _RANGES:
        getattr(made, _snake(key)).extend(_range(text) for text in entry.get(key) or [])
    for key in _PORTS:
        getattr(made, _snake(key)).extend(entry.get(key) or [])
    for key in _ACCOUNTS:
        for account in entry.get(key) or []:
            names = {"namespace": account["namespace"], "serviceAccount": account["serviceAccount"]}
            getattr(made, _snake(key)).add(**names)
    for key, name in _SERVICES.items():
        for text in entry.get(key) or []:
            made.extensions.add(name=name).config.Pack(_text(text))
    return made


def _text(entry: Json) -> security.StringMatch:
    ((kind, value),) = entry.items()
    if kind == "Presence":
        made = security.StringMatch()
        made.presence.SetInParent()
        return made
    return security.StringMatch(**{kind.lower(): value})


def _range(text: str) -> security.Address:
    found = ip_network(text, strict=False)
    return security.Address(address=found.network_address.packed, length=found.prefixlen)


def _vip(text: str) -> workload.NetworkAddress:
    """`NETWORK/IP` or `NETWORK/IP/PREFIX`; the network may be empty."""
    network, _, address = text.partition("/")
    ip, slash, length = address.partition("/")
    made = workload.NetworkAddress(network=network, address=ip_address(ip).packed)
    if slash:
        made.length = int(length)
    return made


def _gateways(made: Any, entry: Json, **keys: str) -> None:
    for field, key in keys.items():
        if entry.get(key):
            getattr(made, field).CopyFrom(_gateway(entry[key]))


def _gateway(entry: Json) -> workload.GatewayAddress:
    destination = str(entry["destination"])
    made = workload.GatewayAddress(hbone_mtls_port=entry.get("hboneMtlsPort") or 0)
    first, _, rest = destination.partition("/")
    try:
        made.address.CopyFrom(workload.NetworkAddress(network=first, address=ip_address(rest).packed))
    except ValueError:
        made.hostname.CopyFrom(workload.NamespacedHostname(namespace=first, hostname=rest))
    return made


def _port_lists(of: Json | None) -> Json:
    return of or {}


def _ports(of: Any) -> list[workload.Port]:
    return [workload.Port(service_port=int(port), target_port=target or 0) for port, target in (of or {}).items()]


def _workload_type(text: str | None) -> workload.WorkloadType.ValueType:
    """Whatever else a newer writer says is only a label."""
    try:
        return workload.WorkloadType.Value((text or "").upper())
    except ValueError:
        return workload.DEPLOYMENT


def _healthy(entry: Json) -> bool:
    return str(entry.get("status", "Healthy")).upper() == "HEALTHY"


def _snake(key: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in key)
