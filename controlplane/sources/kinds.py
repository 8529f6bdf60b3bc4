"""Which kinds of the API the control plane follows, at which versions, and what is kept of each.

`followed` names them in the order of the configuration's kinds; a kind that the cluster has not installed is none.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import field

from kube.objects import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    Object,
    Resource,
    Shape,
    Whole,
)

_ISTIO: Final = ("v1", "v1beta1", "v1alpha3")
_SECURITY: Final = ("v1", "v1beta1")
_NETWORKING: Final = "networking.istio.io"
_GATEWAY_API: Final = "gateway.networking.k8s.io"
# Group, kind, plural, versions: the first that the cluster serves.
_CUSTOM: Final = (
    ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", _SECURITY),
    ("security.istio.io", "PeerAuthentication", "peerauthentications", _SECURITY),
    ("security.istio.io", "RequestAuthentication", "requestauthentications", _SECURITY),
    (_NETWORKING, "VirtualService", "virtualservices", _ISTIO),
    (_NETWORKING, "DestinationRule", "destinationrules", _ISTIO),
    (_NETWORKING, "Gateway", "gateways", _ISTIO),
    (_NETWORKING, "ServiceEntry", "serviceentries", _ISTIO),
    (_NETWORKING, "WorkloadEntry", "workloadentries", _ISTIO),
    (_NETWORKING, "WorkloadGroup", "workloadgroups", _ISTIO),
    (_NETWORKING, "Sidecar", "sidecars", _ISTIO),
    (_NETWORKING, "EnvoyFilter", "envoyfilters", ("v1alpha3",)),
    ("telemetry.istio.io", "Telemetry", "telemetries", ("v1", "v1alpha1")),
    (_GATEWAY_API, "GatewayClass", "gatewayclasses", ("v1", "v1beta1")),
    (_GATEWAY_API, "Gateway", "gateways", ("v1", "v1beta1")),
    (_GATEWAY_API, "HTTPRoute", "httproutes", ("v1", "v1beta1")),
    (_GATEWAY_API, "GRPCRoute", "grpcroutes", ("v1",)),
    (_GATEWAY_API, "TCPRoute", "tcproutes", ("v1", "v1alpha2")),
    (_GATEWAY_API, "TLSRoute", "tlsroutes", ("v1", "v1alpha3", "v1alpha2")),
    (_GATEWAY_API, "ReferenceGrant", "referencegrants", ("v1", "v1beta1")),
    (_GATEWAY_API, "BackendTLSPolicy", "backendtlspolicies", ("v1", "v1alpha3")),
    ("nodemesh.io", "RateLimit", "ratelimits", ("v1", "v1alpha1")),
)


class Certificates(Shape, frozen=True):
    """What a Secret may hold for a gateway, by Kubernetes' names and Istio's."""

    tls_crt: str | None = field(default=None, name="tls.crt")
    tls_key: str | None = field(default=None, name="tls.key")
    ca_crt: str | None = field(default=None, name="ca.crt")
    cert: str | None = None
    key: str | None = None
    cacert: str | None = None


class Secret(Object, frozen=True):
    data: Certificates | None = None


class Settings(Shape, frozen=True):
    """What a ConfigMap may hold for us: the mesh's configuration, or an authority."""

    mesh: str | None = None
    ca_crt: str | None = field(default=None, name="ca.crt")


class ConfigMap(Object, frozen=True):
    data: Settings | None = None


SECRETS: Final = Resource("", "v1", "secrets", "Secret", Secret)
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap", ConfigMap)
Versions = tuple[Resource[Any], ...]
"""One kind, the version that is preferred first."""


def followed(secrets: bool = False) -> list[Versions]:
    """`secrets`: private keys too, which only gateways need."""
    core: list[Resource[Any]] = [NAMESPACES, NODES, PODS, SERVICES, ENDPOINT_SLICES, CONFIG_MAPS]
    return [*((each,) for each in (*core, *([SECRETS] if secrets else []))), *map(_versions, _CUSTOM)]


def _versions(kind: tuple[str, str, str, tuple[str, ...]]) -> Versions:
    group, name, plural, versions = kind
    scoped = name != "GatewayClass"
    return tuple(Resource(group, each, plural, name, Whole, scoped) for each in versions)
