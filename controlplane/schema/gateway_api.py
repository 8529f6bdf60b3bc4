"""Rules of the Gateway API's kinds that its definitions leave to CEL or to the controller."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from controlplane.schema.decode import regex_problem
from controlplane.schema.rules import Tree, exclude, rule, same
from controlplane.validate import Field

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MAX_MATCHES: Final = 128
_BAD_IN_PATH: Final = ("//", "/./", "/../", "%2f", "%2F", "#")
_BAD_AT_END: Final = ("/..", "/.")
_FILTER_FIELDS: Final = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "ExtensionRef": "extensionRef",
    "CORS": "cors",
    "ExternalAuth": "externalAuth",
}
_ONCE: Final = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS")


@rule("HttpFilter", "GrpcFilter")
def _filter(field: Field, value: Tree) -> None:
    kind = value.get("type", "")
    wanted = _FILTER_FIELDS.get(kind)
    for name in _FILTER_FIELDS.values():
        if name in value and name != wanted:
            field.get(name).fail(f"is not allowed for type {kind}")
    if wanted and wanted not in value:
        field.get(wanted).fail(f"is required for type {kind}")
    if kind in ("ExtensionRef", "ExternalAuth"):
        field.warn(f"{kind} is not supported: requests that this rule matches are answered with 500")


@rule("HTTPRoute.rules", "GRPCRoute.rules", "HTTPRoute.rules.backendRefs", "GRPCRoute.rules.backendRefs")
def _filters(field: Field, value: Tree) -> None:
    kinds = [each.get("type", "") for each in value.get("filters", [])]
    for kind, number in Counter(kinds).items():
        if number > 1 and kind in _ONCE:
            field.get("filters").fail(f"{kind} is given twice")
    if "RequestRedirect" in kinds and "URLRewrite" in kinds:
        field.get("filters").fail("RequestRedirect and URLRewrite exclude each other")
    if "RequestRedirect" in kinds and value.get("backendRefs"):
        field.get("backendRefs").fail("is not allowed with RequestRedirect: nothing is forwarded")


@rule("HTTPRoute.rules", "GRPCRoute.rules")
def _session(field: Field, value: Tree) -> None:
    session: Tree = value.get("sessionPersistence", {})
    place = field.get("sessionPersistence")
    lasts = session.get("cookieConfig", {}).get("lifetimeType") == "Permanent"
    if lasts and session.get("type", "Cookie") == "Header":
        place.get("cookieConfig").fail("is not allowed for type Header")
    elif lasts and not session.get("absoluteTimeout"):
        place.get("absoluteTimeout").fail("is required for a permanent cookie")
    elif session.get("absoluteTimeout") and not lasts:
        place.get("absoluteTimeout").warn("has no effect: only a permanent cookie ends at a time")
    name = session.get("sessionName", "")
    if name and not _TOKEN.fullmatch(name):
        place.get("sessionName").fail(f"{name!r} is not a cookie's or header's name")


@rule("HTTPRoute.rules")
def _one_prefix(field: Field, value: Tree) -> None:
    """What is replaced must be known."""
    for item, each in zip(field.get("filters").items(), value.get("filters", []), strict=False):
        for name in ("requestRedirect", "urlRewrite"):
            path = each.get(name, {}).get("path", {})
            paths = [match.get("path", {}).get("type", "PathPrefix") for match in value.get("matches", [{}])]
            if path.get("type") == "ReplacePrefixMatch" and paths != ["PathPrefix"]:
                item.get(name).get("path").fail("ReplacePrefixMatch needs exactly one match, of a PathPrefix")


@rule("HTTPRoute.rules.timeouts")
def _timeouts(field: Field, value: Tree) -> None:
    whole, once = value.get("request", 0.0), value.get("backendRequest", 0.0)
    if whole and once > whole:
        field.get("backendRequest").fail("is longer than request")


@rule("HTTPRoute", "GRPCRoute")
def _route(field: Field, value: Tree) -> None:
    if sum(len(each.get("matches", [])) for each in value.get("rules", [])) > _MAX_MATCHES:
        field.get("rules").fail(f"more than {_MAX_MATCHES} matches")
    same(field, "rules", "rule", [each.get("name") for each in value.get("rules", [])])


@rule("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")
def _parents(field: Field, value: Tree) -> None:
    for item, ref in zip(field.get("parentRefs").items(), value.get("parentRefs", []), strict=False):
        group = ref.get("group", "gateway.networking.k8s.io")
        if (group, ref.get("kind", "Gateway")) not in _PARENTS:
            item.warn(
                f"{group or 'core'}/{ref.get('kind', 'Gateway')} is no parent here: Gateway, Service, ServiceEntry"
            )


_PARENTS: Final = (
    ("gateway.networking.k8s.io", "Gateway"),
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
)


@rule("HTTPRoute.rules.matches.path")
def _path(field: Field, value: Tree) -> None:
    kind, text = value.get("type", "PathPrefix"), value.get("value", "/")
    if kind == "RegularExpression":
        _regex(field.get("value"), text)
        return
    if not text.startswith("/"):
        field.get("value").fail(f"{text!r} does not begin with '/'")
    for bad in _BAD_IN_PATH:
        if bad in text:
            field.get("value").fail(f"{text!r} has {bad!r} in it")
    if text.endswith(_BAD_AT_END):
        field.get("value").fail(f"{text!r} ends with a relative segment")


@rule("HTTPRoute.rules.matches.headers", "HTTPRoute.rules.matches.queryParams", "GRPCRoute.rules.matches.headers")
def _text(field: Field, value: Tree) -> None:
    if value.get("type") == "RegularExpression":
        _regex(field.get("value"), value.get("value", ""))


def _regex(field: Field, text: str) -> None:
    if why := regex_problem(text):
        field.fail(f"{text!r} is not a regular expression (RE2): {why}")


@rule("GRPCRoute.rules.matches.method")
def _method(field: Field, value: Tree) -> None:
    if not value.get("service") and not value.get("method"):
        field.fail("needs service or method")
    for name in ("service", "method"):
        if value.get("type") == "RegularExpression":
            _regex(field.get(name), value.get(name, ""))


@rule("RequestMirror")
def _mirror(field: Field, value: Tree) -> None:
    exclude(field, value, "percent", "fraction")
    fraction = value.get("fraction", {})
    if fraction.get("numerator", 0) > fraction.get("denominator", 100):
        field.get("fraction").fail("is more than one")


@rule("Path")
def _replacement(field: Field, value: Tree) -> None:
    wanted = {"ReplaceFullPath": "replaceFullPath", "ReplacePrefixMatch": "replacePrefixMatch"}
    for kind, name in wanted.items():
        if value.get("type") == kind and name not in value:
            field.get(name).fail(f"is required for {kind}")
        if value.get("type") != kind and name in value:
            field.get(name).fail(f"is not allowed for {value.get('type')}")


@rule("HTTPRoute.rules.backendRefs", "GRPCRoute.rules.backendRefs", "L4Rule.backendRefs", "BackendRef")
def _backend(field: Field, value: Tree) -> None:
    if (value.get("group", ""), value.get("kind", "Service")) == ("", "Service") and "port" not in value:
        field.get("port").fail("is required for a Service")


@rule("KubernetesGateway")
def _gateway(field: Field, value: Tree) -> None:
    listeners = value.get("listeners", [])
    same(field, "listeners", "listener", [each.get("name") for each in listeners])
    places = [(each.get("port"), each.get("protocol", ""), each.get("hostname", "")) for each in listeners]
    same(field, "listeners", "port, protocol and hostname", places)


@rule("KubernetesGateway.listeners")
def _listener(field: Field, value: Tree) -> None:
    protocol, tls = value.get("protocol", ""), value.get("tls")
    if protocol == "UDP":
        field.get("protocol").warn("UDP is not served")
    if protocol in ("HTTPS", "TLS") and tls is None:
        field.get("tls").fail(f"is required for {protocol}")
    if protocol in ("HTTP", "TCP", "UDP") and tls is not None:
        field.get("tls").fail(f"is not allowed for {protocol}")
    if protocol in ("TCP", "UDP") and value.get("hostname"):
        field.get("hostname").fail(f"is not allowed for {protocol}")
    if tls is None or protocol not in ("HTTPS", "TLS"):
        return
    mode = tls.get("mode", "Terminate")
    if protocol == "HTTPS" and mode != "Terminate":
        field.get("tls").get("mode").fail("HTTPS is terminated; for Passthrough the protocol is TLS")
    if mode == "Terminate" and not tls.get("certificateRefs") and not tls.get("options"):
        field.get("tls").fail("needs certificateRefs")


@rule("BackendTLSPolicy.validation")
def _validation(field: Field, value: Tree) -> None:
    exclude(field, value, "caCertificateRefs", "wellKnownCACertificates")
    if not value.get("caCertificateRefs") and not value.get("wellKnownCACertificates"):
        field.fail("needs caCertificateRefs or wellKnownCACertificates")


@rule("BackendTLSPolicy.validation.subjectAltNames")
def _san(field: Field, value: Tree) -> None:
    wanted = {"Hostname": "hostname", "URI": "uri"}.get(value.get("type", ""), "")
    for name in ("hostname", "uri"):
        if (name == wanted) != (name in value):
            field.get(name).fail(f"is {'required' if name == wanted else 'not allowed'} for type {value.get('type')}")
