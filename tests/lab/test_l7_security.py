"""Who may do what, request by request: identities, methods, paths, tokens, external authorizers, rate limits."""

import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lab import apps
from lab.processes import wait_until
from tests.lab.mall import provider
from tests.lab.test_l7_routing import routes
from tests.waypoint.certificates import jwks, token

pytestmark = pytest.mark.lab

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{kind: Service, group: "", name: {service}}}]
  action: {action}
{rest}
---
"""


def policy(action: str, rest: str, name: str = "p", service: str = "reviews") -> str:
    lines = "\n".join(f"  {line}" for line in rest.strip("\n").split("\n"))
    return POLICY.format(name=name, service=service, action=action, rest=lines)


def test_a_call_is_denied_by_identity_and_method(mall):
    mall.apply(
        policy(
            "DENY",
            'rules: [{from: [{source: {principals: ["cluster.local/ns/mall/sa/bob"]}}],'
            " to: [{operation: {methods: [POST]}}]}]",
        )
    )
    assert mall.ask("/", "-X", "POST", client=mall.bob).status == 403
    assert mall.ask("/", client=mall.bob).status == 200
    assert mall.ask("/", "-X", "POST", client=mall.alice).status == 200


def test_who_is_not_on_the_list_gets_nothing(mall):
    mall.apply(policy("ALLOW", 'rules: [{from: [{source: {principals: ["cluster.local/ns/mall/sa/alice"]}}]}]'))
    assert mall.ask("/").status == 200
    assert mall.ask("/", client=mall.bob).status == 403


def test_a_policy_without_rules_lets_nobody_in(mall):
    mall.apply(policy("ALLOW", "rules: []"))
    assert mall.ask("/").status == 403


ATTRIBUTES = {
    "namespace": ('from: [{source: {namespaces: ["mall"]}}]', [], None),
    "service account": ('from: [{source: {serviceAccounts: ["mall/alice"]}}]', [], None),
    "not namespace": ('from: [{source: {notNamespaces: ["other"]}}]', [], None),
    "address": ('from: [{source: {ipBlocks: ["10.244.0.0/16"]}}]', [], None),
    "path": ('to: [{operation: {paths: ["/admin*"]}}]', "/admin/x", "/x"),
    "path template": ('to: [{operation: {paths: ["/shop/{*}/buy/{**}"]}}]', "/shop/7/buy/a/b", "/shop/7/8/buy/a"),
    "not path": ('to: [{operation: {notPaths: ["/public*"]}}]', "/private", "/public/x"),
    "port": ('to: [{operation: {ports: ["80"]}}]', [], None),
    "header": (
        'when: [{key: "request.headers[x-role]", values: ["admin"]}]',
        ["-H", "x-role: admin"],
        ["-H", "x-role: user"],
    ),
    "host": (
        'to: [{operation: {hosts: ["evil.example"]}}]',
        ["-H", "host: EVIL.example:80"],
        ["-H", "host: good.example"],
    ),
}


@pytest.mark.parametrize(("rule", "hit", "miss"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_a_denial_by_any_attribute(mall, rule, hit, miss):
    mall.apply(policy("DENY", f"rules: [{{{rule}}}]"))

    def status(request):
        return (mall.ask(request) if isinstance(request, str) else mall.ask("/", *request)).status

    assert status(hit) == 403
    if miss is not None:
        assert status(miss) == 200


def test_an_open_connection_is_judged_by_the_policy_of_now(mall):
    series = mall.series("judged", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n")
    series.until("200 ")
    mall.apply(policy("DENY", 'rules: [{from: [{source: {principals: ["cluster.local/ns/mall/sa/alice"]}}]}]'))
    series.until("403 ")
    lines = [line.split() for line in series.end()]
    codes = [code for code, _ in lines]
    assert codes == sorted(codes), "200 and from then on 403"
    assert sum(int(connects) for _, connects in lines) == 1


def test_an_audit_and_a_dry_run_decide_nothing(mall):
    rule = 'rules: [{from: [{source: {principals: ["cluster.local/ns/mall/sa/alice"]}}]}]'
    dry = policy("DENY", rule, "dry").replace(
        "metadata: {name: dry}", "metadata: {name: dry, annotations: {istio.io/dry-run: 'true'}}"
    )
    mall.apply(policy("AUDIT", rule, "seen") + dry)
    assert mall.ask("/").status == 200
    counted = mall.admin("/envoy/stats?filter=shadow_denied")
    assert any(int(line.rpartition(": ")[2]) > 0 for line in counted.splitlines())


KEY = rsa.generate_private_key(65537, 2048)
TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens}}
spec:
  targetRefs: [{{kind: Service, group: "", name: reviews}}]
  jwtRules:
  - issuer: https://login.example
    jwks: '{jwks}'
    outputClaimToHeaders: [{{header: x-sub, claim: sub}}]
---
"""


def bearer(**claims):
    return ["-H", f"authorization: Bearer {token(KEY, iss='https://login.example', exp=4102444800, **claims)}"]


def test_a_token_must_be_valid_and_may_be_required(mall):
    mall.apply(TOKENS.format(jwks=jwks(KEY)))
    assert mall.ask("/").status == 200
    assert mall.ask("/", "-H", "authorization: Bearer x.y.z").status == 401
    other = token(rsa.generate_private_key(65537, 2048), iss="https://login.example", sub="eve", exp=4102444800)
    assert mall.ask("/", "-H", f"authorization: Bearer {other}").status == 401
    good = mall.ask("/", *bearer(sub="jason"))
    assert (good.status, good.header("x-sub"), good.header("authorization")) == (200, "jason", "")
    mall.apply(policy("ALLOW", 'rules: [{from: [{source: {requestPrincipals: ["https://login.example/*"]}}]}]'))
    assert mall.ask("/").status == 403
    assert mall.ask("/", *bearer(sub="jason")).status == 200


def test_that_there_is_a_token_or_a_claim_can_be_asked(mall):
    """Presence, and what a claim must not be."""
    tokens = TOKENS.format(jwks=jwks(KEY))
    mall.apply(tokens + policy("ALLOW", 'rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]'))
    assert (mall.ask("/").status, mall.ask("/", *bearer(sub="a")).status) == (403, 200)
    present = 'rules: [{when: [{key: "request.auth.claims[team]", values: ["*"]}]}]'
    mall.apply(tokens + policy("ALLOW", present), again=True)
    mall.until(lambda: mall.ask("/", *bearer(sub="a")).status == 403)
    assert mall.ask("/", *bearer(sub="a", team="x")).status == 200
    assert mall.ask("/", *bearer(sub="a", team=["x", "y"])).status == 200
    nested = 'rules: [{when: [{key: "request.auth.claims[org][unit]", notValues: ["spies"]}]}]'
    mall.apply(tokens + policy("ALLOW", nested), again=True)
    mall.until(lambda: mall.ask("/", *bearer(sub="a", org={"unit": "spies"})).status == 403)
    assert mall.ask("/", *bearer(sub="a", org={"unit": "cooks"})).status == 200


def test_claims_decide(mall):
    rule = 'rules: [{when: [{key: "request.auth.claims[groups]", values: ["admins"]}]}]'
    mall.apply(TOKENS.format(jwks=jwks(KEY)) + policy("ALLOW", rule))
    assert mall.ask("/", *bearer(sub="a", groups=["users", "admins"])).status == 200
    assert mall.ask("/", *bearer(sub="a", groups="admins")).status == 200
    assert mall.ask("/", *bearer(sub="a", groups=["users"])).status == 403


@pytest.fixture
def helper(mall):
    """A service `helper`: HTTP on 80 (whose `/check` allows who brings x-ok), gRPC on 90."""
    name = "helper-1"
    pod = mall.mesh.pods.get(name)
    if pod is None:
        mall.service("helper", "", grpc=(90, 9090))
        pod = mall.echo(name, "node2", "helper", "v1")
        mall.mesh.start_in(pod, "rpc-helper", [sys.executable, "-m", "lab.rpc", "helper"])
        mall.listens(pod, 9090)
    return "helper.mall.svc.cluster.local"


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_an_external_authorizer_decides_where_a_policy_says_so(mall, helper, kind):
    way = {
        "grpc": f"envoyExtAuthzGrpc: {{service: mall/{helper}, port: 90}}",
        "http": f"envoyExtAuthzHttp: {{service: mall/{helper}, port: 80, pathPrefix: /check,"
        " includeRequestHeadersInCheck: [x-ok]}",
    }[kind]
    rest = 'provider: {name: own}\nrules: [{to: [{operation: {paths: ["/admin*"]}}]}]'
    mall.apply(provider("own", way) + policy("CUSTOM", rest))
    mall.until(lambda: mall.ask("/admin", "-H", "x-ok: 1").status == 200)
    assert mall.ask("/admin").status == 403
    assert mall.ask("/free").status == 200


def test_an_authorizer_that_does_not_answer_refuses(mall):
    way = "envoyExtAuthzGrpc: {service: mall/nowhere.mall.svc.cluster.local, port: 90}"
    rest = 'provider: {name: own}\nrules: [{to: [{operation: {paths: ["/admin*"]}}]}]'
    mall.apply(provider("own", way) + policy("CUSTOM", rest))
    assert mall.ask("/admin", "-H", "x-ok: 1").status == 403
    assert mall.ask("/free").status == 200


LIMITS = """
apiVersion: nodemesh.io/v1alpha1
kind: RateLimit
metadata: {{name: limits}}
spec:
  targetRefs: [{{kind: Service, group: "", name: {service}}}]
  limits:
  - {limit}
"""


def test_a_local_limit_counts_all_together(mall):
    mall.apply(LIMITS.format(service="reviews", limit="{name: all, requests: 5, per: 60s}"))
    assert mall.counted("/", 12)["429"] == 7


def test_a_local_limit_for_one_principal_and_path(mall):
    match = "match: [{uri: {prefix: /dear}}]"
    by = "by: [{attribute: principal, value: 'spiffe://cluster.local/ns/mall/sa/bob'}]"
    mall.apply(LIMITS.format(service="reviews", limit=f"{{name: dear, {match}, {by}, requests: 2, per: 60s}}"))
    assert mall.counted("/dear", 6, client=mall.bob)["429"] == 4
    assert mall.counted("/dear", 6, client=mall.alice)["429"] == 0
    assert mall.counted("/cheap", 6, client=mall.bob)["429"] == 0


def test_a_global_limit_is_asked_of_its_service(mall, helper):
    """The helper lets three requests of each descriptor pass."""
    service = f"service: {{host: {helper}, port: 90, domain: mall}}"
    mall.apply(
        LIMITS.format(
            service="reviews", limit=f"{{name: user, by: [{{attribute: header, header: x-user}}], {service}}}"
        )
    )
    mall.until(lambda: mall.counted("/", 1, "-H", "x-user: ready")["429"] == 0)
    assert mall.counted("/", 8, "-H", "x-user: one")["429"] == 5
    assert mall.counted("/", 3, "-H", "x-user: two")["429"] == 0


def test_a_second_rate_limit_service_is_asked_of_its_own_limits_alone(mall, helper):
    """The same helper under another domain."""

    def by(header, domain):
        who = f"service: {{host: {helper}, port: 90, domain: {domain}}}"
        return f"{{name: {header}, by: [{{attribute: header, header: {header}}}], {who}}}"

    mall.apply(LIMITS.format(service="reviews", limit=f"{by('x-team', 'teams')}\n  - {by('x-person', 'people')}"))
    mall.until(lambda: mall.counted("/", 1, "-H", "x-team: ready", "-H", "x-person: ready")["429"] == 0)
    assert mall.counted("/", 8, "-H", "x-team: red")["429"] == 5
    assert mall.counted("/", 8, "-H", "x-person: ann")["429"] == 5
    assert mall.counted("/", 3, "-H", "x-team: blue", "-H", "x-person: ben")["429"] == 0


def test_a_limit_of_connections_to_a_database(mall):
    vip = mall.mesh.vips.get("db") or mall.service("db", "way", tcp_db=(5432, apps.ECHO_PORT))
    if "db-1" not in mall.mesh.pods:
        pod = mall.pod("db-1", "node2", "db")
        mall.mesh.start_in(
            pod, "echo-db", ["socat", f"TCP6-LISTEN:{apps.ECHO_PORT},ipv6only=0,fork,reuseaddr", "EXEC:cat"]
        )
        mall.listens(pod, apps.ECHO_PORT)

    def talks():
        command = f"echo hello | socat -t 30 - TCP:{vip}:5432"
        return mall.mesh.exec(mall.alice, ["bash", "-c", command]).stdout.strip() == "hello"

    mall.until(talks)
    mall.apply(LIMITS.format(service="db", limit="{name: db, requests: 3, per: 60s}"))
    assert [talks() for _ in range(6)] == [True] * 3 + [False] * 3


LUA = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: lua}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: way}]
  configPatches:
  - applyTo: HTTP_FILTER
    match: {listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code:
            inline_string: |
              function envoy_on_request(handle)
                handle:headers():replace("x-role", "written by lua")
              end
  - applyTo: VIRTUAL_HOST
    patch: {operation: MERGE, value: {response_headers_to_add: [{header: {key: x-merged, value: here}}]}}
---
"""


def test_an_envoy_filter_is_asked_after_the_policies(mall):
    """Lua changes the header that the policy asks for: the policy judges what the client sent."""
    rule = 'rules: [{when: [{key: "request.headers[x-role]", values: ["written by lua"]}]}]'
    mall.apply(LUA + policy("DENY", rule))
    wait_until("the filter is felt", lambda: mall.ask("/").header("x-role") == "written by lua", 60)
    assert mall.ask("/").headers["x-merged"] == "here"
    assert mall.ask("/", "-H", "x-role: written by lua").status == 403


CALL = """
import grpc, sys
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        print(channel.unary_unary(sys.argv[2])(b"", timeout=60).decode())
    except grpc.RpcError as error:
        print(error.code().name)
"""


def test_each_rpc_has_its_own_policy(mall, helper):
    if "books" not in mall.mesh.vips:
        mall.service("books", "way", grpc=(90, 9090))
        pod = mall.pod("books-1", "node2", "books")
        mall.mesh.start_in(pod, "rpc-books", [sys.executable, "-m", "lab.rpc", "books"])
        mall.listens(pod, 9090)

    def call(method):
        target = f"{mall.vip('books')}:90"
        return mall.mesh.exec(mall.alice, [sys.executable, "-c", CALL, target, method]).stdout.strip()

    mall.until(lambda: call("/shop.Books/Get") == "books /shop.Books/Get")
    mall.apply(policy("DENY", 'rules: [{to: [{operation: {paths: ["/shop.Books/Delete"]}}]}]', service="books"))
    assert call("/shop.Books/Delete") == "PERMISSION_DENIED"
    assert call("/shop.Books/Get") == "books /shop.Books/Get"
    mall.apply(
        routes(
            "- fault: {abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}}\n"
            "  route: [{destination: {host: books}}]",
            "books",
        )
    )
    assert call("/shop.Books/Get") == "UNAVAILABLE"
