"""Endpoints in other networks: a tunnel inside of one to their network's gateway, which cannot read along. Pure.

Both are asked for the service by its name: which of its endpoints that becomes, the other side decides. So the inner
one may end at any identity that the service names, and a subset has no endpoints there. Connections that differ in one
of these never share a tunnel: all are hashed into the key of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.l7.model import Proxy
from controlplane.l7.routes import Target
from controlplane.translate.envoy import tunnels
from controlplane.translate.envoy.common import HASHABLE, IDENTITY, TUNNELS, Json, authority, filter_state
from controlplane.translate.envoy.world import Member, Serving, View
from mesh.model import Service

# The inner tunnel's listener and cluster; the outer one's listener.
FAR: Final = "far"
BEYOND: Final = "beyond"
_NAMES: Final = "envoy.network.upstream_subject_alt_names"
_DIAL: Final = "envoy.network.transport_socket.original_dst_address"
_HANDED_ON: Final = ("authority", "gateway", "gateway_san")


@dataclass(frozen=True, slots=True)
class Hop:
    """How one endpoint is reached: through whom, and who may be at the end."""

    gateway: Serving
    authority: str
    identities: tuple[str, ...]


def hop(view: View, service: Service | None, target: Target, each: Serving) -> Hop | None:
    """None: it cannot be reached, and must not be dialled as if it were near, where its address may be another's."""
    gateway = view.gateway(each.workload)
    known = service is not None and target.service in view.world.services and not target.subset
    if not known or not service or not gateway or not each.workload.hbone or not service.subject_alt_names:
        return None
    return Hop(gateway, f"{service.hostname}:{target.port}", service.subject_alt_names)


def gateways(view: View, members: tuple[Member, ...]) -> tuple[Serving, ...]:
    """Through which of them some are reached."""
    found = (view.gateway(each.workload) for each in members if view.is_far(each.workload))
    return tuple({(each.workload.uid, each.port): each for each in found if each}.values())


def about(found: Hop) -> Json:
    """Of an endpoint's metadata."""
    address = authority(str(found.gateway.workload.addresses[0]), found.gateway.port)
    return {
        "san": ",".join(found.identities),
        "authority": found.authority,
        "gateway": address,
        "gateway_san": found.gateway.identity,
    }


def inner(proxy: Proxy) -> Json:
    said = {name: f"%DYNAMIC_METADATA({IDENTITY}:{name})%" for name in ("san", *_HANDED_ON)}
    states = [filter_state(_NAMES, said["san"])]
    states += [filter_state(_key(name), said[name], HASHABLE) for name in _HANDED_ON]
    return tunnels.wrapping(FAR, FAR, states, tunnels.connect(proxy, said["authority"]))


def outer(proxy: Proxy) -> Json:
    said = {name: f"%FILTER_STATE({_key(name)}:PLAIN)%" for name in _HANDED_ON}
    states = [filter_state(_NAMES, said["gateway_san"]), filter_state(_DIAL, said["gateway"])]
    return tunnels.wrapping(BEYOND, TUNNELS, states, tunnels.connect(proxy, said["authority"]))


def cluster() -> Json:
    """Of inner tunnels."""
    return {
        **tunnels.internal_cluster(BEYOND, FAR),
        "alt_stat_name": f"{FAR};",
        "connect_timeout": "5s",
        "circuit_breakers": tunnels.unlimited(),
        "typed_extension_protocol_options": tunnels.http2(),
        "transport_socket": tunnels.internal_upstream(tunnels.upstream_tls()),
    }


def _key(name: str) -> str:
    return f"nodemesh.far.{name}"


def endpoint(found: Hop, uid: str) -> Json:
    address = {"server_listener_name": FAR, "endpoint_id": f"{uid}@{found.authority}"}
    return {"address": {"envoy_internal_address": address}}
