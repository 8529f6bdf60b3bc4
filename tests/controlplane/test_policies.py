"""What is written about access, as the layer-4 policies that a tunnel enforces."""

import pytest

from controlplane.translate.authorization import NEVER
from mesh.model import Action, Comparison, Match, Scope, StringMatch
from tests.controlplane.documents import findings_of, pod, world_of

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
NOBODY = (StringMatch(Comparison.PRESENCE),)
STRICT = "istio-system/istio_converted_static_strict"


def authorization(spec, namespace="shop", name="p", annotations=""):
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}
spec: {spec}
---
"""


def peers(mode, namespace="shop", name="default", selector="", ports="", created=""):
    parts = [f"mtls: {{mode: {mode}}}"] if mode else []
    parts += [f"selector: {{matchLabels: {{{selector}}}}}"] if selector else []
    parts += [f"portLevelMtls: {{{ports}}}"] if ports else []
    stamp = f', creationTimestamp: "{created}"' if created else ""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}{stamp}}}
spec: {{{", ".join(parts)}}}
---
"""


def compiled(spec, **more):
    return world_of(authorization(spec, **more)).policies[f"{more.get('namespace', 'shop')}/p"]


def carried_by(text, uid="Kubernetes//Pod/shop/web"):
    return world_of(text + pod("web", labels="app: web")).workloads[uid].policies


@pytest.mark.parametrize(
    ("spec", "where", "scope"),
    [
        ("{}", "shop", Scope.NAMESPACE),
        ("{}", "istio-system", Scope.GLOBAL),
        ("{selector: {matchLabels: {app: web}}}", "shop", Scope.WORKLOAD_SELECTOR),
        ("{selector: {matchLabels: {app: web}}}", "istio-system", Scope.WORKLOAD_SELECTOR),
        ("{selector: {matchLabels: {}}}", "shop", Scope.NAMESPACE),
    ],
)
def test_where_a_policy_stands_and_what_it_selects_make_its_scope(spec, where, scope):
    assert compiled(spec, namespace=where).scope is scope


def test_an_allow_policy_without_rules_allows_nothing_and_an_empty_rule_allows_everything():
    assert compiled("{}").rules == ()
    assert compiled("{rules: [{}]}").rules == ((),)


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("shop", StringMatch(Comparison.EXACT, "shop")),
        ("shop*", StringMatch(Comparison.PREFIX, "shop")),
        ("*shop", StringMatch(Comparison.SUFFIX, "shop")),
        ("*", StringMatch(Comparison.PRESENCE)),
    ],
)
def test_a_star_stands_for_a_prefix_a_suffix_or_presence(written, means):
    policy = compiled(f'{{rules: [{{from: [{{source: {{namespaces: ["{written}"]}}}}]}}]}}')
    assert policy.rules == (((Match(namespaces=(means,)),),),)


def test_sources_operations_and_each_condition_are_one_clause_each():
    policy = compiled(
        """
      action: DENY
      rules:
      - from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]
        to: [{operation: {ports: ["80"]}}]
        when: [{key: destination.port, notValues: ["81"]}, {key: source.serviceAccount, values: [shop/bot]}]"""
    )
    [rule] = policy.rules
    assert [len(clause) for clause in rule] == [1, 2, 1, 1]
    assert policy.action is Action.DENY


@pytest.mark.parametrize(
    "http",
    [
        "to: [{operation: {methods: [GET]}}]",
        'to: [{operation: {paths: ["/a"], ports: ["80"]}}]',
        "to: [{operation: {notHosts: [a]}}]",
        'from: [{source: {requestPrincipals: ["*"]}}]',
        "from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]",
        'when: [{key: "request.headers[x]", values: [y]}]',
    ],
)
def test_an_allow_rule_that_needs_http_never_allows_and_says_so(http):
    text = f"{{rules: [{{{http}}}]}}"
    assert compiled(text).rules == (NEVER,)
    [finding] = findings_of(authorization(text))
    assert "cannot be judged at layer 4: this rule never allows anything" in finding


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ('to: [{operation: {methods: [GET], ports: ["80"]}}]', ((Match(destination_ports=(80,)),),)),
        ("to: [{operation: {methods: [GET]}}]", ()),
        (
            "from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]",
            ((Match(namespaces=(StringMatch(Comparison.EXACT, "a"),)),),),
        ),
        (  # either operation makes the rule match, so the one that lost everything makes the whole clause true
            'to: [{operation: {methods: [GET]}}, {operation: {ports: ["80"]}}]',
            (),
        ),
        ('when: [{key: connection.sni, values: ["a"]}]', ()),
    ],
)
def test_a_deny_rule_that_needs_http_denies_without_regard_to_it(rule, left):
    assert compiled(f"{{action: DENY, rules: [{{{rule}}}]}}").rules == (left,)


def test_what_no_tunnel_can_enforce_is_not_sent_and_is_reported():
    spec = "{action: CUSTOM, provider: {name: x}, rules: [{}]}"
    assert list(world_of(authorization(spec)).policies) == [STRICT]
    assert "not enforced" in findings_of(authorization(spec))[0]


@pytest.mark.parametrize("kind", ["Service", "ServiceEntry", "Gateway", "GatewayClass"])
def test_what_is_attached_to_a_waypoint_is_not_sent_to_tunnels(kind):
    spec = f"{{targetRefs: [{{kind: {kind}, name: web}}], rules: [{{}}]}}"
    assert list(world_of(authorization(spec)).policies) == [STRICT]
    assert findings_of(authorization(spec)) == []


def test_an_audit_is_sent_and_reports_without_regard_to_http():
    policy = compiled("{action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]}")
    assert (policy.action, policy.rules) == (Action.AUDIT, ((),))
    [finding] = findings_of(authorization("{action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]}"))
    assert "this rule reports without regard to it" in finding


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("trustDomains: [td]", Match(principals=(StringMatch(Comparison.PREFIX, "td/"),))),
        ('trustDomains: ["td*"]', Match(principals=(StringMatch(Comparison.PREFIX, "td"),))),
        ('trustDomains: ["*"]', Match(principals=NOBODY)),
        (
            "notTrustDomains: [td], notPrincipals: [td2/ns/a/sa/b]",
            Match(
                not_principals=(
                    StringMatch(Comparison.EXACT, "td2/ns/a/sa/b"),
                    StringMatch(Comparison.PREFIX, "td/"),
                )
            ),
        ),
    ],
)
def test_a_trust_domain_is_what_a_principal_begins_with(source, match):
    assert compiled(f"{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}").rules == (((match,),),)


@pytest.mark.parametrize("source", ['trustDomains: [td, "*x"]', "trustDomains: [td], principals: [td/ns/a/sa/b]"])
def test_trust_domains_that_no_principal_can_tell_never_widen(source):
    rule = f"rules: [{{from: [{{source: {{{source}}}}}]}}]"
    assert compiled(f"{{{rule}}}").rules == (NEVER,)
    principals = (StringMatch(Comparison.EXACT, "td/ns/a/sa/b"),) if "principals" in source else ()
    left = (((Match(principals=principals),),),) if principals else ((),)
    assert compiled(f"{{action: DENY, {rule}}}").rules == left


EGRESS = "nodemesh/direction: egress"


def test_an_egress_policy_is_carried_by_its_clients_and_judges_the_server():
    spec = """
      selector: {matchLabels: {app: web}}
      rules:
      - to: [{operation: {hosts: ["DB.bank.svc.cluster.local"], ports: ["5432"]}}]
        when:
        - {key: destination.namespace, values: [bank]}
        - {key: destination.principal, values: ["cluster.local/*"]}
        - {key: destination.serviceAccount, values: [bank/db]}
        - {key: destination.ip, notValues: [10.0.0.0/8]}"""
    text = authorization(spec, annotations=EGRESS) + authorization("{}", name="all", annotations=EGRESS)
    world = world_of(
        text
        + authorization("{}", namespace="istio-system", name="mesh", annotations=EGRESS)
        + pod("web", labels="app: web")
        + pod("other")
    )
    [(operation,), *conditions] = world.policies["shop/p"].rules[0]
    assert operation.services == (StringMatch(Comparison.EXACT, "db.bank.svc.cluster.local"),)
    assert operation.destination_ports == (5432,)
    assert [
        bool(c.namespaces or c.principals or c.service_accounts or c.not_destination_ips) for (c,) in conditions
    ] == ([True] * 4)
    assert {policy.scope for key, policy in world.policies.items()} == {Scope.WORKLOAD_SELECTOR}
    carried = {name: world.workloads[f"Kubernetes//Pod/shop/{name}"] for name in ("web", "other")}
    assert carried["web"].egress_policies == ("istio-system/mesh", "shop/all", "shop/p")
    assert carried["other"].egress_policies == ("istio-system/mesh", "shop/all")
    assert carried["web"].policies == ()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            "{rules: [{from: [{source: {namespaces: [a]}}]}]}",
            "the clients of an egress policy are those that it selects",
        ),
        ("{rules: [{when: [{key: source.ip, values: [10.0.0.1]}]}]}", "'source.ip' is not a known attribute"),
    ],
)
def test_an_egress_policy_does_not_speak_of_clients(spec, why):
    assert why in " ".join(findings_of(authorization(spec, annotations=EGRESS)))


def test_a_direction_is_ingress_or_egress():
    assert "'out' is not one of ingress, egress" in " ".join(
        findings_of(authorization("{}", annotations="nodemesh/direction: out"))
    )


def test_a_dry_run_is_marked():
    assert compiled("{}", annotations='istio.io/dry-run: "true"').dry_run


def test_a_selecting_policy_is_carried_by_workloads_of_its_namespace_or_of_all_from_the_root():
    spec = "{selector: {matchLabels: {app: web}}}"
    text = authorization(spec, name="own") + authorization(spec, namespace="istio-system", name="root")
    text += authorization(spec, namespace="elsewhere", name="other")
    text += authorization("{selector: {matchLabels: {app: db}}}", name="db")
    assert carried_by(text) == ("istio-system/root", "shop/own")


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("", False),
        (peers("STRICT"), True),
        (peers("PERMISSIVE"), False),
        (peers("DISABLE"), False),
        (peers("STRICT", namespace="istio-system"), True),
        (peers("STRICT", namespace="istio-system") + peers("PERMISSIVE"), False),
        (peers("STRICT", namespace="istio-system") + peers("UNSET"), True),
        (peers("STRICT") + peers("PERMISSIVE", name="w", selector="app: web"), False),
        (peers("STRICT") + peers("", name="w", selector="app: web"), True),
        (peers("PERMISSIVE") + peers("STRICT", name="w", selector="app: web"), True),
        (peers("PERMISSIVE") + peers("STRICT", name="w", selector="app: db"), False),
        (peers("STRICT", namespace="elsewhere"), False),
        (peers("STRICT", created=NEW) + peers("PERMISSIVE", name="a", created=OLD), False),
        (peers("STRICT", created=OLD) + peers("PERMISSIVE", name="a", created=NEW), True),
        (peers("STRICT", created=OLD) + peers("PERMISSIVE", name="a"), True),
    ],
)
def test_the_nearest_and_oldest_peer_authentication_decides(text, strict):
    assert carried_by(text) == ((STRICT,) if strict else ())


def test_the_static_policy_refuses_whoever_has_no_identity():
    policy = world_of("# no document").policies[STRICT]
    assert (policy.scope, policy.action) == (Scope.WORKLOAD_SELECTOR, Action.DENY)
    assert policy.rules == (((Match(not_principals=NOBODY),),),)


@pytest.mark.parametrize(
    ("namespace_mode", "mode", "ports", "match"),
    [
        ("PERMISSIVE", "STRICT", "80: {mode: DISABLE}", Match(not_principals=NOBODY, not_destination_ports=(80,))),
        ("STRICT", "", "80: {mode: PERMISSIVE}", Match(not_principals=NOBODY, not_destination_ports=(80,))),
        (
            "PERMISSIVE",
            "",
            "81: {mode: STRICT}, 80: {mode: STRICT}",
            Match(not_principals=NOBODY, destination_ports=(80, 81)),
        ),
        ("STRICT", "PERMISSIVE", "80: {mode: STRICT}", Match(not_principals=NOBODY, destination_ports=(80,))),
    ],
)
def test_ports_that_differ_from_the_rest_make_a_policy_of_the_workloads_own(namespace_mode, mode, ports, match):
    text = peers(namespace_mode) + peers(mode, name="w", selector="app: web", ports=ports)
    key = "shop/converted_peer_authentication_w"
    assert carried_by(text) == (key,)
    assert world_of(text).policies[key].rules == (((match,),),)


@pytest.mark.parametrize(
    ("mode", "ports", "carried"),
    [
        ("STRICT", "80: {mode: STRICT}", (STRICT,)),
        ("STRICT", "80: {mode: UNSET}", (STRICT,)),
        ("PERMISSIVE", "80: {mode: DISABLE}", ()),
    ],
)
def test_ports_that_do_not_differ_make_none(mode, ports, carried):
    text = peers(mode, name="w", selector="app: web", ports=ports)
    assert carried_by(text) == carried
    assert list(world_of(text).policies) == [STRICT]
