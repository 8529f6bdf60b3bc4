"""Routes through a waypoint (rows of docs/waypoints.md, "Routing"): real requests, what client and server saw."""

import sys

import pytest

from lab import apps
from lab.processes import wait_until
from tests.lab.mall import NAMESPACE

pytestmark = pytest.mark.lab

SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
"""


def routes(http: str, host: str = "reviews") -> str:
    lines = "\n".join(f"  {line}" for line in http.strip("\n").split("\n"))
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http:
{lines}
"""


def to(subset: str, weight: int = 100) -> str:
    return f"{{destination: {{host: reviews, subset: {subset}}}, weight: {weight}}}"


def split(match: str) -> str:
    """What matches goes to v2, everything else to v1."""
    return SUBSETS + routes(f"""
- match:
  - {match}
  route: [{to("v2")}]
- route: [{to("v1")}]
""")


MATCHES = {
    "header exact": ("headers: {end-user: {exact: jason}}", ["-H", "end-user: jason"], ["-H", "end-user: jasonx"]),
    "header prefix": ("headers: {x-group: {prefix: beta}}", ["-H", "x-group: beta-7"], ["-H", "x-group: abeta"]),
    "header regex is a full match": ("headers: {x-id: {regex: '[0-9]+'}}", ["-H", "x-id: 42"], ["-H", "x-id: 42a"]),
    "header present": ("headers: {x-canary: {}}", ["-H", "x-canary: anything"], []),
    "header absent": ("withoutHeaders: {x-old: {exact: 'yes'}}", [], ["-H", "x-old: yes"]),
    "cookie": (
        "headers: {cookie: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}",
        ["-H", "cookie: user=jason"],
        ["-H", "cookie: user=alice"],
    ),
    "user agent": (
        "headers: {user-agent: {regex: '.*(iPod|iPhone|iPad).*'}}",
        ["-A", "Mozilla/5.0 (iPhone; CPU)"],
        ["-A", "Mozilla/5.0 (Android)"],
    ),
    "method": ("method: {exact: POST}", ["-X", "POST"], ["-X", "PUT"]),
    "authority": ("authority: {prefix: www.}", ["-H", "host: www.reviews"], ["-H", "host: reviews"]),
    "scheme": ("scheme: {exact: http}", [], None),
}


@pytest.mark.parametrize(("match", "fits", "fits_not"), MATCHES.values(), ids=MATCHES)
def test_a_match_chooses_the_version(mall, match, fits, fits_not):
    mall.apply(split(match))
    mall.until(lambda: fits_not is None or mall.counted("/", 3, *fits_not) == {"v1": 3})
    mall.until(lambda: mall.counted("/", 10, *fits) == {"v2": 10})


PATHS = {
    "exact": ("uri: {exact: /a/b}", "/a/b?x=1", "/a/bc"),
    "prefix is of the text": ("uri: {prefix: /foo}", "/foobar", "/fo"),
    "regex": ("uri: {regex: '/v[0-9]+/.*'}", "/v12/x", "/va/x"),
    "ignoring case": ("{uri: {prefix: /Foo}, ignoreUriCase: true}", "/fOO/x", "/bar"),
    "query exact": ("queryParams: {user: {exact: jason}}", "/?user=jason", "/?user=alice"),
    "query regex": ("queryParams: {page: {regex: '[0-9]+'}}", "/?page=7", "/?page=x"),
}


@pytest.mark.parametrize(("match", "fits", "fits_not"), PATHS.values(), ids=PATHS)
def test_a_path_or_query_chooses_the_version(mall, match, fits, fits_not):
    mall.apply(split(match))
    mall.until(lambda: mall.counted(fits_not, 3) == {"v1": 3})
    assert mall.counted(fits, 10) == {"v2": 10}


def test_rules_are_tried_in_order_and_what_none_matches_is_404(mall):
    first, second = "match: [{uri: {prefix: /a}}]", "match: [{uri: {prefix: /ab}}]"
    mall.apply(SUBSETS + routes(f"- {first}\n  route: [{to('v1')}]\n- {second}\n  route: [{to('v2')}]"))
    mall.until(lambda: mall.ask("/abc").version == "v1" and mall.ask("/x").status == 404)


@pytest.mark.parametrize(("share", "low", "high"), [(5, 15, 95), (10, 54, 154), (50, 420, 580)])
def test_a_canary_gets_its_share(mall, share, low, high):
    """1000 requests: one run in a million is outside of the bounds."""
    mall.apply(SUBSETS + routes(f"- route: [{to('v1', 100 - share)}, {to('v2', share)}]"))
    mall.until(lambda: "v2" in mall.counted("/", 200))
    counted = mall.counted("/", 1000)
    assert set(counted) == {"v1", "v2"}
    assert low < counted["v2"] < high


RAW = {
    "VirtualService": """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw}
spec:
  hosts: [raw]
  tcp: [{route: [{destination: {host: raw-v1}, weight: 80}, {destination: {host: raw-v2}, weight: 20}]}]
""",
    "TCPRoute": """
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: raw}
spec:
  parentRefs: [{group: "", kind: Service, name: raw}]
  rules: [{backendRefs: [{name: raw-v1, port: 6000, weight: 80}, {name: raw-v2, port: 6000, weight: 20}]}]
""",
}


def raw(mall, name, version, waypoint=""):
    """A service of one of reviews' pods, with a TCP port beside that for HTTP."""
    if name not in mall.mesh.vips:
        vip = mall.mesh.add_service(name, {80: apps.HTTP_PORT}, NAMESPACE)
        document = mall.service_document(name, vip, waypoint, tcp_raw=(6000, apps.HTTP_PORT))
        document["spec"]["selector"] = {"app": "reviews", "version": version}
        mall.mesh.apply(f"service-{NAMESPACE}-{name}", document)
    url = f"http://{mall.vip(name)}:6000/"
    wait_until(f"{name} answers", lambda: mall.ask(url, "-m", "2").version == version, 60)
    return url


@pytest.mark.parametrize("kind", RAW)
def test_connections_are_shared_out_by_weight(mall, kind):
    """300 connections: the bounds are five standard deviations away. Without the route there is only v1."""
    for version in ("v1", "v2"):
        raw(mall, f"raw-{version}", version)
    url = raw(mall, "raw", "v1", "way")
    mall.apply(RAW[kind])

    def counted(times):
        return mall.counted(url, times, "-H", "Connection: close")

    wait_until("the route is felt", lambda: "v2" in counted(20), 60)
    found = counted(300)
    assert set(found) == {"v1", "v2"}
    assert 25 < found["v2"] < 95


def test_blue_green_turns_over_on_an_open_connection(mall):
    """Not one request of a running series fails, and no connection is opened again."""
    mall.apply(SUBSETS + routes(f"- route: [{to('v1')}]"))
    mall.until(lambda: mall.counted("/", 5) == {"v1": 5})
    series = mall.series("series", "-w", "\n%{http_code} %{num_connects}\n")
    series.until('"v1"')
    mall.apply(SUBSETS + routes(f"- route: [{to('v2')}]"), again=True)
    series.until('"v2"')
    lines = series.end()
    told = [line.split() for line in lines[1::2]]
    assert {code for code, _ in told} == {"200"}
    assert sum(int(connects) for _, connects in told) == 1
    versions = ['"v2"' in line for line in lines[0 : 2 * len(told) : 2]]
    assert versions == sorted(versions), "v1 and from then on v2"


def test_a_path_is_rewritten(mall):
    mall.apply(
        routes("""
- match: [{uri: {prefix: /old}}]
  rewrite: {uri: /new, authority: other.example}
  route: [{destination: {host: reviews}}]
- match: [{uri: {prefix: /re}}]
  rewrite: {uriRegexRewrite: {match: '^/re/([0-9]+)', rewrite: '/\\1/re'}}
  route: [{destination: {host: reviews}}]
- route: [{destination: {host: reviews}}]
""")
    )
    mall.until(lambda: mall.ask("/old/x?y=1").told.get("path") == "/new/x?y=1")
    assert mall.ask("/old").told["host"] == "other.example"
    assert mall.ask("/re/17/x").told["path"] == "/17/re/x"


def test_a_redirect_and_a_direct_answer_need_no_application(mall):
    mall.apply(
        routes("""
- match: [{uri: {prefix: /moved}}]
  redirect: {uri: /here, authority: new.example, redirectCode: 308}
- match: [{uri: {prefix: /teapot}}]
  directResponse: {status: 418, body: {string: short and stout}}
- route: [{destination: {host: reviews}}]
""")
    )
    mall.until(lambda: mall.ask("/teapot").status == 418)
    assert mall.ask("/teapot").text == "short and stout"
    moved = mall.ask("/moved/x")
    assert (moved.status, moved.headers["location"]) == (308, "http://new.example/here")


def test_headers_are_set_added_and_removed(mall):
    mall.apply(
        routes("""
- headers:
    request: {set: {x-set: "50%"}, add: {x-add: b}, remove: [x-gone]}
    response: {set: {x-answer: yes}, remove: [x-served-by]}
  route: [{destination: {host: reviews}}]
""").replace("yes", "'yes'")
    )
    options = ["-H", "x-set: old", "-H", "x-add: a", "-H", "x-gone: here"]
    mall.until(lambda: mall.ask("/", *options).headers.get("x-answer") == "yes")
    answer = mall.ask("/", *options)
    assert answer.header("x-set") == "50%"
    assert "b" in answer.header("x-add")
    assert answer.header("x-gone") == ""
    assert "x-served-by" not in answer.headers


def test_a_mirror_gets_its_own_copy_and_nobody_waits_for_it(mall):
    mall.apply(
        SUBSETS
        + routes(f"""
- match: [{{uri: {{prefix: /mirrored}}}}]
  route: [{to("v1")}]
  mirror: {{host: reviews, subset: v2}}
- match: [{{uri: {{prefix: /half}}}}]
  route: [{to("v1")}]
  mirrors:
  - destination: {{host: reviews, subset: v2}}
    percentage: {{value: 50}}
- route: [{to("v1")}]
""")
    )
    mall.until(lambda: mall.ask("/mirrored/ready").version == "v1" and "/mirrored/ready" in mall.seen(mall.reviews[1]))
    assert mall.counted("/mirrored/all", 50) == {"v1": 50}
    mall.until(lambda: mall.seen(mall.reviews[1]).get("/mirrored/all") == 50, "50 copies")
    assert mall.counted("/half/x", 200) == {"v1": 200}
    mall.until(lambda: mall.seen(mall.reviews[1]).get("/half/x", 0) >= 60, "about half of the copies")
    assert mall.seen(mall.reviews[1])["/half/x"] <= 140


def test_cors_is_answered_by_the_waypoint(mall):
    mall.apply(
        routes("""
- corsPolicy:
    allowOrigins: [{exact: 'https://shop.example'}]
    allowMethods: [GET, POST]
    allowHeaders: [x-token]
    maxAge: 1m
  route: [{destination: {host: reviews}}]
""")
    )
    asked = ["-X", "OPTIONS", "-H", "access-control-request-method: POST", "-H", "origin: https://shop.example"]
    mall.until(lambda: mall.ask("/", *asked).headers.get("access-control-allow-methods", "") == "GET,POST")
    answer = mall.ask("/", *asked)
    assert (answer.status, answer.told) == (200, {})
    assert answer.headers["access-control-max-age"] == "60"
    assert mall.ask("/", "-H", "origin: https://shop.example").headers["access-control-allow-origin"]


def test_a_subset_without_endpoints_is_503_and_an_unknown_service_500(mall):
    mall.apply(
        SUBSETS.replace("version: v2", "version: v9")
        + routes("""
- match: [{uri: {prefix: /none}}]
  route: [{destination: {host: reviews, subset: v2}}]
- route: [{destination: {host: reviews, subset: v1}}]
""")
    )
    mall.until(lambda: mall.ask("/none").status == 503)
    assert mall.ask("/").version == "v1"


def test_a_web_socket_goes_through(mall):
    script = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as s, s.ws_connect(sys.argv[1]) as ws:
        await ws.send_str("hello")
        print(await ws.receive_str())
asyncio.run(main())
"""
    import sys

    done = mall.mesh.exec(mall.alice, [sys.executable, "-c", script, f"http://{mall.vip('reviews')}/ws"])
    assert done.stdout.strip() in ("v1:hello", "v2:hello")


def test_http_1_becomes_http_2_where_the_application_wants_it(mall, tmp_path):
    """The application (gRPC) speaks nothing but HTTP/2; the client and the port say HTTP/1.1."""
    if "modern" not in mall.mesh.vips:
        mall.service("modern", "way", http_up=(90, 9090))
        pod = mall.pod("modern-1", "node2", "modern")
        mall.mesh.start_in(pod, "rpc-modern", [sys.executable, "-m", "lab.rpc", "modern"])
    url = f"http://{mall.vip('modern')}:90/shop.Books/Get"
    (tmp_path / "empty").write_bytes(bytes(5))  # a message of gRPC
    kind = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    options = ("--http1.1", "--data-binary", f"@{tmp_path}/empty", "-o", "-", *kind)

    def failed():
        """Without an answer of the application, which is of gRPC, Envoy tells it as gRPC does: 14, unavailable."""
        return mall.ask(url, *options).headers.get("grpc-status") == "14"

    mall.until(failed, "HTTP/1.1 as it comes is not understood")
    mall.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: modern}
spec:
  host: modern
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}
""")
    mall.until(lambda: "modern /shop.Books/Get" in mall.ask(url, *options).text)


def test_another_port_is_not_served(mall):
    assert mall.ask(f"http://{mall.vip('reviews')}:81/").status in (0, 503)
