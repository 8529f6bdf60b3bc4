"""EnvoyFilters: what is refused, and where; what is left out. What is applied is `golden/envoy/patches.yaml`."""

import pytest

from controlplane.schema.envoy_filter import GUARDS
from controlplane.translate.envoy import limits, tokens
from controlplane.translate.envoy.listeners import http_filters
from tests.controlplane.documents import store_of

ENVOY = "type.googleapis.com/envoy"
HTTP, NETWORK = f"{ENVOY}.extensions.filters.http", f"{ENVOY}.extensions.filters.network"
LUA = f"{HTTP}.lua.v3.Lua"
TCP = "match: {listener: {filterChain: {filter: {name: envoy.filters.network.tcp_proxy}}}}"


def beside(name):
    return f"match: {{listener: {{filterChain: {{filter: {{subFilter: {{name: {name}}}}}}}}}}}"


def insert(kind, name="mine", more=""):
    return f"name: {name}\ntyped_config:\n  '@type': {kind}\n{more}"


def finding(apply_to, operation, value, match=""):
    """Of a document with one patch, whose value begins in line 13. The match is in line 10."""
    text = f"""
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: x, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
  configPatches:
  -
    applyTo: {apply_to}
    {match}
    patch:
      operation: {operation}
      value:
"""
    indented = "".join(f"        {line}\n" for line in value.splitlines())
    [told] = store_of(text + indented).findings
    return told


TYPED_STRUCT = "type.googleapis.com/udpa.type.v1.TypedStruct"
REFUSED = {
    "an unknown type": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(f"{ENVOY}.no.such.v3.Thing")),
        ".patch.value.typed_config: 'envoy.no.such.v3.Thing' is not a type that can be configured here",
    ),
    "an unknown type in a TypedStruct": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(TYPED_STRUCT, more="  type_url: type.googleapis.com/a.B\n")),
        ".patch.value.typed_config: 'a.B' is not a type that can be configured here",
    ),
    "an unknown field": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(LUA, more="  in_line: x\n")),
        ".patch.value: is not a HttpFilter of Envoy: ",
    ),
    "what says who asks": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(f"{HTTP}.set_filter_state.v3.Config")),
        ".patch.value.typed_config: envoy.extensions.filters.http.set_filter_state.v3.Config is not inserted; known: ",
    ),
    "a second router": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(f"{HTTP}.router.v3.Router")),
        ".patch.value.typed_config: envoy.extensions.filters.http.router.v3.Router is not inserted; known: ",
    ),
    "no type": (
        ("HTTP_FILTER", "INSERT_FIRST", "name: mine"),
        ".patch.value.typed_config: nothing is not inserted; known: ",
    ),
    "no value": (("CLUSTER", "MERGE", ""), ".patch.value: is required"),
    "a policy's name": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(LUA, "rbac.deny")),
        ".patch.value.name: 'rbac.deny' cannot be the name of a filter of one's own",
    ),
    "before tokens": (
        ("HTTP_FILTER", "INSERT_BEFORE", insert(LUA), beside("envoy.filters.http.jwt_authn")),
        ".match: INSERT_BEFORE envoy.filters.http.jwt_authn would come before the mesh's own policies",
    ),
    "between policies": (
        ("HTTP_FILTER", "INSERT_AFTER", insert(LUA), beside("rbac.custom")),
        ".match: INSERT_AFTER rbac.custom would come before the mesh's own policies",
    ),
    "before authorization": (
        ("HTTP_FILTER", "INSERT_BEFORE", insert(LUA), beside("envoy.filters.http.rbac")),
        ".match: INSERT_BEFORE envoy.filters.http.rbac would come before the mesh's own policies",
    ),
    "after the router": (
        ("HTTP_FILTER", "INSERT_AFTER", insert(LUA), beside("envoy.filters.http.router")),
        ".match: nothing comes after the router",
    ),
    "a route to elsewhere": (
        ("HTTP_ROUTE", "MERGE", "route:\n  timeout: 1s\n  cluster: direct"),
        ".patch.value.route.cluster: is not merged here; allowed: ",
    ),
    "a route for others": (
        ("HTTP_ROUTE", "MERGE", "match: {prefix: /}"),
        ".patch.value.match: is not merged here; allowed: ",
    ),
    "a policy switched off": (
        ("VIRTUAL_HOST", "MERGE", f"typed_per_filter_config: {{rbac.deny: {{'@type': {HTTP}.rbac.v3.RBACPerRoute}}}}"),
        ".patch.value.typed_per_filter_config: 'rbac.deny' is for the mesh's own policies alone",
    ),
    "without a tunnel": (
        ("CLUSTER", "MERGE", "connect_timeout: 1s\ntransport_socket: {name: raw}"),
        ".patch.value.transport_socket: is not merged here; allowed: ",
    ),
    "other endpoints": (("CLUSTER", "MERGE", "type: STATIC"), ".patch.value.type: is not merged here; allowed: "),
    "another network filter": (
        ("NETWORK_FILTER", "MERGE", f"typed_config: {{'@type': {NETWORK}.rbac.v3.RBAC}}", TCP),
        ".patch.value.typed_config: needs a filter to merge with, named in match, and its type: ",
    ),
    "connections to elsewhere": (
        (
            "NETWORK_FILTER",
            "MERGE",
            f"typed_config:\n  '@type': {NETWORK}.tcp_proxy.v3.TcpProxy\n  cluster: direct",
            TCP,
        ),
        ".patch.value.typed_config.cluster: is not merged here; allowed: ",
    ),
}
LINES = {
    "no value": 13,
    "a policy's name": 14,
    "a route to elsewhere": 16,
    "a route for others": 14,
    "without a tunnel": 15,
    "connections to elsewhere": 16,
    "before tokens": 10,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_patch_that_goes_too_far_is_refused_at_its_line(name):
    patch, why = REFUSED[name]
    told = finding(*patch)
    assert told.why.startswith(f"spec.configPatches[0]{why}")
    assert told.level == "error"
    assert told.line == LINES.get(name, told.line)


UNAPPLIED = {
    "for sidecars": (("HTTP_FILTER", "INSERT_FIRST", insert(LUA), "match: {context: SIDECAR_INBOUND}"), "no sidecars"),
    "of listeners": (("LISTENER", "MERGE", "name: x"), "are merged, not LISTENER MERGE"),
    "that takes away": (("HTTP_FILTER", "REMOVE", ""), "are merged, not HTTP_FILTER REMOVE"),
    "by a version": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(LUA), "match: {proxy: {proxyVersion: 1.x}}"),
        "match.proxy.proxyVersion is not looked at",
    ),
    "by a listener": (
        ("HTTP_FILTER", "INSERT_FIRST", insert(LUA), "match: {listener: {name: a}}"),
        "match.listener.name is not looked at",
    ),
    "beside what is not there": (
        ("HTTP_FILTER", "INSERT_BEFORE", insert(LUA), beside("istio.stats")),
        "no filter is called 'istio.stats'; known: ",
    ),
}


@pytest.mark.parametrize("name", UNAPPLIED)
def test_a_patch_that_is_not_for_us_is_left_out_and_that_is_said(name):
    patch, why = UNAPPLIED[name]
    told = finding(*patch)
    assert told.why.startswith("spec.configPatches[0]: is not applied: ")
    assert why in told.why
    assert told.level == "warning"


def test_every_filter_up_to_the_last_policy_is_guarded():
    """A new one among them must not become something that a patch may replace."""
    names = [each["name"] for each in http_filters()]
    asked = names[: names.index(tokens.LIMITERS[-1]) + 1]
    assert set(asked) == set(GUARDS)
    assert limits.LOCAL in GUARDS
