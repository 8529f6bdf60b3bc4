"""Rules of Istio's Gateway, WorkloadGroup, Sidecar, RequestAuthentication, Telemetry; of our RateLimit."""

from __future__ import annotations

import re
from typing import Final

from controlplane.schema import jwks
from controlplane.schema.rules import Tree, exclude, rule, same
from controlplane.schema.traffic import host
from controlplane.validate import Field

PROTOCOLS: Final = ("HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TLS", "TCP", "MONGO", "MYSQL", "REDIS")
CLEAR: Final = ("HTTP", "HTTP2", "GRPC", "GRPC-WEB")
_TLS: Final = ("HTTPS", "TLS")


@rule("Gateway")
def _gateway(field: Field, value: Tree) -> None:
    servers = value.get("servers", [])
    if not servers:
        field.get("servers").fail("needs at least one server")
    same(field, "servers", "port name", [each.get("port", {}).get("name") for each in servers])


@rule("Gateway.servers")
def _server(field: Field, value: Tree) -> None:
    protocol = value.get("port", {}).get("protocol", "").upper()
    if protocol and protocol not in PROTOCOLS:
        field.get("port").get("protocol").fail(f"{protocol!r} is not one of {', '.join(PROTOCOLS)}")
    if not value.get("hosts"):
        field.get("hosts").fail("needs at least one host")
    for item in field.get("hosts").items():
        _server_host(item)
    tls = value.get("tls")
    if protocol in _TLS and tls is None:
        field.get("tls").fail(f"is required for {protocol}")
    if protocol in CLEAR and tls and set(tls) - {"httpsRedirect"}:
        field.get("tls").fail(f"{protocol} has no TLS: only httpsRedirect is allowed")
    if protocol not in CLEAR and (tls or {}).get("httpsRedirect"):
        field.get("tls").get("httpsRedirect").fail("is only allowed for HTTP")
    if "targetPort" in value.get("port", {}):
        field.get("port").get("targetPort").warn("has no effect: a gateway listens on the port itself")
    if "bind" in value:
        field.get("bind").address()


def _server_host(item: Field) -> None:
    where, slash, name = item.string().rpartition("/")
    if slash and where not in (".", "*") and not re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", where):
        item.fail(f"{item.string()!r}: before the '/' stands a namespace, '.' or '*'")
    if not name:
        item.fail(f"{item.string()!r} has no host")
    host(item, name)


@rule("Gateway.servers")
def _server_tls(field: Field, value: Tree) -> None:
    tls = field.get("tls")
    read = value.get("tls", {})
    mode = read.get("mode", "SIMPLE" if set(read) - {"httpsRedirect"} else "PASSTHROUGH")
    sources = _certificate_sources(read)
    if len(sources) > 1:
        tls.fail(f"{' and '.join(sources)} exclude each other")
    if mode in ("PASSTHROUGH", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL"):
        if sources and "mode" in read:
            tls.get(sources[0]).fail(f"is not allowed for {mode}")
        return
    if not sources:
        tls.fail(f"mode {mode} needs credentialName, or serverCertificate and privateKey")
    if "serverCertificate" in sources and not read.get("privateKey"):
        tls.get("privateKey").fail("is required with serverCertificate")
    mutual = mode in ("MUTUAL", "OPTIONAL_MUTUAL")
    if mutual and sources == ["serverCertificate"] and not read.get("caCertificates"):
        tls.get("caCertificates").fail(f"is required for {mode}: what are clients' certificates checked against?")
    for name in ("verifyCertificateSpki", "verifyCertificateHash", "caCrl", "alpnProtocols", "ecdhCurves"):
        if name in read:
            tls.get(name).fail("is not supported here")


def _certificate_sources(tls: Tree) -> list[str]:
    return [
        name for name in ("credentialName", "credentialNames", "tlsCertificates", "serverCertificate") if tls.get(name)
    ]


@rule("Sidecar")
def _sidecar(field: Field, value: Tree) -> None:
    field.warn(
        "has no effect: there are no sidecars here (IST0167); use exportTo, AuthorizationPolicy or REGISTRY_ONLY"
    )


@rule("WorkloadGroup")
def _workload_group(field: Field, value: Tree) -> None:
    field.warn("has no effect: workloads register by WorkloadEntry or by enrolment of their node (docs/bare-metal.md)")


@rule("EnvoyFilter", "RequestAuthentication", "Telemetry", "RateLimit")
def _attached(field: Field, value: Tree) -> None:
    for other in ("targetRef", "targetRefs"):
        exclude(field, value, "selector", other)
    exclude(field, value, "targetRef", "targetRefs")


@rule("TargetRef")
def _target_ref(field: Field, value: Tree) -> None:
    group, kind = value.get("group", ""), value.get("kind")
    if value.get("namespace"):
        field.get("namespace").fail("is not allowed: what is attached to lies in the same namespace")
    if kind and (group, kind) not in TARGETS:
        known = ", ".join(f"{each[0] or 'core'}/{each[1]}" for each in TARGETS)
        field.fail(f"{group or 'core'}/{kind} is not one of {known}")


TARGETS: Final = (
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)


@rule("RequestAuthentication.jwtRules")
def _jwt(field: Field, value: Tree) -> None:
    exclude(field, value, "jwks", "jwksUri")
    if not value.get("issuer") and not value.get("jwksUri"):
        field.fail("needs issuer or jwksUri")
    if not value.get("jwks") and not value.get("jwksUri"):
        field.fail("needs jwks or jwksUri: the keys of an issuer are not discovered")
    if "jwks" in value and (why := jwks.problem(value["jwks"])):
        field.get("jwks").fail(why)
    uri = value.get("jwksUri", "http://")
    if not uri.startswith(("http://", "https://")):
        field.get("jwksUri").fail(f"{uri!r} is not a URL of http or https")
    if value.get("presence") == "REQUIRED":
        field.get("presence").fail(
            "REQUIRED is not supported: demand a token by AuthorizationPolicy (requestPrincipals)"
        )
    if "spaceDelimitedClaims" in value:
        field.get("spaceDelimitedClaims").warn("has no effect: scope and permission are split anyway")


@rule("Telemetry.tracing")
def _tracing(field: Field, value: Tree) -> None:
    if len(value.get("providers", [])) > 1:
        field.get("providers").fail("only one tracing provider is allowed")
    for name, tag in field.get("customTags").entries():
        if len(list(tag.entries())) != 1:
            tag.fail(f"{name}: needs exactly one of literal, environment, header")
        if tag.get("formatter").present:
            tag.get("formatter").fail("is not supported: use literal, environment or header")


@rule("Telemetry.metrics.overrides.tagOverrides")
def _tag(field: Field, value: Tree) -> None:
    removes = value.get("operation", "UPSERT") == "REMOVE"
    if removes and value.get("value"):
        field.get("value").fail("is not allowed for REMOVE")
    if not removes and not value.get("value"):
        field.get("value").fail("is required for UPSERT")


@rule("Telemetry.metrics")
def _metrics(field: Field, value: Tree) -> None:
    if "reportingInterval" in value:
        field.get("reportingInterval").warn("has no effect: metrics are counted when a request ends")


@rule("RateLimit")
def _rate_limit(field: Field, value: Tree) -> None:
    if not value.get("targetRefs"):
        field.get("targetRefs").fail("needs at least one target")
    same(field, "limits", "limit", [each.get("name") for each in value.get("limits", [])])


@rule("RateLimit.limits")
def _limit(field: Field, value: Tree) -> None:
    exclude(field, value, "service", "requests", "per")
    if "service" not in value:
        for name in ("requests", "per"):
            field.get(name).required()
    for item, each in zip(field.get("by").items(), value.get("by", []), strict=False):
        if each.get("attribute") == "header" and not each.get("header"):
            item.get("header").fail("is required: by which header?")
