"""The world to what node tunnels hold: resources of `istio.workload` and `istio.security`. Pure.

A resource's version is a hash of its content, so a tunnel that reconnects is sent only what differs, also after a
restart of the control plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import compress
from operator import is_not
from types import MappingProxyType
from typing import Final

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Versioned, head_of
from mesh.gen import authorization_pb2 as security
from mesh.gen import workload_pb2 as wire
from mesh.model import (
    AccountMatch,
    Action,
    Comparison,
    Gateway,
    IPNetwork,
    Match,
    Policy,
    Port,
    Service,
    Spread,
    StringMatch,
    Vip,
    Workload,
    World,
)

_AUDIT: Final = "nodemesh/audit"
_EGRESS: Final = "nodemesh/egress-policy"
_OUTBOUND: Final = "nodemesh/outbound-policy"
_SPREAD: Final = "nodemesh/load-balancing"
_SERVICE: Final = "nodemesh/service"
_NOT_SERVICE: Final = "nodemesh/not-service"
_STRINGS: Final = ("namespaces", "principals")
_NETWORKS: Final = ("source_ips", "destination_ips")


Changed = Mapping[str, frozenset[str]]
"""By type URL: names that came, went or have another version."""
# A tunnel that has missed more pushes than this is compared in full.
_REMEMBERED: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Resources:
    """What is pushed of one world: by type URL and name. `history`: earlier ones, each with what changed after it."""

    world: World
    by_type: Mapping[str, Mapping[str, Versioned]]
    mark: object = field(default_factory=object)
    history: tuple[tuple[object, Changed], ...] = ()

    def since(self, earlier: Resources, type_url: str) -> set[str] | None:
        """The names that may differ from `earlier`; None: not known, so all of them."""
        names: set[str] = set()
        if earlier is self:
            return names
        for mark, changed in reversed(self.history):
            names |= changed[type_url]
            if mark is earlier.mark:
                return names
        return None


def translate(world: World, previous: Resources | None = None) -> Resources:
    """Serializes what differs from `previous` and takes the rest from there."""
    old = previous.world if previous else World()
    held = previous.by_type if previous else {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
    workloads = _differing(old.workloads, world.workloads)
    services = _differing(old.services, world.services)
    policies = _differing(old.policies, world.policies)
    addresses, authorizations = dict(held[ADDRESS_TYPE]), dict(held[AUTHORIZATION_TYPE])
    for uid in workloads:
        workload = world.workloads.get(uid)
        # Not started yet: nobody can reach it, but its certificate can be issued.
        reachable = workload and (workload.addresses or workload.hostname)
        _put(addresses, uid, _address(_workload(workload)) if workload and reachable else None)
    for key in services:
        service = world.services.get(key)
        _put(addresses, key, _address(_service(service)) if service else None)
    for key in policies:
        policy = world.policies.get(key)
        _put(authorizations, key, _versioned(AUTHORIZATION_TYPE, _policy(policy)) if policy else None)
    changed = {ADDRESS_TYPE: frozenset((*workloads, *services)), AUTHORIZATION_TYPE: frozenset(policies)}
    return Resources(
        world,
        {ADDRESS_TYPE: MappingProxyType(addresses), AUTHORIZATION_TYPE: MappingProxyType(authorizations)},
        history=(*previous.history[1 - _REMEMBERED :], (previous.mark, changed)) if previous else (),
    )


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Keys that came, changed or went. Mostly it is the same object, and comparing values costs fifty times as much."""
    others = [*compress(new, map(is_not, new.values(), map(old.get, new)))]
    arrived = sum(key not in old for key in others)
    gone = [key for key in old if key not in new] if len(old) + arrived != len(new) else []
    return [*(key for key in others if old.get(key) != new[key]), *gone]


def _put(resources: dict[str, Versioned], name: str, resource: Versioned | None) -> None:
    if resource:
        version, type_url, data = resource.version, resource.type_url, resource.data
        resources[name] = Versioned(version, type_url, data, head_of(name, version, type_url, len(data)))
    else:
        resources.pop(name, None)


def _versioned(type_url: str, message: Message) -> Versioned:
    data = message.SerializeToString(deterministic=True)
    return Versioned(blake2b(data, digest_size=12).hexdigest(), type_url, data)


def _address(message: wire.Workload | wire.Service) -> Versioned:
    if isinstance(message, wire.Workload):
        return _versioned(ADDRESS_TYPE, wire.Address(workload=message))
    return _versioned(ADDRESS_TYPE, wire.Address(service=message))


def _workload(workload: Workload) -> wire.Workload:
    message = wire.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[address.packed for address in workload.addresses],
        hostname=workload.hostname,
        network=workload.network,
        tunnel_protocol=wire.TunnelProtocol.HBONE if workload.hbone else wire.TunnelProtocol.NONE,
        trust_domain=workload.trust_domain,
        service_account=workload.service_account,
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=wire.WorkloadType.Value(workload.workload_type),
        workload_name=workload.workload_name,
        native_tunnel=workload.native_tunnel,
        services=_services(workload),
        authorization_policies=workload.policies,
        status=wire.WorkloadStatus.HEALTHY if workload.healthy else wire.WorkloadStatus.UNHEALTHY,
        cluster_id=workload.cluster_id,
        network_mode=wire.NetworkMode.HOST_NETWORK if workload.host_network else wire.NetworkMode.STANDARD,
        extensions=[_extension(_EGRESS, key) for key in workload.egress_policies],
    )
    if workload.outbound:
        message.extensions.append(_extension(_OUTBOUND, workload.outbound))
    if workload.waypoint:
        message.waypoint.CopyFrom(_gateway(workload.waypoint))
    if workload.network_gateway:
        message.network_gateway.CopyFrom(_gateway(workload.network_gateway))
    if tunnel := workload.application_tunnel:
        protocol = wire.ApplicationTunnel.PROXY if tunnel.proxy else wire.ApplicationTunnel.NONE
        message.application_tunnel.CopyFrom(wire.ApplicationTunnel(protocol=protocol, port=tunnel.port))
    if workload.locality:
        place = workload.locality
        message.locality.CopyFrom(wire.Locality(region=place.region, zone=place.zone, subzone=place.subzone))
    if workload.capacity is not None:
        message.capacity.value = workload.capacity
    return message


def _services(workload: Workload) -> dict[str, wire.PortList]:
    """Services mostly have the same few ports: each list is made once, and copied by the library."""
    made: dict[tuple[Port, ...], wire.PortList] = {}
    found = {}
    for key, ports in workload.services.items():
        if ports not in made:
            made[ports] = wire.PortList(ports=_ports(ports))
        found[key] = made[ports]
    return found


def _ports(ports: Iterable[Port]) -> list[wire.Port]:
    return [
        wire.Port(
            service_port=port.service_port,
            target_port=port.target_port,
            app_protocol=wire.AppProtocol.Value(port.protocol),
        )
        for port in ports
    ]


def _service(service: Service) -> wire.Service:
    message = wire.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=[_vip(vip) for vip in service.vips],
        ports=_ports(service.ports),
        subject_alt_names=service.subject_alt_names,
        ip_families=wire.IPFamilies.Value(service.ip_families),
        canonical=service.canonical,
        visibility=wire.Service.NAMESPACE if service.namespace_only else wire.Service.PUBLIC,
    )
    balancing = service.load_balancing
    if balancing:
        spread = wire.LoadBalancing(
            routing_preference=[wire.LoadBalancing.Scope.Value(scope) for scope in balancing.scopes],
            mode=wire.LoadBalancing.Mode.Value(balancing.mode),
            health_policy=wire.LoadBalancing.ALLOW_ALL
            if balancing.allow_unhealthy
            else wire.LoadBalancing.ONLY_HEALTHY,
        )
        message.load_balancing.CopyFrom(spread)
        if balancing.spread is not Spread.RANDOM:
            message.extensions.append(_extension(_SPREAD, balancing.spread))
    if service.waypoint:
        message.waypoint.CopyFrom(_gateway(service.waypoint))
    for waypoint, weight in service.weighted_waypoints:
        message.weighted_waypoints.add(destination=_gateway(waypoint), weight=weight)
    return message


def _vip(vip: Vip) -> wire.NetworkAddress:
    """A single address travels without a length, as older tunnels expect it."""
    address = wire.NetworkAddress(network=vip.network, address=vip.prefix.network_address.packed)
    if vip.prefix.num_addresses > 1:
        address.length = vip.prefix.prefixlen
    return address


def _extension(name: str, value: str) -> wire.Extension:
    """What Istio's resources have no field for. Another tunnel passes over it."""
    extension = wire.Extension(name=name)
    extension.config.Pack(StringValue(value=value))
    return extension


def _gateway(gateway: Gateway) -> wire.GatewayAddress:
    message = wire.GatewayAddress(hbone_mtls_port=gateway.port)
    if gateway.address:
        message.address.CopyFrom(wire.NetworkAddress(network=gateway.network, address=gateway.address.packed))
    else:
        name = wire.NamespacedHostname(namespace=gateway.namespace, hostname=gateway.hostname)
        message.hostname.CopyFrom(name)
    return message


def _policy(policy: Policy) -> security.Authorization:
    """An AUDIT travels as a dry run, which is what a tunnel that does not know our extension makes of it."""
    audit = policy.action is Action.AUDIT
    return security.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=security.Scope.Value(policy.scope),
        action=security.DENY if audit else security.Action.Value(policy.action),
        rules=[
            security.Rule(clauses=[security.Clause(matches=[_match(match) for match in clause]) for clause in rule])
            for rule in policy.rules
        ],
        dry_run=policy.dry_run or audit,
        extensions=[security.Extension(name=_AUDIT)] if audit else [],
    )


def _match(match: Match) -> security.Match:
    message = security.Match(
        destination_ports=match.destination_ports,
        not_destination_ports=match.not_destination_ports,
        service_accounts=_accounts(match.service_accounts),
        not_service_accounts=_accounts(match.not_service_accounts),
    )
    for name in _STRINGS:
        for attribute in (name, f"not_{name}"):
            getattr(message, attribute).extend(map(_string, getattr(match, attribute)))
    for name in _NETWORKS:
        for attribute in (name, f"not_{name}"):
            getattr(message, attribute).extend(map(_network, getattr(match, attribute)))
    for name, values in ((_SERVICE, match.services), (_NOT_SERVICE, match.not_services)):
        for value in values:
            message.extensions.add(name=name).config.Pack(_string(value))
    return message


def _string(match: StringMatch) -> security.StringMatch:
    message = security.StringMatch()
    if match.comparison is Comparison.PRESENCE:
        message.presence.SetInParent()
    else:
        setattr(message, match.comparison, match.value)
    return message


def _network(network: IPNetwork) -> security.Address:
    return security.Address(address=network.network_address.packed, length=network.prefixlen)


def _accounts(accounts: tuple[AccountMatch, ...]) -> list[security.ServiceAccountMatch]:
    return [security.ServiceAccountMatch(namespace=a.namespace, serviceAccount=a.service_account) for a in accounts]
