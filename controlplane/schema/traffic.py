"""Rules of VirtualService and DestinationRule, as istiod's validation has them. What the tables say is not repeated."""

from __future__ import annotations

import re
from ipaddress import ip_network
from itertools import pairwise
from typing import Any, Final

from controlplane.schema.rules import Tree, exclude, need_one, rule, same
from controlplane.validate import Field

_LABEL: Final = r"[a-zA-Z0-9_]([-a-zA-Z0-9_]*[a-zA-Z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,255}}$)(\*|(\*\.)?{_LABEL}(\.{_LABEL})*\.?|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)")
_GATEWAY: Final = re.compile(rf"({_LABEL}/)?{_LABEL}(\.{_LABEL})*")
_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*")
_NOT_HEADERS: Final = ("uri", "scheme", "method", "authority")
_GRPC_WORDS: Final = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED"
    " RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS"
    " UNAUTHENTICATED"
)
GRPC_STATUS: Final = tuple(_GRPC_WORDS.split())
_RETRY_WORDS: Final = (
    "5xx gateway-error reset reset-before-request connect-failure envoy-ratelimited retriable-4xx refused-stream"
    " retriable-status-codes retriable-headers http3-post-connect-failure cancelled deadline-exceeded internal"
    " resource-exhausted unavailable"
)
RETRY_ON: Final = frozenset(_RETRY_WORDS.split())
_MAX_BODY: Final = 1024 * 1024
_MAX_TABLE: Final = 5_000_011


def host(field: Field, text: str) -> None:
    if text and not _HOST.fullmatch(text):
        field.fail(f"{text!r} is not a host: a name, or '*' and a suffix")


def export_to(field: Field, value: Tree) -> None:
    for item in field.get("exportTo").items():
        text = item.string()
        if text not in (".", "*", "~") and not re.fullmatch(_LABEL, text):
            item.fail(f"{text!r} is neither '.', '*' nor a namespace")


@rule("VirtualService")
def _virtual_service(field: Field, value: Tree) -> None:
    hosts, gateways = value.get("hosts", []), value.get("gateways", [])
    if not any(value.get(name) for name in ("http", "tls", "tcp")):
        field.fail("needs http, tls or tcp routes")
    if not hosts:
        for name in ("gateways", "tls", "tcp"):
            if value.get(name):
                field.get(name).fail("is not allowed without hosts: that is a delegate, which has only http routes")
    for item, text in zip(field.get("hosts").items(), hosts, strict=False):
        host(item, text)
        if text == "*" and (not gateways or "mesh" in gateways):
            item.fail("'*' is not allowed for the mesh: name the hosts, or gateways")
    same(field, "hosts", "host", [text.lower().rstrip(".") for text in hosts])
    for item in field.get("gateways").items():
        if not _GATEWAY.fullmatch(item.string()):
            item.fail(f"{item.string()!r} is neither NAME, NAMESPACE/NAME nor mesh")
    export_to(field, value)
    _sni_within(field, value)
    if gateways and "mesh" not in gateways:
        _namespaces_at_gateways(field)


def _namespaces_at_gateways(field: Field) -> None:
    for item in (*field.get("tls").items(), *field.get("tcp").items()):
        for match in item.get("match").items():
            if match.get("sourceNamespace").present:
                match.get("sourceNamespace").warn("never matches: this is for gateways only, whose clients have none")


def _sni_within(field: Field, value: Tree) -> None:
    hosts = value.get("hosts", [])
    for tls in field.get("tls").items():
        for match in tls.get("match").items():
            for item in match.get("sniHosts").items():
                text = item.string()
                host(item, text)
                if not any(covers(outer, text) for outer in hosts):
                    item.fail(f"{text!r} is not one of the hosts of this VirtualService")


def covers(outer: str, inner: str) -> bool:
    """Whether every name of `inner` is one of `outer`."""
    outer, inner = outer.lower(), inner.lower()
    return outer == inner or outer == "*" or (outer.startswith("*.") and inner.endswith(outer[1:]))


@rule("VirtualService.http")
def _http(field: Field, value: Tree) -> None:
    actions = [name for name in ("route", "redirect", "directResponse", "delegate") if value.get(name)]
    if len(actions) > 1:
        field.fail(f"{' and '.join(actions)} exclude each other")
    elif not any(name in value for name in ("route", "redirect", "directResponse", "delegate")):
        field.fail("needs route, redirect, directResponse or delegate")
    elif not actions and "route" in value:
        field.get("route").fail("needs at least one destination")
    exclude(field, value, "redirect", "fault", "rewrite")
    exclude(field, value, "directResponse", "rewrite")
    exclude(field, value, "mirror", "mirrors")
    _weights(field, value)


@rule("VirtualService.tcp", "VirtualService.tls")
def _l4(field: Field, value: Tree) -> None:
    if not value.get("route"):
        field.fail("needs route with at least one destination")
    _weights(field, value)


@rule("VirtualService.tcp.match", "VirtualService.tls.match")
def _l4_match(field: Field, value: Tree) -> None:
    for item in (*field.get("destinationSubnets").items(), *([field.get("sourceSubnet")] * ("sourceSubnet" in value))):
        if not _is_network(item.string()):
            item.fail(f"{item.string()!r} is not an address or a network, as 10.0.0.0/8")


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@rule("VirtualService.tls")
def _tls(field: Field, value: Tree) -> None:
    if not value.get("match"):
        field.get("match").fail("needs at least one match")
    for item in field.get("match").items():
        if not item.get("sniHosts").items():
            item.fail("needs sniHosts")


def _weights(field: Field, value: Tree) -> None:
    routes: list[Tree] = value.get("route", [])
    if len(routes) > 1 and sum(each.get("weight", 0) for each in routes) == 0:
        field.get("route").fail("the sum of the weights is 0")


@rule("VirtualService.http.match", "VirtualService.tcp.match", "VirtualService.tls.match")
def _source(field: Field, value: Tree) -> None:
    if value.get("sourceLabels"):
        field.get("sourceLabels").warn("never matches: waypoints and gateways do not know a client's labels")


@rule("VirtualService.http.match")
def _match(field: Field, value: Tree) -> None:
    for name in ("scheme", "method", "authority"):
        if value.get(name, {}).get("prefix") == "":
            field.get(name).get("prefix").fail("is empty")
    for name in ("headers", "withoutHeaders", "queryParams"):
        for key, inner in field.get(name).entries():
            if inner.get("prefix").present and not inner.get("prefix").string():
                inner.get("prefix").fail("is empty")
            if name != "queryParams":
                _header_key(inner, key)


def _header_key(field: Field, key: str) -> None:
    if key in _NOT_HEADERS:
        field.warn(f"has no effect: match {key} by the field of that name")
    elif key.startswith("@request.auth.claims"):
        if not re.fullmatch(r"@request\.auth\.claims(\.[^\[\]]+|(\[[^\[\]]+\])+)", key):
            field.fail(f"{key!r} is not a claim, as @request.auth.claims[group][name]")
    elif not _TOKEN.fullmatch(key):
        field.fail(f"{key!r} is not a header's name")


@rule("VirtualService.http.redirect")
def _redirect(field: Field, value: Tree) -> None:
    need_one(field, value, "uri", "authority", "scheme", "port", "derivePort", "prefixRewrite")
    exclude(field, value, "uri", "prefixRewrite")
    code = value.get("redirectCode", 301)
    if code not in (301, 302, 303, 307, 308):
        field.get("redirectCode").fail(f"{code} is not one of 301, 302, 303, 307, 308")
    if value.get("scheme", "http") not in ("http", "https"):
        field.get("scheme").fail(f"{value['scheme']!r} is not one of http, https")


@rule("VirtualService.http.directResponse")
def _direct(field: Field, value: Tree) -> None:
    _status(field.get("status"), value.get("status"), 200)
    body = value.get("body", {})
    if len(body.get("string", "").encode()) >= _MAX_BODY or len(body.get("bytes", "")) * 3 // 4 >= _MAX_BODY:
        field.get("body").fail("is 1 MiB or larger")
    if "bytes" in body:
        field.get("body").get("bytes").warn("is served as the text that it decodes to")


def _status(field: Field, status: int | None, low: int) -> None:
    if status is not None and not low <= status <= 599:
        field.fail(f"{status} is not an HTTP status from {low} to 599")


@rule("VirtualService.http.retries")
def _retries(field: Field, value: Tree) -> None:
    if value.get("attempts") == 0 and len(value) > 1:
        field.fail("attempts 0 switches retries off: no other field is allowed beside it")
    for word in retry_words(value.get("retryOn", "")):
        status = word.isdecimal() and 100 <= int(word) <= 599
        if not status and word not in RETRY_ON:
            field.get("retryOn").fail(f"{word!r} is neither a retry condition nor a status code")
    if "backoff" in value and value["backoff"] == 0:
        field.get("backoff").fail("must be longer than 0")


def retry_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@rule("VirtualService.http.rewrite")
def _rewrite(field: Field, value: Tree) -> None:
    need_one(field, value, "uri", "authority", "uriRegexRewrite")
    exclude(field, value, "uri", "uriRegexRewrite")


@rule("VirtualService.http.fault")
def _fault(field: Field, value: Tree) -> None:
    need_one(field, value, "delay", "abort")


@rule("VirtualService.http.fault.delay")
def _delay(field: Field, value: Tree) -> None:
    if "exponentialDelay" in value:
        field.get("exponentialDelay").fail("is not supported, as in Istio: use fixedDelay")
    elif "fixedDelay" not in value:
        field.fail("needs fixedDelay")


@rule("VirtualService.http.fault.abort")
def _abort(field: Field, value: Tree) -> None:
    if "http2Error" in value:
        field.get("http2Error").fail("is not supported, as in Istio: use httpStatus or grpcStatus")
    elif "httpStatus" not in value and "grpcStatus" not in value:
        field.fail("needs httpStatus or grpcStatus")
    _status(field.get("httpStatus"), value.get("httpStatus"), 200)
    grpc = value.get("grpcStatus", "OK")
    if grpc not in GRPC_STATUS and not (grpc.isdecimal() and int(grpc) < len(GRPC_STATUS)):
        field.get("grpcStatus").fail(f"{grpc!r} is not a gRPC status, as UNAVAILABLE")


@rule("VirtualService.http.corsPolicy")
def _cors(field: Field, value: Tree) -> None:
    for item in field.get("allowMethods").items():
        if item.string() not in _METHODS:
            item.fail(f"{item.string()!r} is not one of {', '.join(_METHODS)}")
    if value.get("maxAge", 0.0) % 1:
        field.get("maxAge").fail("must be whole seconds")
    for name in ("allowHeaders", "exposeHeaders"):
        for item in field.get(name).items():
            if not _TOKEN.fullmatch(item.string()):
                item.fail(f"{item.string()!r} is not a header's name")


@rule("HeaderOperations")
def _header_operations(field: Field, value: Tree) -> None:
    named = [*field.get("set").entries(), *field.get("add").entries()]
    for name, inner in (*named, *((item.string(), item) for item in field.get("remove").items())):
        if name.startswith(":") and name != ":authority":
            inner.fail(f"{name!r} cannot be changed")
        elif name != ":authority" and not _TOKEN.fullmatch(name):
            inner.fail(f"{name!r} is not a header's name")
        elif re.search(r"[\r\n\0]", inner.string()):
            inner.fail("a header's value has no line breaks")


@rule("VirtualService.http")
def _one_authority(field: Field, value: Tree) -> None:
    changed = value.get("headers", {}).get("request", {})
    for part in ("add", "remove"):
        for name in changed.get(part, ()):
            if name.lower() in ("host", ":authority"):
                field.get("headers").fail(f"{name!r} can only be set, not part of {part}")
    setting = [name for name in changed.get("set", {}) if name.lower() in ("host", ":authority")]
    if len(setting) + ("authority" in value.get("rewrite", {})) > 1:
        field.fail("the authority is set more than once")


@rule("Destination")
def _destination(field: Field, value: Tree) -> None:
    text = value.get("host", "")
    if text == "*" or (not text and "host" in value):
        field.get("host").fail("must be the name of a service")
    host(field.get("host"), text)


@rule("DestinationRule")
def _destination_rule(field: Field, value: Tree) -> None:
    host(field.get("host"), value.get("host", ""))
    same(field, "subsets", "subset", [each.get("name", "") for each in value.get("subsets", [])])
    for item, subset in zip(field.get("subsets").items(), value.get("subsets", []), strict=False):
        item.get("name").label()
        if not subset.get("labels") and not subset.get("trafficPolicy"):
            item.warn("has neither labels nor a trafficPolicy: it is all endpoints of the host")
    export_to(field, value)


@rule("TrafficPolicy")
def _traffic_policy(field: Field, value: Tree) -> None:
    if not value:
        field.fail("is empty; leave it out, or set at least one field")
    exclude(field, value, "tunnel", "proxyProtocol")
    for item, each in zip(field.get("portLevelSettings").items(), value.get("portLevelSettings", []), strict=False):
        if "number" not in each.get("port", {}):
            item.fail("needs port.number")
    numbers = [each.get("port", {}).get("number") for each in value.get("portLevelSettings", [])]
    same(field, "portLevelSettings", "port", numbers)


@rule("TrafficPolicy.tunnel")
def _tunnel(field: Field, value: Tree) -> None:
    if value.get("protocol", "CONNECT").upper() not in ("CONNECT", "POST"):
        field.get("protocol").fail(f"{value['protocol']!r} is not one of CONNECT, POST")
    field.warn("is not supported: connections go directly")


@rule("ConnectionPool")
def _pool(field: Field, value: Tree) -> None:
    need_one(field, value, "tcp", "http")
    http = value.get("http", {})
    if http.get("useClientProtocol") and http.get("h2UpgradePolicy") == "UPGRADE":
        field.get("http").fail("useClientProtocol and h2UpgradePolicy UPGRADE exclude each other")


@rule("LoadBalancer")
def _load_balancer(field: Field, value: Tree) -> None:
    exclude(field, value, "localityLbSetting", "zoneAwareLbSetting")
    exclude(field, value, "warmup", "warmupDurationSecs")
    if value.get("simple") == "LEAST_CONN":
        field.get("simple").warn("LEAST_CONN is now called LEAST_REQUEST; read so")
    if "backendUtilization" in value:
        field.get("backendUtilization").warn("is not supported: requests are balanced by LEAST_REQUEST")


@rule("LoadBalancer.consistentHash")
def _hash(field: Field, value: Tree) -> None:
    need_one(field, value, "httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")
    size = value.get("maglev", {}).get("tableSize")
    if size is not None and (size >= _MAX_TABLE or not _prime(size)):
        field.get("maglev").get("tableSize").fail(f"{size} is not a prime below {_MAX_TABLE}")


def _prime(number: int) -> bool:
    return number > 1 and all(number % each for each in range(2, int(number**0.5) + 1))


@rule("LoadBalancer.consistentHash.httpCookie")
def _cookie(field: Field, value: Tree) -> None:
    if not value.get("name"):
        field.get("name").fail("is required")


@rule("LoadBalancer.localityLbSetting", "LoadBalancer.zoneAwareLbSetting")
def _locality(field: Field, value: Tree) -> None:
    exclude(field, value, "distribute", "failover", "failoverPriority")
    exclude(field, value, "failover", "failoverPriority")
    for item, each in zip(field.get("distribute").items(), value.get("distribute", []), strict=False):
        if (total := sum(each.get("to", {}).values())) != 100:
            item.get("to").fail(f"the sum of the weights is {total}, not 100")
    for item, each in zip(field.get("failover").items(), value.get("failover", []), strict=False):
        if each.get("from") == each.get("to"):
            item.fail("from and to are the same region")
    same(field, "distribute", "locality", [each.get("from") for each in value.get("distribute", [])])
    _overlap(field, value)


def _overlap(field: Field, value: Tree) -> None:
    """The same locality by two ways of writing has no one answer."""
    froms = sorted(each.get("from", "").rstrip("*").rstrip("/") for each in value.get("distribute", []))
    for one, other in pairwise(froms):
        if one and other.startswith(one + "/"):
            field.get("distribute").fail(f"{one} and {other} overlap")


@rule("ClientTls")
def _client_tls(field: Field, value: Tree) -> None:
    mode = value.get("mode", "DISABLE")
    files = [name for name in ("clientCertificate", "privateKey", "caCertificates") if value.get(name)]
    if value.get("credentialName") and files:
        field.get("credentialName").fail(f"credentialName and {' and '.join(files)} exclude each other")
    if mode == "MUTUAL" and not value.get("credentialName"):
        for name in ("clientCertificate", "privateKey"):
            if not value.get(name):
                field.get(name).fail("is required for MUTUAL without credentialName")
    if mode == "ISTIO_MUTUAL":
        for name in (*files, "sni", "subjectAltNames", "credentialName"):
            if value.get(name) and name not in ("sni", "subjectAltNames"):
                field.get(name).fail("is not allowed for ISTIO_MUTUAL: the mesh's own certificates are used")
    if mode == "SIMPLE" and not verifies(value):
        field.warn("the server's certificate is checked against the system's roots only (IST0128)")


def verifies(tls: dict[str, Any] | Tree) -> bool:
    return bool(tls.get("caCertificates") or tls.get("credentialName") or tls.get("insecureSkipVerify"))
