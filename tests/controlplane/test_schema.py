# ruff: noqa: E501 - one mistake per line reads better than three lines per mistake
"""Layer-7 documents: what the field tables and the rules refuse, where, and what they take from earlier versions."""

from textwrap import indent

import pytest

from controlplane.schema.decode import seconds
from controlplane.schema.outline import kinds
from tests.controlplane.documents import findings_of, store_of

GROUPS = {
    "VirtualService": "networking.istio.io/v1",
    "DestinationRule": "networking.istio.io/v1",
    "Sidecar": "networking.istio.io/v1",
    "EnvoyFilter": "networking.istio.io/v1alpha3",
    "RequestAuthentication": "security.istio.io/v1",
    "Telemetry": "telemetry.istio.io/v1",
    "RateLimit": "nodemesh.io/v1alpha1",
    "IstioGateway": "networking.istio.io/v1",
}


def of(kind, spec, group=""):
    version = group or GROUPS.get(kind, "gateway.networking.k8s.io/v1")
    head = (
        f"apiVersion: {version}\nkind: {kind.removeprefix('Istio')}\nmetadata:\n  name: x\n  namespace: shop\nspec:\n"
    )
    return head + indent(spec, "  ")


def http(rest):
    """A VirtualService with one http route; its fields begin in line 9."""
    return of("VirtualService", "hosts: [web]\nhttp:\n- \n" + indent(rest, "  "))


def to(rest="", more=""):
    return http(f"route: [{{destination: {{host: web{rest}}}}}]{more}")


def policy(rest):
    """A DestinationRule with a trafficPolicy, whose fields begin in line 9."""
    return of("DestinationRule", "host: web\ntrafficPolicy:\n" + indent(rest, "  "))


def server(rest, port="{number: 443, name: a, protocol: HTTPS}"):
    return of("IstioGateway", f"servers:\n- port: {port}\n  hosts: ['*']\n" + indent(rest, "  "))


def route(rest):
    """An HTTPRoute with one rule, whose fields begin in line 9."""
    return of("HTTPRoute", "parentRefs: [{name: gw}]\nrules:\n- \n" + indent(rest, "  "))


def listener(rest):
    return of("Gateway", "gatewayClassName: istio\nlisteners:\n- name: a\n" + indent(rest, "  "))


MISTAKES = [
    (route("sessionPersistence: {sessionName: 'a b'}"), 10, "spec.rules[0].sessionPersistence.sessionName: 'a b' is not a cookie's or header's name"),
    (route("sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}"), 10, "spec.rules[0].sessionPersistence.absoluteTimeout: is required for a permanent cookie"),
    (route("sessionPersistence: {type: Header, cookieConfig: {lifetimeType: Permanent}}"), 10, "spec.rules[0].sessionPersistence.cookieConfig: is not allowed for type Header"),
    (of("VirtualService", "host: web"), 7, "spec.host: unknown field; allowed: exportTo, gateways, hosts, http, tcp, tls"),
    (of("VirtualService", "hosts: [web]"), 6, "spec: needs http, tls or tcp routes"),
    (of("VirtualService", "hosts: ['*']\nhttp: [{redirect: {uri: /}}]"), 7, "spec.hosts[0]: '*' is not allowed for the mesh"),
    (of("VirtualService", "hosts: [a.b, A.b]\nhttp: [{redirect: {uri: /}}]"), 7, "spec.hosts[1]: host 'a.b' is given twice"),
    (of("VirtualService", "hosts: ['a*']\nhttp: [{redirect: {uri: /}}]"), 7, "'a*' is not a host"),
    (of("VirtualService", "gateways: [mesh]\nhttp: [{redirect: {uri: /}}]"), 7, "spec.gateways: is not allowed without hosts"),
    (of("VirtualService", "hosts: [web]\nexportTo: ['a b']\nhttp: [{redirect: {uri: /}}]"), 8, "neither '.', '*' nor a namespace"),
    (http("match: [{uri: {exact: /, prefix: /a}}]\nredirect: {uri: /}"), 10, "spec.http[0].match[0].uri: exact and prefix exclude each other"),
    (http("match: [{uri: {regex: '(a'}}]\nredirect: {uri: /}"), 10, "uri.regex: '(a' is not a regular expression (RE2): missing )"),
    (http("match: [{uri: {regex: 'a(?=b)'}}]\nredirect: {uri: /}"), 10, "is not a regular expression (RE2): invalid perl operator"),
    (http("match: [{port: 70000}]\nredirect: {uri: /}"), 10, "spec.http[0].match[0].port: 70000 is not from 1 to 65535"),
    (http("match: [{method: {prefix: ''}}]\nredirect: {uri: /}"), 10, "spec.http[0].match[0].method.prefix: is empty"),
    (http("match: [{headers: {'a b': {exact: x}}}]\nredirect: {uri: /}"), 10, "'a b' is not a header's name"),
    (http("match: [{headers: {end-user: {exact: 7}}}]\nredirect: {uri: /}"), 10, "must be a string, not a number: put '7' in quotes"),
    (http("timeout: 1s"), 10, "spec.http[0]: needs route, redirect, directResponse or delegate"),
    (http("route: []"), 10, "spec.http[0].route: needs at least one destination"),
    (http("redirect: {uri: /}\nroute: [{destination: {host: web}}]"), 10, "route and redirect exclude each other"),
    (http("redirect: {uri: /}\nrewrite: {uri: /}"), 11, "spec.http[0].rewrite: redirect and rewrite exclude each other"),
    (http("redirect: {redirectCode: 200, uri: /}"), 10, "redirectCode: 200 is not one of 301, 302, 303, 307, 308"),
    (http("redirect: {redirectCode: 301}"), 10, "needs uri or authority or scheme or port"),
    (http("directResponse: {status: 99}"), 10, "status: 99 is not an HTTP status from 200 to 599"),
    (to(more="\ntimeout: soon"), 11, "spec.http[0].timeout: 'soon' is not a duration, as 1h30m, 2.5s or 100ms"),
    (to(more="\ntimeout: 1us"), 11, "spec.http[0].timeout: '1us' is shorter than 1ms"),
    (to(more="\nretries: {attempts: -1}"), 11, "spec.http[0].retries.attempts: -1 is not from 0"),
    (to(more="\nretries: {attempts: 0, retryOn: 5xx}"), 11, "attempts 0 switches retries off"),
    (to(more="\nretries: {attempts: 1, retryOn: '5xx,sometimes'}"), 11, "'sometimes' is neither a retry condition nor a status"),
    (to(more="\nfault: {}"), 11, "spec.http[0].fault: needs delay or abort"),
    (to(more="\nfault: {delay: {percentage: {value: 5}}}"), 11, "spec.http[0].fault.delay: needs fixedDelay"),
    (to(more="\nfault: {abort: {httpStatus: 999}}"), 11, "999 is not an HTTP status from 200 to 599"),
    (to(more="\nfault: {abort: {grpcStatus: BAD}}"), 11, "'BAD' is not a gRPC status, as UNAVAILABLE"),
    (to(more="\nfault: {abort: {httpStatus: 500, percentage: {value: 101}}}"), 11, "percentage.value: 101: must be from 0 to 100"),
    (to(more="\nmirror: {host: a}\nmirrors: []"), 12, "mirror and mirrors exclude each other"),
    (to(more="\nrewrite: {}"), 11, "spec.http[0].rewrite: needs uri or authority or uriRegexRewrite"),
    (to(more="\ncorsPolicy: {allowMethods: [FETCH]}"), 11, "'FETCH' is not one of GET, HEAD"),
    (to(more="\ncorsPolicy: {maxAge: 1500ms}"), 11, "maxAge: must be whole seconds"),
    (to(more="\nheaders: {request: {set: {':path': /}}}"), 11, "':path' cannot be changed"),
    (to(more="\nheaders: {request: {add: {host: a}}}"), 11, "'host' can only be set, not part of add"),
    (to(more="\nwurst: 1"), 11, "spec.http[0].wurst: unknown field"),
    (to(", port: {number: 0}"), 10, "destination.port.number: 0 is not from 1 to 65535"),
    (http("route: [{weight: 1}]"), 10, "spec.http[0].route[0].destination: is required"),
    (http("route:\n- {destination: {host: a}, weight: 0}\n- {destination: {host: b}, weight: 0}"), 10, "the sum of the weights is 0"),
    (http("route: [{destination: {host: a}, weight: -1}]"), 10, "weight: -1 is not from 0"),
    (of("VirtualService", "hosts: [a.b]\ntls: [{match: [{sniHosts: [c.b]}], route: [{destination: {host: a.b}}]}]"), 8, "'c.b' is not one of the hosts"),
    (of("DestinationRule", "subsets: []"), 6, "spec.host: is required"),
    (of("DestinationRule", "host: web\nsubsets:\n- {name: a, labels: {v: '1'}}\n- {name: a, labels: {v: '2'}}"), 10, "subset 'a' is given twice"),
    (policy("{}"), 8, "spec.trafficPolicy: is empty"),
    (policy("connectionPool: {}"), 9, "connectionPool: needs tcp or http"),
    (policy("loadBalancer: {simple: FASTEST}"), 9, "'FASTEST' is not one of UNSPECIFIED, LEAST_CONN"),
    (policy("loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}"), 9, "simple and consistentHash exclude each other"),
    (policy("loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 100}}}"), 9, "100 is not a prime below 5000011"),
    (policy("loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 90}}]}}"), 9, "the sum of the weights is 90, not 100"),
    (policy("outlierDetection: {interval: 3x}"), 9, "'3x' is not a duration"),
    (policy("outlierDetection: {maxEjectionPercent: 101}"), 9, "101 is not from 0 to 100"),
    (policy("tls: {mode: MUTUAL}"), 9, "clientCertificate: is required for MUTUAL without credentialName"),
    (policy("portLevelSettings: [{port: {}, tls: {mode: DISABLE}}]"), 9, "needs port.number"),
    (of("IstioGateway", "selector: {a: b}"), 6, "spec.servers: needs at least one server"),
    (server("name: a", "{number: 80, name: a, protocol: HTTPS}"), 8, "spec.servers[0].tls: is required for HTTPS"),
    (server("tls: {mode: SIMPLE, credentialName: a}", "{number: 80, name: a, protocol: HTTP}"), 10, "HTTP has no TLS: only httpsRedirect"),
    (server("tls: {mode: SIMPLE}"), 10, "mode SIMPLE needs credentialName, or serverCertificate and privateKey"),
    (server("tls: {mode: MUTUAL, serverCertificate: a, privateKey: b}"), 10, "caCertificates: is required for MUTUAL"),
    (server("tls: {mode: SIMPLE, credentialName: a, serverCertificate: b, privateKey: c}"), 10, "exclude each other"),
    (server("tls: {credentialName: a}", "{number: 80, name: a, protocol: SMTP}"), 8, "'SMTP' is not one of HTTP, HTTPS"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a}]"), 7, "needs jwks or jwksUri"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a, jwks: nonsense}]"), 7, "is not a JSON Web Key Set"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{\"keys\": []}'}]"), 7, "has no keys"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\"}]}'}]"), 7, "key 1 (RSA) cannot be read: it has no 'e'"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"EC\", \"crv\": \"P-256\", \"x\": \"AQ\", \"y\": \"AQ\"}]}'}]"), 7, "key 1 (EC) cannot be read"),
    (of("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\", \"n\": \"*\", \"e\": \"AQAB\"}]}'}]"), 7, "key 1 (RSA) cannot be read"),
    (of("RequestAuthentication", "targetRefs: [{kind: Pod, name: a}]"), 7, "core/Pod is not one of core/Service"),
    (of("Telemetry", "tracing: [{providers: [{name: a}, {name: b}]}]"), 7, "only one tracing provider is allowed"),
    (of("Telemetry", "tracing: [{randomSamplingPercentage: 200}]"), 7, "200: must be from 0 to 100"),
    (of("Telemetry", "metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]"), 7, "value: is required for UPSERT"),
    (of("RateLimit", "limits: [{name: a, requests: 1, per: 1s}]"), 6, "spec.targetRefs: is required"),
    (of("RateLimit", "targetRefs: [{kind: Service, name: a}]\nlimits: [{name: a, requests: 1}]"), 8, "per: is required"),
    (route("matches: [{path: {value: a}}]"), 10, "'a' does not begin with '/'"),
    (route("matches: [{path: {type: RegularExpression, value: '['}}]"), 10, "is not a regular expression (RE2)"),
    (route("matches: [{method: FETCH}]"), 10, "'FETCH' is not one of GET, HEAD"),
    (route("filters: [{type: URLRewrite}]"), 10, "urlRewrite: is required for type URLRewrite"),
    (route("filters:\n- {type: RequestRedirect, requestRedirect: {statusCode: 200}}"), 11, "200 is not one of 301, 302"),
    (route("filters:\n- {type: RequestRedirect, requestRedirect: {}}\nbackendRefs: [{name: a, port: 1}]"), 12, "is not allowed with RequestRedirect"),
    (route("timeouts: {request: 1s, backendRequest: 2s}"), 10, "is longer than request"),
    (route("timeouts: {request: 1.5s}"), 10, "'1.5s' is not a duration, as 1h30m, 10s or 100ms"),
    (route("backendRefs: [{name: a}]"), 10, "spec.rules[0].backendRefs[0].port: is required for a Service"),
    (route("backendRefs: [{name: a, port: 80, weight: 1000001}]"), 10, "weight: 1000001 is not from 0 to 1000000"),
    (of("HTTPRoute", "hostnames: ['a.*']"), 7, "'a.*' is not a host name"),
    (of("TCPRoute", "rules: []"), 7, "spec.rules: 0 entries: must be from 1 to 1"),
    (listener("port: 80\nprotocol: HTTPS"), 9, "spec.listeners[0].tls: is required for HTTPS"),
    (listener("port: 80\nprotocol: TCP\nhostname: a.b"), 12, "hostname: is not allowed for TCP"),
    (listener("port: 80\nprotocol: HTTP") + "\n  - {name: b, port: 80, protocol: HTTP}", 12, "port, protocol and hostname"),
    (of("BackendTLSPolicy", "targetRefs: [{group: '', kind: Service, name: a}]\nvalidation: {hostname: a.b}"), 8, "needs caCertificateRefs or well"),
    (of("ReferenceGrant", "from: [{group: a, kind: b}]\nto: [{group: '', kind: Service}]"), 7, "namespace: is required"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "why"), MISTAKES, ids=[why for _, _, why in MISTAKES])
def test_a_mistake_is_reported_where_it_is(text, line, why):
    store = store_of(text)
    found = [finding for finding in store.findings if finding.level == "error" and why in finding.why]
    assert [finding.line for finding in found] == [line], list(map(str, store.findings))
    assert not store.counts


GO_DURATIONS = [
    ("1h30m", 5400.0),
    ("3m", 180.0),
    ("10ms", 0.01),
    ("2.5s", 2.5),
    ("1h", 3600.0),
    ("0", 0.0),
    ("5", None),
]


@pytest.mark.parametrize(("text", "value"), [*GO_DURATIONS, ("", None), ("s", None), ("1 s", None), ("-1s", -1.0)])
def test_durations_are_gos(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_every_served_version_is_taken(version):
    text = of("VirtualService", "hosts: [web]\nhttp: [{redirect: {uri: /}}]", f"networking.istio.io/{version}")
    assert store_of(text).counts == {"VirtualService": 1}


def test_two_kinds_of_gateway_with_one_name_are_two_objects():
    both = of("Gateway", "gatewayClassName: istio\nlisteners: [{name: a, port: 80, protocol: HTTP}]")
    both += "\n---\n" + server("tls: {credentialName: a}")
    assert store_of(both).counts == {"Gateway": 1, "Gateway.networking.istio.io": 1}


def test_an_invalid_change_leaves_the_last_good_state_in_force():
    from controlplane.documents import parse

    good, bad = to(more="\ntimeout: 1s"), to(more="\ntimeout: nonsense")
    store = store_of(good)
    before = next(iter(store._force.values())).object
    store.update({"f.yaml": parse("f.yaml", bad.encode())})
    assert next(iter(store._force.values())).object is before
    assert "f.yaml:11: error: VirtualService shop/x: spec.http[0].timeout" in str(store.findings[0])


def test_snake_case_is_taken_as_protobufs_json_mapping_does():
    text = of("VirtualService", "export_to: ['*']\nhosts: [web]\nhttp: [{direct_response: {status: 204}}]")
    spec = next(iter(store_of(text)._force.values())).object.spec
    assert spec == {"exportTo": ["*"], "hosts": ["web"], "http": [{"directResponse": {"status": 204}}]}


WARNINGS = [
    (of("Sidecar", "egress: [{hosts: ['./*']}]"), "has no effect: there are no sidecars here (IST0167)"),
    (of("EnvoyFilter", "configPatches: [{applyTo: CLUSTER}]"), "is not applied: HTTP_FILTER is inserted"),
    (
        of("HTTPRoute", "rules: [{sessionPersistence: {absoluteTimeout: 1h}}]"),
        "spec.rules[0].sessionPersistence.absoluteTimeout: has no effect",
    ),
    (policy("loadBalancer: {simple: LEAST_CONN}"), "LEAST_CONN is now called LEAST_REQUEST"),
    (policy("outlierDetection: {consecutiveErrors: 3}"), "is a field of an earlier version of this API"),
    (
        http("match: [{headers: {uri: {exact: /}}}]\nredirect: {uri: /}"),
        "has no effect: match uri by the field of that name",
    ),
]


@pytest.mark.parametrize(("text", "why"), WARNINGS, ids=[why for _, why in WARNINGS])
def test_what_has_no_effect_is_said_and_taken(text, why):
    store = store_of(text)
    assert [finding.level for finding in store.findings if why in finding.why] == ["warning"]
    assert sum(store.counts.values()) == 1


def test_the_meshs_configuration_is_a_document_within_a_config_map_with_its_own_lines():
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n"
    text += "    accessLogFile: /dev/stdout\n    connectTimeout: 1y\n    ingressClass: istio\n"
    found = findings_of(text)
    assert any(
        "f.yaml:7: error: ConfigMap istio-system/istio: mesh.connectTimeout: '1y' is not a duration" in f for f in found
    )
    assert any(
        "f.yaml:8: warning: ConfigMap istio-system/istio: mesh[ingressClass]: is not used here" in f for f in found
    )


def test_every_rule_belongs_to_an_object_of_the_tables():
    from controlplane.schema.rules import CHECKS

    names, todo = set(), [kind.spec for kind in kinds().values()]
    while todo:
        spec = todo.pop()
        names.add(spec.name)
        todo += spec.fields.values()
    assert set(CHECKS) <= names
