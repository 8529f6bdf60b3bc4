"""Documents to resources: which kinds are read by the tables, and the three that carry something else in them: Secret,
ConfigMap and, in one, the mesh's configuration."""

from __future__ import annotations

import base64
import binascii
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from controlplane.documents import ISTIO_GATEWAY
from controlplane.objects import KubernetesGateway, Resource, Secret
from controlplane.schema import edge, gateway_api, traffic
from controlplane.schema.decode import decode
from controlplane.schema.outline import Kind, kinds
from controlplane.schema.rules import CHECKS
from controlplane.translate import kubernetes
from controlplane.translate.kubernetes import meta
from controlplane.validate import Field

RULES: Final = (traffic, edge, gateway_api)  # their import registers them
_HEADER: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_NETWORKING: Final = "networking.istio.io"
_GATEWAY_API: Final = "gateway.networking.k8s.io"
# By the name under which a document goes in the configuration.
KINDS: Final = {
    "VirtualService": _NETWORKING,
    "DestinationRule": _NETWORKING,
    ISTIO_GATEWAY: _NETWORKING,
    "Sidecar": _NETWORKING,
    "WorkloadGroup": _NETWORKING,
    "EnvoyFilter": _NETWORKING,
    "RequestAuthentication": "security.istio.io",
    "Telemetry": "telemetry.istio.io",
    "GatewayClass": _GATEWAY_API,
    "HTTPRoute": _GATEWAY_API,
    "GRPCRoute": _GATEWAY_API,
    "TCPRoute": _GATEWAY_API,
    "TLSRoute": _GATEWAY_API,
    "ReferenceGrant": _GATEWAY_API,
    "BackendTLSPolicy": _GATEWAY_API,
    "RateLimit": "nodemesh.io",
}
MESH_CONFIG: Final = "MeshConfig"
MESH_CONFIG_NAME: Final = "istio"
CA_KEY: Final = "ca.crt"
_SECRET_KEYS: Final = {
    "chain": ("tls.crt", "cert"),
    "key": ("tls.key", "key"),
    "ca": ("ca.crt", "cacert"),
}
Reader = Callable[[Field], Any]


def readers(root_namespace: str) -> dict[str, tuple[tuple[str, ...], Reader]]:
    """By kind: the versions that are served, and what reads a document of it."""
    found: dict[str, tuple[tuple[str, ...], Reader]] = {}
    for name, group in KINDS.items():
        kind = kinds()[group, name.partition(".")[0]]
        found[name] = kind.versions, partial(resource, kind=kind, called=name)
    found["Gateway"] = kinds()[_GATEWAY_API, "Gateway"].versions, gateway
    found["Secret"] = ("v1",), secret
    found["ConfigMap"] = ("v1",), partial(config_map, root_namespace=root_namespace)
    return found


def resource(document: Field, kind: Kind, called: str) -> Resource:
    document.only(*_HEADER)
    spec = document.get("spec")
    if kind.spec.fields and not spec.present and any(each.required for each in kind.spec.fields.values()):
        spec.required()
    return Resource(called, meta(document, called != "GatewayClass"), spec_of(spec, kind))


def gateway(document: Field) -> KubernetesGateway:
    """The Gateway API's, a waypoint too."""
    document.only(*_HEADER)
    kind = kinds()[_GATEWAY_API, "Gateway"]
    return replace(kubernetes.gateway(document), spec=spec_of(document.get("spec"), kind))


def spec_of(spec: Field, kind: Kind) -> Mapping[str, Any]:
    found = decode(spec, kind.spec, CHECKS) if spec.present else None
    return found if isinstance(found, dict) else {}


def secret(document: Field) -> Secret:
    """A key pair, a certificate authority, or both; by Kubernetes' names for them, and Istio's older ones."""
    about = meta(document)
    values = {**_decoded(document.get("data")), **document.get("stringData").labels()}
    parts = {part: next((values[name] for name in names if name in values), "") for part, names in _SECRET_KEYS.items()}
    found = Secret(about, parts["chain"], parts["key"], parts["ca"])
    _check_pem(document, found)
    return found


def _decoded(data: Field) -> dict[str, str]:
    """Only what is ours to read; base64."""
    wanted = {name for names in _SECRET_KEYS.values() for name in names}
    found: dict[str, str] = {}
    for name, value in data.entries():
        if name in wanted:
            try:
                found[name] = base64.b64decode(value.string(), validate=True).decode()
            except (binascii.Error, ValueError):
                value.fail("is not base64 of a text")
    return found


def _check_pem(document: Field, found: Secret) -> None:
    """What is wrong is told without quoting it."""
    data = document.get("data") if document.get("data").present else document.get("stringData")
    try:
        with warnings.catch_warnings(action="ignore"):  # strange serial numbers are not for us to judge
            leaf = x509.load_pem_x509_certificates(found.chain.encode())[0] if found.chain else None
        if found.ca:
            x509.load_pem_x509_certificates(found.ca.encode())
    except ValueError:
        data.fail("holds a certificate that is not PEM")
        return
    try:
        key = load_pem_private_key(found.key.encode(), None) if found.key else None
    except (ValueError, TypeError):
        data.fail("holds a private key that is not PEM")
        return
    if leaf and key and leaf.public_key() != key.public_key():
        data.fail("the private key does not belong to the certificate")
    if bool(leaf) != bool(key):
        data.fail("a certificate needs its private key, and a key its certificate: tls.crt and tls.key")


def config_map(document: Field, root_namespace: str) -> Resource:
    """The mesh's configuration, or a certificate authority; of others nothing is kept."""
    about, data = meta(document), document.get("data")
    if (about.namespace, about.name) == (root_namespace, MESH_CONFIG_NAME):
        return Resource(MESH_CONFIG, about, _mesh_config(data.get("mesh")))
    ca = data.get(CA_KEY)
    return Resource("ConfigMap", about, {CA_KEY: ca.string()} if ca.present else {})


def _mesh_config(text: Field) -> Mapping[str, Any]:
    """A document within the document: its lines are counted on in the file."""
    if not text.present:
        return {}
    above = text.node.start_mark.line + 1 if text.node else 0
    try:
        node = yaml.compose("\n" * above + text.string(), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        text.fail(f"is not valid YAML: {' '.join(str(error).split())}")
        return {}
    kind = kinds()["mesh", MESH_CONFIG]
    inner = Field(node, "mesh", above + 1, text.problems)
    for name, value in inner.entries():
        if name not in kind.spec.fields:
            value.warn("is not used here")
    return spec_of(_only_known(inner, kind), kind)


def _only_known(inner: Field, kind: Kind) -> Field:
    if isinstance(inner.node, yaml.MappingNode):
        inner.node.value = [pair for pair in inner.node.value if str(pair[0].value) in kind.spec.fields]
    return Field(inner.node, inner.path, inner.line, inner.problems)
