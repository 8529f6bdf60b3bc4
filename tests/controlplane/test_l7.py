"""Which documents count at a waypoint or gateway, which of several wins, what becomes of what is missing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.l7.routes import Compare, DirectResponse, HttpMatch, NamedText, Share, Target, Text
from controlplane.translate.hosts import exported, intersection, matches
from controlplane.translate.virtual_services import _both
from tests.controlplane.documents import store_of
from tests.controlplane.l7 import DB, SHOP, WEB, l7_of, routes, served


def virtual(name, spec, namespace="shop", created=""):
    meta = f"name: {name}, namespace: {namespace}" + (f", creationTimestamp: '{created}'" if created else "")
    return f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{meta}}}\nspec: {spec}\n---\n"


def rule(name, spec, namespace="shop"):
    meta = f"name: {name}, namespace: {namespace}"
    return f"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{{meta}}}\nspec: {spec}\n---\n"


def to(path, extra=""):
    return f"{{match: [{{uri: {{prefix: {path}}}}}], redirect: {{uri: {path}}}{extra}}}"


HOSTS = [
    ("web", True),
    ("web.shop.svc.cluster.local", True),
    ("'*.shop.svc.cluster.local'", True),
    ("'*.local'", True),
    ("web.shop", False),
    ("db", False),
]


@pytest.mark.parametrize(("host", "counts"), HOSTS)
def test_a_host_is_a_short_name_of_its_own_namespace_a_full_one_or_a_wildcard(host, counts):
    assert bool(routes(virtual("a", f"{{hosts: [{host}], http: [{to('/a')}]}}"))) is counts


@pytest.mark.parametrize(
    ("namespace", "export", "counts"),
    [("shop", "['.']", True), ("shop", "[other]", False), ("other", "['*']", False), ("shop", "['*']", True)],
)
def test_only_what_the_services_or_the_waypoints_namespace_says_and_exports_counts(namespace, export, counts):
    text = f"{{hosts: [web.shop.svc.cluster.local], exportTo: {export}, http: [{to('/a')}]}}"
    assert bool(routes(virtual("a", text, namespace))) is counts


@pytest.mark.parametrize("gateway", ["front", "shop/front"])
def test_what_is_only_for_a_gateway_is_not_for_the_mesh(gateway):
    assert not routes(virtual("a", f"{{hosts: [web], gateways: [{gateway}], http: [{to('/a')}]}}"))
    assert routes(virtual("a", f"{{hosts: [web], gateways: [{gateway}, mesh], http: [{to('/a')}]}}"))


def names(found):
    return [route.name.removeprefix("shop/") for route in found]


def test_a_waypoint_is_programmed_or_whoever_waits_for_it_would_wait_for_ever():
    """The API server gives every Gateway the condition Programmed with the status Unknown."""
    store = store_of(SHOP)
    (told,) = (each for each in store.conditions() if each["kind"] == "Gateway")
    whole = [each for each in told["conditions"] if "parent" not in each]
    assert [(each["type"], each["status"], each["reason"]) for each in whole] == [
        ("Accepted", "True", "Accepted"),
        ("Programmed", "True", "Programmed"),
    ]
    assert told["listeners"] == [{"name": "mesh", "supportedKinds": [], "attachedRoutes": 0}]


def test_of_several_for_one_host_the_oldest_comes_first_and_the_closest_host_before_that():
    text = virtual("young", f"{{hosts: [web], http: [{to('/a')}]}}", created="2026-02-01T00:00:00Z")
    text += virtual("old", f"{{hosts: [web], http: [{to('/b')}]}}", created="2026-01-01T00:00:00Z")
    text += virtual("wild", f"{{hosts: ['*.local'], http: [{to('/c')}]}}", created="2025-01-01T00:00:00Z")
    assert names(routes(text)) == ["old/0", "young/0", "wild/0"]


def test_nothing_comes_after_a_route_that_takes_everything():
    text = virtual("a", f"{{hosts: [web], http: [{{redirect: {{uri: /}}}}, {to('/b')}]}}")
    text += virtual("b", f"{{hosts: [web], http: [{to('/c')}]}}")
    assert names(routes(text)) == ["a/0"]


def test_a_delegates_routes_stand_where_the_root_names_it_narrowed_by_its_matches():
    text = virtual(
        "root", "{hosts: [web], http: [{match: [{uri: {prefix: /a}}], timeout: 1s, delegate: {name: inner}}]}"
    )
    inner = f"{{http: [{to('/a/b')}, {to('/c')}, {{redirect: {{uri: /rest}}, timeout: 2s}}]}}"
    found = routes(text + virtual("inner", inner))
    assert [(r.matches[0].path.value, r.timeout_s) for r in found] == [("/a/b", 1.0), ("/a", 2.0)]


def test_a_delegate_that_does_not_exist_answers_with_500():
    [route] = routes(virtual("root", "{hosts: [web], http: [{delegate: {name: gone}}]}"))
    assert route.action == DirectResponse(500)


def shares(text, service=WEB):
    return [share.target for share in routes(text, service)[0].action.shares]


NOWHERE = [
    "host: gone",
    "host: web, port: {number: 81}",
    "host: web, subset: v1",
    "host: db.elsewhere.svc.cluster.local",
]


@pytest.mark.parametrize("destination", NOWHERE)
def test_a_destination_that_does_not_exist_goes_nowhere_and_its_share_to_nobody_else(destination):
    text = f"[{{destination: {{{destination}}}, weight: 1}}, {{destination: {{host: web}}, weight: 1}}]"
    assert shares(virtual("a", f"{{hosts: [web], http: [{{route: {text}}}]}}")) == [Target(""), Target(WEB, 80)]


def test_a_port_can_be_given_by_its_name_as_in_the_first_version():
    text = virtual("a", "{hosts: [web], http: [{route: [{destination: {host: db, port: {name: tcp}}}]}]}")
    assert shares(text) == [Target(DB, 5432)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(["90", "10"], [90, 10]), (["0", "5"], [5]), (["", "7"], [7]), ([""], [1]), (["0"], [1])],
)
def test_weights_are_relative_and_one_destination_needs_none(weights, expected):
    listed = ", ".join("{destination: {host: web}" + (f", weight: {w}" if w else "") + "}" for w in weights)
    found = routes(virtual("a", f"{{hosts: [web], http: [{{route: [{listed}]}}]}}"))[0].action.shares
    assert [share.weight for share in found] == expected
    assert all(isinstance(share, Share) for share in found)


RETRIES = [
    ("", (2, ("connect-failure", "refused-stream", "unavailable", "cancelled"), (503,))),
    (", retries: {attempts: 1}", (1, ("connect-failure", "refused-stream", "unavailable", "cancelled"), (503,))),
    (", retries: {attempts: 3, retryOn: '5xx'}", (3, ("5xx",), ())),
    (", retries: {attempts: 3, retryOn: 'reset,409,retriable-status-codes'}", (3, ("reset",), (409,))),
]


@pytest.mark.parametrize(("text", "expected"), RETRIES)
def test_retries_are_istios_unless_said_otherwise(text, expected):
    [route] = routes(virtual("a", f"{{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}]{text}}}]}}"))
    assert (route.retries.attempts, route.retries.conditions, route.retries.statuses) == expected


def test_a_hash_keeps_a_retry_on_its_host():
    text = virtual("a", "{hosts: [web], http: [{route: [{destination: {host: web}}]}]}")
    assert routes(text)[0].retries.other_hosts
    hashed = "{host: web, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}"
    assert not routes(text + rule("a", hashed))[0].retries.other_hosts


def limit(number):
    return f"trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {number}}}}}}}"


def pool(model, service=WEB):
    proxy = model.proxies["shop/way"]
    found = proxy.destinations.get(service) or model.destinations.get(service)
    return found.traffic.pool.max_connections if found else None


LOOKUP = [
    ([("a", "web.shop.svc.cluster.local", 1, "shop"), ("b", "'*.local'", 2, "shop")], 1),
    ([("a", "'*.cluster.local'", 1, "shop"), ("b", "'*.local'", 2, "shop")], 1),
    ([("a", "web.shop.svc.cluster.local", 1, "istio-system")], 1),
    ([("a", "web.shop.svc.cluster.local", 1, "istio-system"), ("b", "'*'", 2, "shop")], 2),
    ([("a", "web.shop.svc.cluster.local", 1, "elsewhere")], None),
]


@pytest.mark.parametrize(("rules", "expected"), LOOKUP)
def test_the_closest_host_wins_then_the_nearest_namespace(rules, expected):
    text = "".join(rule(name, f"{{host: {host}, {limit(n)}}}", where) for name, host, n, where in rules)
    assert pool(l7_of(text)) == expected


FAR = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: out}
spec: {hosts: [api.example.com], addresses: [192.0.2.1], ports: [{number: 80, name: http}], resolution: DNS}
---
"""


def test_a_proxys_own_namespace_may_say_how_it_calls_a_service_of_another():
    own = rule("mine", f"{{host: api.example.com, {limit(1)}}}")
    theirs = rule("theirs", f"{{host: api.example.com, {limit(2)}}}", "out")
    model = l7_of(FAR + own + theirs)
    assert pool(model, "out/api.example.com") == 1
    assert model.destinations["out/api.example.com"].traffic.pool.max_connections == 2


def test_a_rule_that_is_not_exported_is_only_for_its_own_namespace():
    hidden = rule("theirs", f"{{host: api.example.com, exportTo: ['.'], {limit(2)}}}", "out")
    wide = rule("wide", f"{{host: '*', {limit(3)}}}", "istio-system")
    model = l7_of(FAR + hidden + wide)
    assert model.destinations["out/api.example.com"].traffic.pool.max_connections == 2


def attached(kind, name, spec):
    meta = f"{{name: {name}, namespace: shop}}"
    return f"apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {meta}\nspec: {spec}\n---\n"


def test_a_waypoint_never_looks_at_selectors_and_takes_what_names_it_or_its_service():
    text = attached("AuthorizationPolicy", "selecting", "{selector: {matchLabels: {app: web}}, rules: [{}]}")
    text += attached("AuthorizationPolicy", "wide", "{}")
    text += attached("AuthorizationPolicy", "on-web", "{targetRefs: [{kind: Service, name: web}], rules: [{}]}")
    group = "group: gateway.networking.k8s.io"
    text += attached("AuthorizationPolicy", "on-way", f"{{targetRefs: [{{kind: Gateway, {group}, name: way}}]}}")
    keys = {s: [a.name for a in served(text, s).rules.authorizations] for s in (WEB, DB)}
    assert keys == {WEB: ["on-way", "on-web"], DB: ["on-way"]}


MESH = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: a, envoyExtAuthzGrpc: {service: web.shop.svc.cluster.local, port: 80}}
    - {name: b, envoyExtAuthzGrpc: {service: web.shop.svc.cluster.local, port: 80}}
    - {name: c, envoyExtAuthzGrpc: {service: web.shop.svc.cluster.local, port: 80}}
    - {name: away, envoyExtAuthzGrpc: {service: gone.shop.svc.cluster.local, port: 80}}
---
"""


def told(text, kind):
    """What is said of each object of a kind that is not accepted."""
    notices = store_of(SHOP + text).notices
    return {each.name: (each.reason, each.message) for each in notices if each.kind == kind and not each.status}


def test_a_policy_whose_authorizer_is_not_asked_says_so():
    spec = "{{targetRefs: [{{kind: Service, name: web}}], action: CUSTOM, provider: {{name: {0}}}, rules: [{{}}]}}"
    policies = "".join(attached("AuthorizationPolicy", f"by-{each}", spec.format(each)) for each in "abc")
    assert told(MESH + policies, "AuthorizationPolicy") == {
        "by-c": (
            "LimitExceeded",
            "proxy shop/way asks 2 external authorizers at most (a, b) and not 'c': what it matches is refused",
        )
    }
    others = "".join(attached("AuthorizationPolicy", f"by-{each}", spec.format(each)) for each in ("away", "nobody"))
    found = told(MESH + others, "AuthorizationPolicy")
    assert [reason for reason, _ in found.values()] == ["ProviderNotFound"] * 2
    assert found["by-away"][1].startswith("the service of extensionProvider 'away' does not exist")
    assert found["by-nobody"][1].startswith("'nobody' is none of the mesh's extensionProviders")


BROKEN = "{targetRefs: [{kind: Service, name: web}], action: DENI}"


def test_an_attached_policy_that_cannot_be_read_at_the_start_denies_everything_there():
    store = store_of(SHOP + attached("AuthorizationPolicy", "broken", BROKEN))
    [web] = [each for each in store.l7.proxies["shop/way"].services if each.service == WEB]
    [policy] = web.rules.authorizations
    assert (policy.action, len(policy.rules)) == ("DENY", 1)
    assert store.conditions()[-1]["conditions"][0]["reason"] == "Invalid"


def test_a_policy_on_a_service_without_a_waypoint_says_that_nobody_enforces_it():
    text = attached("AuthorizationPolicy", "a", "{targetRefs: [{kind: Service, name: web}], rules: [{}]}")
    store = store_of(SHOP.replace("istio.io/use-waypoint: way", "a: b") + text)
    [found] = [each for each in store.conditions() if each["kind"] == "AuthorizationPolicy"]
    assert [each["reason"] for each in found["conditions"]] == ["AncestorNotBound"]


def test_of_several_targets_one_condition_names_those_that_nobody_serves():
    refs = ", ".join(f"{{kind: Service, name: {name}}}" for name in ("web", "gone", "lost"))
    spec = f"{{targetRefs: [{refs}], rules: [{{}}]}}"
    store = store_of(SHOP + attached("AuthorizationPolicy", "a", spec))
    [found] = [each for each in store.conditions() if each["kind"] == "AuthorizationPolicy"]
    [condition] = found["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "TargetNotFound")
    assert condition["message"] == "Service shop/gone does not exist; Service shop/lost does not exist"


PATTERNS = st.sampled_from(["*", "a.b", "*.b", "*.a.b", "c.a.b", "x.y", "*.y"])


@settings(max_examples=200, deadline=None)
@given(PATTERNS, PATTERNS)
def test_an_intersection_is_one_of_both_and_within_both(one, other):
    found = intersection(one, other)
    assert found == intersection(other, one)
    assert found is None or (found in (one, other) and matches(one, found) and matches(other, found))


EXPORTS = [([], True), (["*"], True), (["."], False), (["to"], True), (["~"], False), (["x", "to"], True)]


@pytest.mark.parametrize(("export", "expected"), EXPORTS)
def test_nothing_said_is_exported_to_everybody(export, expected):
    assert exported(export, "own", "to") is expected


# What the Gateway API's precedence means, for every request: of the matches that are true the closest wins.
PATHS = ("/", "/a", "/a/b", "/a/b/c", "/ab")


def rule_of(number, match):
    parts = [f"path: {{type: {match['how']}, value: {match['path']}}}"]
    if match["method"]:
        parts.append("method: GET")
    if match["headers"]:
        parts.append("headers: [" + ", ".join(f"{{name: h{i}, value: v}}" for i in range(match["headers"])) + "]")
    return f"  - name: r{number}\n    matches: [{{{', '.join(parts)}}}]\n    backendRefs: [{{name: web, port: 80}}]\n"


MATCH = st.fixed_dictionaries(
    {
        "how": st.sampled_from(["Exact", "PathPrefix"]),
        "path": st.sampled_from(PATHS),
        "method": st.booleans(),
        "headers": st.integers(0, 2),
    }
)


def is_true(match: HttpMatch, path, method, headers):
    wanted = match.path
    if wanted and wanted.how is Compare.EXACT and path != wanted.value:
        return False
    if wanted and wanted.how is Compare.SEGMENTS and path != wanted.value and not path.startswith(wanted.value + "/"):
        return False
    return (not match.method or method == "GET") and len(match.headers) <= headers


def oracle(rules, path, method, headers):
    """The rule's number by the specification's words."""

    def fits(match):
        prefix = match["path"].rstrip("/")
        good = path == match["path"] or (match["how"] == "PathPrefix" and (path + "/").startswith(prefix + "/"))
        return good and (not match["method"] or method == "GET") and match["headers"] <= headers

    def closeness(item):
        number, match = item
        exact = match["how"] == "Exact"
        return (exact, len(match["path"].rstrip("/")), match["method"], match["headers"], -number)

    fitting = [(number, match) for number, match in enumerate(rules) if fits(match)]
    return max(fitting, key=closeness)[0] if fitting else None


@settings(max_examples=60, deadline=None)
@given(st.lists(MATCH, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_first_true_match_in_our_order_is_the_closest_by_the_specification(rules, rng: random.Random):
    head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n"
    head += "  parentRefs: [{group: '', kind: Service, name: web}]\n  rules:\n"
    found = routes(head + "".join(rule_of(number, match) for number, match in enumerate(rules)))
    for _ in range(20):
        request = rng.choice(PATHS), rng.choice(["GET", "PUT"]), rng.randint(0, 2)
        first = next((r.name for r in found if not r.matches or is_true(r.matches[0], *request)), None)
        expected = oracle(rules, *request)
        assert first == (None if expected is None else f"r{expected}"), request


URIS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"prefix": st.sampled_from(PATHS)}),
    st.fixed_dictionaries({"exact": st.sampled_from(PATHS)}),
)


def uri_true(match, path):
    uri = match.get("uri")
    return not uri or path == uri.get("exact") or ("prefix" in uri and path.startswith(uri["prefix"]))


@settings(max_examples=300, deadline=None)
@given(URIS, URIS, st.sampled_from(PATHS))
def test_a_delegates_narrowed_match_is_true_when_both_are(outer, inner, path):
    one, other = ({"uri": uri} if uri else {} for uri in (outer, inner))
    both = _both(one, other)
    assert (both is not None and uri_true(both, path)) == (uri_true(one, path) and uri_true(other, path))


def test_of_equal_header_names_in_a_match_the_first_counts():
    text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n"
    text += "  parentRefs: [{group: '', kind: Service, name: web}]\n"
    text += "  rules: [{matches: [{headers: [{name: A, value: one}, {name: a, value: two}]}]}]\n"
    [route] = routes(text)
    assert route.matches[0].headers == (NamedText("a", Text(Compare.EXACT, "one")),)
    assert route.action == DirectResponse(500)
