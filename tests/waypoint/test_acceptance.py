"""Whatever the model can say, Envoy takes: a model that says everything, pushed to a real one, is not refused."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from controlplane.l7.model import (
    L7,
    Proxy,
    Role,
    Rules,
    Secret,
    Served,
    Server,
    ServerTls,
    ServerTlsMode,
    VirtualHost,
)
from controlplane.l7.routes import (
    Abort,
    ClaimText,
    Compare,
    Cors,
    Delay,
    Dimension,
    DirectResponse,
    Forward,
    HeaderChanges,
    HttpMatch,
    HttpRoute,
    L4Match,
    L4Route,
    Limit,
    Mirror,
    NamedText,
    Per,
    Redirect,
    Retries,
    Rewrite,
    Session,
    Share,
    Target,
    Text,
)
from controlplane.l7.security import (
    Authorization,
    AuthorizationRule,
    Authorizer,
    Condition,
    JwtRule,
    Networks,
    Operation,
    Source,
    Values,
)
from controlplane.l7.telemetry import AccessLog, MetricOverride, Tag, Telemetry, Tracer, TracerKind, Tracing
from controlplane.l7.traffic import (
    Balance,
    Credential,
    Destination,
    Hash,
    LocalityRules,
    Outlier,
    Pool,
    Resolution,
    Subset,
    TlsMode,
    Traffic,
    UpstreamTls,
)
from controlplane.schema.envoy_filter import patches
from mesh.model import Action, AppProtocol, Locality, Port, Service, Vip, Workload, World
from tests.waypoint.beside import envoy_beside, free_port
from tests.waypoint.certificates import jwks, server_certificate

pytestmark = pytest.mark.lab

WEB, DB, EXT, ANY = "shop/web.shop.svc.cluster.local", "shop/db", "shop/ext.example.com", "shop/mixed"


def texts(*values):
    return tuple(Text(Compare.EXACT, value) for value in values)


EVERY_TEXT = tuple(Text(how, "a/b", ignore) for how in list(Compare)[:5] for ignore in (False, True))
EVERY_PATH = (*EVERY_TEXT, Text(Compare.SEGMENTS, "/a"), Text(Compare.SEGMENTS, "/"), Text(Compare.EXACT, "/A", True))
RULE = AuthorizationRule(
    sources=(
        Source(
            principals=Values(EVERY_TEXT, texts("evil")),
            request_principals=Values(EVERY_TEXT),
            namespaces=Values(EVERY_TEXT),
            service_accounts=Values(texts("shop/web")),
            trust_domains=Values(texts("other")),
            ips=Networks((ip_network("10.0.0.0/8"),), (ip_network("fd00::/8"),)),
            remote_ips=Networks((ip_network("10.0.0.0/8"),)),
        ),
    ),
    operations=(
        Operation(
            hosts=Values(EVERY_TEXT),
            methods=Values(EVERY_TEXT),
            paths=Values((*EVERY_TEXT, Text(Compare.TEMPLATE, "/a/{*}/b/{**}"))),
            ports=Values(texts("80")),
        ),
    ),
    conditions=(
        Condition("request.headers[x-a]", Values(EVERY_TEXT, texts("n"))),
        Condition("request.auth.claims[a][b]", Values(texts("x"))),
        Condition("request.auth.audiences", Values(texts("x"))),
        Condition("source.namespace", Values(texts("x"))),
        Condition("source.ip", networks=Networks((ip_network("10.0.0.1/32"),))),
        Condition("destination.port", Values(texts("80"))),
        Condition("connection.sni", Values(EVERY_TEXT)),
        Condition("no.such.key", Values(texts("x"))),
    ),
)
POLICIES = (
    *(Authorization(f"p{n}", "shop", action, (RULE,)) for n, action in enumerate(Action)),
    *(Authorization(f"dry{n}", "shop", action, (RULE,), dry_run=True) for n, action in enumerate(Action)),
    Authorization("nothing", "shop", Action.ALLOW),
    Authorization("custom", "shop", None, (RULE,), provider="opa"),
    Authorization("custom-http", "shop", None, (AuthorizationRule(),), provider="web"),
    Authorization("custom-unknown", "shop", None, (RULE,), provider="nobody"),
)
LIMITS = (
    Limit("all", 100, 60),
    Limit("each", 5, 1, (Dimension("principal", Per.PRINCIPAL), Dimension("m", Per.METHOD, value="GET"))),
    Limit("header", 5, 1, (Dimension("h", Per.HEADER, header="x-user"), Dimension("p", Per.PATH))),
    Limit("shared", service=Target(WEB, 80), domain="mesh", dimensions=(Dimension("a", Per.CLIENT_ADDRESS),)),
)
ROUTES = (
    *(
        HttpRoute(f"path{n}", Forward((Share(Target(WEB, 80)),)), (HttpMatch(path=p),))
        for n, p in enumerate(EVERY_PATH)
    ),
    HttpRoute(
        "matches",
        Forward(
            (
                Share(Target(WEB, 80, "v1"), 95),
                Share(Target(WEB, 80, "v2"), 5, HeaderChanges({"a": "50%"}, {"b": "c"}, ("d",))),
            )
        ),
        (
            HttpMatch(
                method=Text(Compare.EXACT, "GET"),
                authority=Text(Compare.SUFFIX, ".example"),
                scheme=Text(Compare.EXACT, "http"),
                headers=tuple(
                    NamedText(f"h{n}", t, absent) for n, t in enumerate(EVERY_TEXT) for absent in (False, True)
                ),
                query=tuple(NamedText(f"q{n}", text) for n, text in enumerate(EVERY_TEXT)),
                claims=(
                    ClaimText(("a", "b"), Text(Compare.EXACT, "x")),
                    ClaimText(("c",), Text(Compare.PRESENT), True),
                ),
                source_namespace="shop",
            ),
        ),
        rewrite=Rewrite(prefix="/new", authority="other"),
        request=HeaderChanges({"x": "y"}, {"z": "w"}, ("gone",)),
        response=HeaderChanges({"x": "y"}, {"z": "w"}, ("gone",)),
        timeout_s=1.5,
        retries=Retries(3, ("5xx", "reset"), (503, 429), 0.25, 0.05, True, True),
        delay=Delay(12.5, 0.75),
        abort=Abort(0.1, 555),
        mirrors=(Mirror(Target(WEB, 80, "v2"), 12.5), Mirror(Target(WEB, 80), 0)),
        cors=Cors(EVERY_TEXT, ("GET",), ("x",), ("y",), 60, True, False),
        limits=LIMITS,
    ),
    HttpRoute("regex", Forward((Share(Target(WEB, 80)),)), rewrite=Rewrite(regex=("^/(a+)", r"/\1"))),
    HttpRoute("stays", Forward((Share(Target(WEB, 80)),)), session=Session("stay", ttl_s=3600.0)),
    HttpRoute("stays-by-header", Forward((Share(Target(WEB, 80)),)), session=Session("x-stay", header=True)),
    HttpRoute("whole", Forward((Share(Target(WEB, 80)),)), rewrite=Rewrite(path="/x")),
    HttpRoute("grpc", Forward((Share(Target("", 0)), Share(Target(WEB, 80), 3))), abort=Abort(100, grpc_status=14)),
    HttpRoute("gone", Forward((Share(Target("", 0)),)), retries=None),
    *(HttpRoute(f"to{s}", Redirect(s, "https", "a", 8443, prefix="/x")) for s in (301, 302, 303, 307, 308)),
    HttpRoute("redirect", Redirect(path="/x")),
    HttpRoute("direct", DirectResponse(418, "teapot")),
)
TRAFFIC = Traffic(
    balance=Balance.ROUND_ROBIN,
    warmup_s=10,
    pool=Pool(1, 2, 3, 4, 5, 6, 0.5, 60, 60, 3600, 20, 3),
    outlier=Outlier(1, 2, 3, True, 1, 400, 100, 10),
    locality=LocalityRules(failover=(("r1", "r2"),)),
)
TLS = UpstreamTls(
    TlsMode.MUTUAL, "ext.example.com", ("ext.example.com", "spiffe://a/b"), Credential("ca"), Credential("pair")
)
DESTINATIONS = {
    WEB: Destination(
        TRAFFIC,
        {80: Traffic(Balance.MAGLEV, hash=Hash(header="x"))},
        {
            "v1": Subset(
                {"version": "v1"}, Traffic(Balance.RING_HASH, Hash(cookie="c", cookie_path="/", cookie_ttl_s=0))
            ),
            "v2": Subset({"version": "v2"}, Traffic(Balance.RANDOM, pool=Pool(http2=True))),
        },
    ),
    EXT: Destination(Traffic(tls=TLS), resolution=Resolution.DNS, external=True),
    ANY: Destination(
        Traffic(tls=UpstreamTls(TlsMode.SIMPLE), pool=Pool(use_client_protocol=True), proxy_protocol=True),
        resolution=Resolution.NONE,
    ),
    DB: Destination(Traffic(Balance.PASSTHROUGH)),
}
TELEMETRY = Telemetry(
    Tracing("zipkin", 50, (Tag("a", "b"), Tag("c", header="d", default="e"), Tag("f", environment="HOME"))),
    (
        AccessLog(),
        AccessLog("/dev/stderr", "response.code >= 500", "%REQ(:METHOD)%"),
        AccessLog(json={"a": "%DURATION%"}),
    ),
    overrides=(
        MetricOverride("REQUEST_COUNT", tags={"response_code": None, "method": "request.method"}),
        MetricOverride("REQUEST_SIZE", disabled=True),
    ),
)
KEYS = jwks(rsa.generate_private_key(65537, 2048))
JWT = (
    JwtRule("me", ("aud",), jwks=KEYS, headers=(("x-jwt", "Token "),), params=("t",), cookies=("c",)),
    JwtRule(
        "far", jwks_uri="https://keys.example.com/jwks", payload_header="x-payload", claim_headers=(("x-sub", "sub"),)
    ),
)
FILTERS = "type.googleapis.com/envoy.extensions.filters"
CHANGES = [
    ("HTTP_FILTER", "INSERT_FIRST", {"name": each, "typed_config": {"@type": f"{FILTERS}.http.{kind}", **config}})
    for each, kind, config in (
        ("a", "lua.v3.Lua", {"default_source_code": {"inline_string": "function envoy_on_request(handle) end"}}),
        ("b", "header_mutation.v3.HeaderMutation", {"mutations": {"request_mutations": [{"remove": "x-secret"}]}}),
        ("c", "buffer.v3.Buffer", {"max_request_bytes": 1000}),
        ("d", "grpc_web.v3.GrpcWeb", {}),
        ("e", "admission_control.v3.AdmissionControl", {"enabled": {"default_value": True}, "success_criteria": {
            "http_criteria": {"http_success_status": [{"start": 200, "end": 400}]}}}),
    )
] + [
    ("HTTP_ROUTE", "MERGE", {"route": {"idle_timeout": "9s"}, "response_headers_to_remove": ["x-inner"]}),
    ("VIRTUAL_HOST", "MERGE", {"include_attempt_count_in_response": True}),
    ("CLUSTER", "MERGE", {"upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 30}}}),
]  # fmt: skip
PATCHES = patches(
    {"configPatches": [{"applyTo": to, "patch": {"operation": how, "value": value}} for to, how, value in CHANGES]},
    "shop/all",
)
RULES = Rules(POLICIES, JWT, LIMITS, TELEMETRY, tuple(PATCHES))


def world():
    services = (
        Service(
            "web",
            "shop",
            "web.shop.svc.cluster.local",
            (Vip("", ip_network("10.96.0.1/32")),),
            (Port(80, 8080, AppProtocol.HTTP11), Port(81, 8080)),
        ),
        Service("db", "shop", "db", (Vip("", ip_network("fd00::1/128")),), (Port(5432, 5432, AppProtocol.TCP),)),
        Service("ext", "shop", "ext.example.com", (), (Port(443, 443, AppProtocol.HTTP11),)),
        Service("mixed", "shop", "mixed", (), (Port(80, 80, AppProtocol.GRPC),)),
    )
    pods = [
        Workload(
            f"pod{n}",
            f"web-{n}",
            "shop",
            (ip_address(f"10.0.0.{n}"),),
            hbone=n != 3,
            healthy=n != 2,
            capacity=n,
            services={WEB: (Port(80, 8080), Port(81, 8080))},
            labels={"version": f"v{n % 2 + 1}"},
            locality=Locality(f"r{n % 2 + 1}", f"z{n}"),
        )
        for n in range(1, 5)
    ]
    far = Workload("far", "ext", "shop", hostname="ext.example.com", services={EXT: (Port(443, 443),)})
    return World(1, {w.uid: w for w in (*pods, far)}, {s.key: s for s in services})


def model(*proxies, kind=TracerKind.ZIPKIN):
    return L7(
        proxies={proxy.key: proxy for proxy in proxies},
        destinations=DESTINATIONS,
        authorizers={
            "opa": Authorizer(Target(WEB, 80)),
            "web": Authorizer(Target(WEB, 80), False, 1, True, 401, "/check", ("cookie",), ("x-user",), ("x-why",)),
        },
        tracers={"zipkin": Tracer(kind, Target(WEB, 80))},
        secrets={"pair": server_certificate("shop.example"), "ca": Secret(ca=server_certificate("ca").chain)},
    )


def waypoint():
    l4 = (L4Route("l4", (Share(Target(DB, 5432), 9), Share(Target(WEB, 80, "v1"), 1)), (L4Match(5432),)),)
    return Proxy(
        "way",
        "shop",
        Role.WAYPOINT,
        "way",
        free_port(),
        services=(
            Served(WEB, ROUTES, rules=RULES),
            Served(DB, l4=l4, rules=RULES),
            Served(EXT),
            Served(ANY, rules=RULES),
        ),
    )


def gateway():
    hosts = (VirtualHost("all", ("*",), ROUTES), VirtualHost("one", ("a.example", "*.b.example"), ROUTES))
    port, tls_port = free_port(), free_port()
    pair, ca = Credential("pair"), Credential("ca")
    passed = L4Route("pass", (Share(Target(EXT, 443)),), (L4Match(sni=("pass.example", "*.pass.example")),))
    servers = (
        Server("web", port, virtual_hosts=hosts),
        Server("up", port, ("secure.example",), redirect_to_https=True),
        Server("simple", tls_port, ("a.example",), tls=ServerTls(ServerTlsMode.SIMPLE, (pair,)), virtual_hosts=hosts),
        Server(
            "mutual",
            tls_port,
            ("*.m.example",),
            tls=ServerTls(ServerTlsMode.MUTUAL, (pair,), ca, ("spiffe://x/y",), "TLSv1_3"),
            virtual_hosts=hosts,
        ),
        Server(
            "maybe",
            tls_port,
            ("o.example",),
            tls=ServerTls(ServerTlsMode.OPTIONAL_MUTUAL, (pair,), ca),
            virtual_hosts=hosts,
        ),
        Server("mesh", tls_port, ("i.example",), tls=ServerTls(ServerTlsMode.ISTIO_MUTUAL), virtual_hosts=hosts),
        Server("pass", tls_port, ("*.pass.example",), False, ServerTls(ServerTlsMode.PASSTHROUGH), l4=(passed,)),
        Server(
            "db",
            tls_port,
            ("db.example",),
            False,
            ServerTls(ServerTlsMode.SIMPLE, (pair,)),
            l4=(L4Route("db", (Share(Target(DB, 5432)),)),),
        ),
        Server("tcp", free_port(), http=False, l4=(L4Route("db", (Share(Target(DB, 5432)),)),)),
    )
    return Proxy("gate", "shop", Role.GATEWAY, "gate", servers=servers, rules=RULES)


@pytest.mark.parametrize("proxy", [waypoint, gateway])
@pytest.mark.parametrize("kind", TracerKind)
def test_envoy_takes_everything_that_the_model_can_say(proxy, kind, tmp_path):
    async def play():
        made = proxy()
        async with envoy_beside(tmp_path, world(), model(made, kind=kind), made.key) as beside:
            assert beside.nack is None
            pushed = beside.envoys.current.of(beside.conversation.who)
            dump = await beside.ask("/config_dump?resource=dynamic_listeners")
            assert "error_state" not in dump
            await beside.push(replace(world(), version=2), model(replace(made, rules=Rules()), kind=kind))
            assert beside.nack is None
            assert pushed

    asyncio.run(play())
