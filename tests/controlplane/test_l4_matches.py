"""Every field of a match by which a connection is routed, and those of a request that are about places: honoured, or
the rule takes nothing at all. What Envoy makes of it is in `tests/lab/test_l7_matches.py`."""

import pytest

from controlplane.l7.routes import HttpMatch, L4Match
from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.resources import Translation
from controlplane.translate.envoy.world import View
from controlplane.translate.virtual_services import _both
from mesh.envoy import LISTENER, unpack
from tests.controlplane.documents import store_of
from tests.controlplane.l7 import DB, SHOP, WEB, routes, served

TLS = """
apiVersion: v1
kind: Service
metadata: {name: safe, namespace: shop}
spec: {clusterIP: 10.1.0.3, ports: [{name: tls, port: 443}, {name: any, port: 9000}], selector: {app: safe}}
---
"""
GATE = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 5432, name: tcp, protocol: TCP}, hosts: ['*']}
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [a.example, b.example], tls: {mode: PASSTHROUGH}}
---
apiVersion: v1
kind: Pod
metadata: {name: gate-1, namespace: shop, labels: {istio: ingressgateway}}
spec: {nodeName: n, serviceAccountName: gate}
status: {podIP: 10.0.0.9}
---
"""


def virtual(spec, name="a"):
    head = f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n"
    return f"{head}spec: {spec}\n---\n"


def listeners(text, proxy="shop/way"):
    """By name, as JSON."""
    store = store_of(SHOP + TLS + text)
    errors = [str(finding) for finding in store.findings if finding.level == "error"]
    assert not errors, errors
    found = Translation(View(store.world), store.l7, Cache()).of(store.l7.proxies[proxy])[LISTENER]
    return {name: unpack(item) for name, item in found.items()}


def leads_to(chain):
    proxy = chain["filters"][-1]["typed_config"]
    return proxy.get("cluster") or [each["name"] for each in proxy["weighted_clusters"]["clusters"]]


def short(predicate):
    """A predicate as a tuple that can be read."""
    if "and_matcher" in predicate:
        return ("and", *map(short, predicate["and_matcher"]["predicate"]))
    if "or_matcher" in predicate:
        return ("or", *map(short, predicate["or_matcher"]["predicate"]))
    single = predicate["single_predicate"]
    kind = single["input"]["typed_config"]["@type"].rpartition(".")[2].removesuffix("Input")
    if "custom_match" in single:
        ranges = single["custom_match"]["typed_config"]["cidr_ranges"]
        return (kind, *(f"{each['address_prefix']}/{each['prefix_len']}" for each in ranges))
    match = single["value_match"]
    return kind, match.get("exact") or match.get("suffix") or match["safe_regex"]["regex"]


def choices(listener):
    """What is asked in order, with where it leads; the last is for what nothing else takes."""
    matcher = listener.get("filter_chain_matcher")
    chains = {chain.get("name", ""): leads_to(chain) for chain in listener["filter_chains"] if leads_to(chain)}
    if not matcher:
        [only] = chains.values()
        return [((), only)]
    found = [
        (short(each["predicate"]), chains[each["on_match"]["action"]["name"]])
        for each in matcher["matcher_list"]["matchers"]
    ]
    return [*found, ((), chains[matcher["on_no_match"]["action"]["name"]])]


def route(match, to="web"):
    return f"{{match: [{match}], route: [{{destination: {{host: {to}}}}}]}}"


ITSELF = ((), f"out|5432||{DB}")
ELSEWHERE = f"out|80||{WEB}"
HERE = "spiffe://[^/]+/ns/shop/sa/.+"
TCP = [
    ("{port: 5432}", [((), ELSEWHERE)]),
    ("{port: 5433}", [ITSELF]),
    ("{destinationSubnets: [10.1.0.0/24]}", [(("DestinationIP", "10.1.0.0/24"), ELSEWHERE), ITSELF]),
    ("{destinationSubnets: [10.1.0.2]}", [(("DestinationIP", "10.1.0.2/32"), ELSEWHERE), ITSELF]),
    ("{sourceSubnet: 10.9.0.0/16}", [(("SourceIP", "10.9.0.0/16"), ELSEWHERE), ITSELF]),
    ("{sourceNamespace: shop}", [(("FilterState", HERE), ELSEWHERE), ITSELF]),
    ("{sourceLabels: {app: x}}", [ITSELF]),
    ("{gateways: [other]}", [ITSELF]),
    ("{gateways: [mesh]}", [((), ELSEWHERE)]),
    (
        "{sourceNamespace: shop, destinationSubnets: [10.1.0.2], port: 5432}",
        [(("and", ("DestinationIP", "10.1.0.2/32"), ("FilterState", HERE)), ELSEWHERE), ITSELF],
    ),
    (
        "{sourceNamespace: shop}, {destinationSubnets: [10.1.0.2]}",
        [(("or", ("FilterState", HERE), ("DestinationIP", "10.1.0.2/32")), ELSEWHERE), ITSELF],
    ),
]


@pytest.mark.parametrize(("match", "expected"), TCP)
def test_a_connection_through_a_waypoint_takes_a_route_only_where_its_match_is_true(match, expected):
    text = virtual(f"{{hosts: [db], gateways: [mesh, other], tcp: [{route(match)}]}}")
    assert choices(listeners(text)[f"{DB}|5432"]) == expected


def test_of_several_routes_the_first_true_one_counts_and_what_comes_after_one_for_all_is_left_out():
    first, second = route("{sourceNamespace: shop}"), route("{port: 5432}", "safe.shop.svc.cluster.local")
    text = virtual(f"{{hosts: [db], tcp: [{first}, {second}, {route('{sourceNamespace: x}')}]}}")
    found = choices(listeners(text)[f"{DB}|5432"])
    assert [where for _, where in found] == [ELSEWHERE, "out|0||"]  # no port 5432 there: nowhere


SAFE = "shop/safe.shop.svc.cluster.local"
SNI = [
    ("safe.shop.svc.cluster.local", "safe.shop.svc.cluster.local"),
    ("'*.shop.svc.cluster.local'", ".shop.svc.cluster.local"),
]


@pytest.mark.parametrize(("written", "asked"), SNI)
@pytest.mark.parametrize("port", [443, 9000])
def test_a_server_name_is_looked_at_where_it_can_be_seen(written, asked, port):
    host = "safe.shop.svc.cluster.local" if "*" not in written else written
    listener = listeners(virtual(f"{{hosts: [{host}], tls: [{route(f'{{sniHosts: [{written}]}}')}]}}"))[
        f"{SAFE}|{port}"
    ]
    asked_for = [each for each in choices_of_tcp(listener) if each[0]]
    assert asked_for == [(("ServerName", asked), ELSEWHERE)]
    assert "envoy.filters.listener.tls_inspector" in [each["name"] for each in listener["listener_filters"]]


def choices_of_tcp(listener):
    """Without HTTP, which a port without a protocol looks for first."""
    web = [chain["name"] for chain in listener["filter_chains"] if "http" in chain["filters"][-1]["name"]]
    matchers = listener["filter_chain_matcher"]["matcher_list"]["matchers"]
    kept = [each for each in matchers if each["on_match"]["action"]["name"] not in web]
    without = {**listener, "filter_chains": [c for c in listener["filter_chains"] if c["name"] not in web]}
    without["filter_chain_matcher"] = {**listener["filter_chain_matcher"], "matcher_list": {"matchers": kept}}
    return choices(without)


def test_a_server_name_is_not_looked_for_at_a_port_of_plain_tcp():
    """A server that speaks first would have to wait for it, so such a route takes nothing there."""
    text = virtual(f"{{hosts: [db], tls: [{route('{sniHosts: [db]}')}]}}")
    assert choices(listeners(text)[f"{DB}|5432"]) == [ITSELF]


def test_a_tls_route_of_the_gateway_api_is_for_its_host_names_and_its_parents_port():
    text = """
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: t, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: safe, port: 443}]
  hostnames: [one.example]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: c, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: db, port: 5432}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"""
    [tls] = served(text, SAFE, SHOP + TLS).l4
    assert tls.matches == (L4Match(443, ("one.example",)),)
    [tcp] = served(text, DB, SHOP + TLS).l4
    assert tcp.matches == (L4Match(5432),)


def at_the_gate(text):
    """By port: each chain's match and where it leads."""
    found = {}
    for name, listener in listeners(GATE + text, "shop/ingressgateway").items():
        if name.startswith("gateway|"):
            found[int(name.rpartition("|")[2])] = [(_match(c), leads_to(c)) for c in listener["filter_chains"]]
    return found


def _match(chain):
    match = chain.get("filter_chain_match", {})
    ranges = [
        f"{part[:3]} {each['address_prefix']}/{each['prefix_len']}"
        for part in ("prefix_ranges", "source_prefix_ranges")
        for each in match.get(part, ())
    ]
    return (*match.get("server_names", ()), *ranges)


# Envoy refuses a listener without chains, and would go on with the routes that it had.
NOBODY = [((), "out|0||")]
GATE_TCP = [
    ("{port: 5432}", [((), ELSEWHERE)]),
    ("{port: 5433}", NOBODY),
    (
        "{destinationSubnets: [10.0.0.0/8, 11.0.0.0/8]}",
        [(("pre 10.0.0.0/8",), ELSEWHERE), (("pre 11.0.0.0/8",), ELSEWHERE)],
    ),
    ("{sourceSubnet: 10.9.0.0/16}", [(("sou 10.9.0.0/16",), ELSEWHERE)]),
    ("{sourceNamespace: shop}", NOBODY),
    ("{sourceLabels: {app: x}}", NOBODY),
    ("{gateways: [front]}", [((), ELSEWHERE)]),
    ("{gateways: [shop/front]}", [((), ELSEWHERE)]),
    ("{gateways: [mesh]}", NOBODY),
    ("{gateways: [other/front]}", NOBODY),
]


@pytest.mark.parametrize(("match", "expected"), GATE_TCP)
def test_a_connection_through_a_gateway_takes_a_route_only_where_its_match_is_true(match, expected):
    text = virtual(f"{{hosts: ['*'], gateways: [front, other/front], tcp: [{route(match)}]}}")
    assert at_the_gate(text)[5432] == expected


GATE_TLS = [
    ("{sniHosts: [a.example]}", [(("a.example",), ELSEWHERE)]),
    ("{sniHosts: [a.example, c.example]}", [(("a.example",), ELSEWHERE)]),
    ("{sniHosts: [c.example]}", NOBODY),
    ("{sniHosts: [a.example], destinationSubnets: [10.0.0.0/8]}", [(("a.example", "pre 10.0.0.0/8"), ELSEWHERE)]),
    ("{sniHosts: [a.example], port: 5432}", NOBODY),
]


@pytest.mark.parametrize(("match", "expected"), GATE_TLS)
def test_a_server_name_that_the_gateways_server_does_not_have_is_not_let_in(match, expected):
    text = virtual(f"{{hosts: [a.example, c.example], gateways: [front], tls: [{route(match)}]}}")
    assert at_the_gate(text)[443] == expected


def test_tcp_routes_behind_a_server_that_passes_tls_through_are_for_the_names_of_that_server():
    text = virtual(f"{{hosts: ['*'], gateways: [front], tcp: [{route('{port: 443}')}]}}")
    assert at_the_gate(text)[443] == [(("a.example", "b.example"), ELSEWHERE)]


def test_a_name_that_two_routes_claim_is_the_first_ones_or_envoy_would_refuse_the_listener():
    text = virtual(f"{{hosts: [a.example], gateways: [front], tls: [{route('{sniHosts: [a.example]}')}]}}")
    both = route("{sniHosts: [a.example, b.example]}", "db")
    text += virtual(f"{{hosts: [a.example, b.example], gateways: [front], tls: [{both}]}}", "b")
    assert at_the_gate(text)[443] == [(("a.example",), ELSEWHERE), (("b.example",), "out|0||")]


def test_a_gateway_in_a_match_is_that_of_the_documents_own_namespace():
    """Not any of that name: the document is bound to both."""
    routed = "http: [{match: [{gateways: [front]}], redirect: {uri: /}}]"
    text = virtual(f"{{hosts: [a.example], gateways: [front, other/front], {routed}}}")
    http = GATE.replace("5432, name: tcp, protocol: TCP", "80, name: http, protocol: HTTP")
    other = http.partition("---")[0].replace("namespace: shop", "namespace: other")
    servers = store_of(SHOP + http + other + "---\n" + text).l7.proxies["shop/ingressgateway"].servers
    found = {server.name: bool(server.virtual_hosts) for server in servers if server.http}
    assert found == {"shop/front/http": True, "other/front/http": False}


HTTP = [
    ("{sourceNamespace: x}", (HttpMatch(source_namespace="x"),)),
    ("{port: 81}", (HttpMatch(port=81),)),
    ("{name: n, statPrefix: s, port: 80}", (HttpMatch(port=80),)),
]


@pytest.mark.parametrize(("match", "expected"), HTTP)
def test_a_match_of_requests_keeps_what_it_says_of_places(match, expected):
    [found] = routes(virtual(f"{{hosts: [web], http: [{{match: [{match}], redirect: {{uri: /}}}}]}}"))
    assert found.matches == expected


@pytest.mark.parametrize("match", ["{sourceLabels: {app: x}}", "{gateways: [other]}"])
def test_a_match_that_is_for_elsewhere_takes_no_request(match):
    text = f"{{hosts: [web], gateways: [mesh, other], http: [{{match: [{match}], redirect: {{uri: /}}}}]}}"
    assert routes(virtual(text)) == ()


NARROWED = [
    ({"gateways": ["a", "b"]}, {"gateways": ["b", "c"]}, ["b"]),
    ({"gateways": ["a"]}, {"gateways": ["b"]}, None),
    ({"gateways": ["a"]}, {}, ["a"]),
]


@pytest.mark.parametrize(("outer", "inner", "expected"), NARROWED)
def test_a_delegates_match_is_for_the_gateways_of_both(outer, inner, expected):
    both = _both(outer, inner)
    assert (both and both["gateways"]) == expected


def test_paths_that_one_of_two_compares_by_case_are_never_both():
    one = {"uri": {"prefix": "/a"}, "ignoreUriCase": True}
    assert _both(one, {"uri": {"prefix": "/a/b"}}) is None
    assert _both({"uri": {"prefix": "/a"}}, {"uri": {"prefix": "/a/b"}, "ignoreUriCase": True}) is None


TOLD = [
    ("mesh", "sourceLabels: {app: x}", "never matches: waypoints and gateways do not know a client's labels"),
    ("front", "sourceNamespace: shop", "never matches: this is for gateways only, whose clients have none"),
]


@pytest.mark.parametrize(("gateway", "match", "says"), TOLD)
def test_what_never_matches_says_so_at_its_line(gateway, match, says):
    text = virtual(f"{{hosts: [db], gateways: [{gateway}], tcp: [{route(f'{{{match}}}')}]}}")
    [warning] = [str(found) for found in store_of(SHOP + text).findings if found.level == "warning"]
    assert says in warning


BAD = ["destinationSubnets: [somewhere]", "destinationSubnets: [10.0.0.0/40]", "sourceSubnet: '*'"]


@pytest.mark.parametrize("match", BAD)
def test_a_subnet_that_is_none_is_an_error_at_its_line(match):
    store = store_of(SHOP + virtual(f"{{hosts: [db], tcp: [{route(f'{{{match}}}')}]}}"))
    [error] = [finding for finding in store.findings if finding.level == "error"]
    assert "is not an address or a network, as 10.0.0.0/8" in str(error)
