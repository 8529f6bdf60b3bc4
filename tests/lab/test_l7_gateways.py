"""Gateways: into the mesh (TLS, mutual TLS, redirect, passthrough, by server name), and out of it (TLS origination)."""

import base64

import pytest

from lab import apps
from lab.documents import PodSpec
from tests.lab.mall import NAMESPACE, external
from tests.waypoint.certificates import server_certificate

pytestmark = pytest.mark.lab

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingress}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [plain.example]
  - port: {number: 80, name: redirect, protocol: HTTP}
    hosts: [shop.example]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example]
    tls: {mode: SIMPLE, credentialName: shop}
  - port: {number: 443, name: mutual, protocol: HTTPS}
    hosts: [admin.example]
    tls: {mode: MUTUAL, credentialName: shop}
  - port: {number: 443, name: pass, protocol: TLS}
    hosts: [pass.example]
    tls: {mode: PASSTHROUGH}
  - port: {number: 5432, name: tcp-db, protocol: TCP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: [plain.example, shop.example, admin.example]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /ratings}}]
    rewrite: {uri: /r}
    route: [{destination: {host: ratings}}]
  - route: [{destination: {host: reviews}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: passed}
spec:
  hosts: [pass.example]
  gateways: [edge]
  tls:
  - match: [{sniHosts: [pass.example], port: 443}]
    route: [{destination: {host: secure, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ["*"]
  gateways: [edge]
  tcp:
  - match: [{port: 5432}]
    route: [{destination: {host: gatedb, port: {number: 5432}}}]
---
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
data: {{tls.crt: {chain}, tls.key: {key}, ca.crt: {chain}}}
---
"""
PAIR = server_certificate("shop.example", "admin.example", "pass.example", "ext.example.com", "client.example")


def secret(name):
    chain, key = (base64.b64encode(text.encode()).decode() for text in (PAIR.chain, PAIR.key))
    return SECRET.format(name=name, chain=chain, key=key)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The same pair as files, for curl and for applications."""
    directory = tmp_path_factory.mktemp("certificates")
    (directory / "pair.pem").write_text(PAIR.chain)
    (directory / "pair.key").write_text(PAIR.key)
    return directory


@pytest.fixture(scope="session")
def parts(built_mall, files):
    """A TLS application `secure`, an outsider `visitor`, an external TLS server `ext`."""
    mall, mesh = built_mall, built_mall.mesh
    out = {"istio.io/dataplane-mode": "none"}
    for name, labels in (("visitor", out), ("ext", out), ("secure", {}), ("gatedb", {})):
        mesh.add_pod(PodSpec(name, "node2", NAMESPACE, labels=labels), with_apps=False)
    pair = [str(files / "pair.pem"), str(files / "pair.key")]
    for name in ("ext", "secure"):
        mesh.start_in(mesh.pods[name], f"echo-{name}", [*apps.echo(name, name, 8443), *pair])
    listen = f"TCP6-LISTEN:{apps.ECHO_PORT},ipv6only=0,fork,reuseaddr"
    mesh.start_in(mesh.pods["gatedb"], "echo-gatedb", ["socat", listen, "EXEC:cat"])
    for name, port in (("ext", 8443), ("secure", 8443), ("gatedb", apps.ECHO_PORT)):
        mall.listens(mesh.pods[name], port)
    mall.service("secure", "", tls=(443, 8443))
    mall.service("gatedb", "", tcp=(5432, apps.ECHO_PORT))
    return mall


@pytest.fixture
def edge(mall, parts):
    mall.apply(secret("shop") + GATEWAY)
    mall.until(lambda: visit(mall, "http://plain.example/").status == 200)
    return mall


def visit(mall, url, *options):
    """From outside the mesh, as a browser would: by name."""
    host = url.split("/")[2]
    where = [item for port in (80, 443) for item in ("--resolve", f"{host}:{port}:{mall.gate.ip}")]
    return mall.ask(url, *where, *options, client=mall.mesh.pods["visitor"])


def test_a_host_and_a_path_choose_the_service(edge):
    assert visit(edge, "http://plain.example/x").told["name"].startswith("reviews")
    rated = visit(edge, "http://plain.example/ratings/7").told
    assert (rated["name"], rated["path"]) == ("ratings-v1", "/r/7")


def test_a_host_that_no_server_names_is_not_there(edge):
    assert visit(edge, "http://unknown.example/").status == 404


def test_the_services_waypoint_is_not_gone_round(edge):
    """The waypoint's policy counts, and it sees the gateway."""
    via = visit(edge, "http://plain.example/").header("x-forwarded-client-cert")
    assert via.endswith("URI=spiffe://cluster.local/ns/mall/sa/ingress")
    edge.apply("""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-gateway}
spec:
  targetRefs: [{kind: Service, group: "", name: reviews}]
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/mall/sa/ingress]}}]}]
""")
    assert visit(edge, "http://plain.example/").status == 403


def test_plain_http_is_sent_to_https(edge):
    answer = visit(edge, "http://shop.example/a?b=c")
    assert (answer.status, answer.headers["location"]) == (301, "https://shop.example/a?b=c")


def test_tls_ends_at_the_gateway(edge, files):
    answer = visit(edge, "https://shop.example/", "--cacert", str(files / "pair.pem"))
    assert answer.status == 200
    assert answer.header("x-forwarded-proto") == "https"
    assert visit(edge, "https://shop.example/", "--cacert", "/etc/ssl/certs/ca-certificates.crt").status == 0


def test_mutual_tls_wants_a_certificate(edge, files):
    trust = ["--cacert", str(files / "pair.pem")]
    assert visit(edge, "https://admin.example/", *trust).status == 0
    pair = ["--cert", str(files / "pair.pem"), "--key", str(files / "pair.key")]
    assert visit(edge, "https://admin.example/", *trust, *pair).status == 200


def test_tls_is_passed_through_by_its_server_name(edge, files):
    answer = visit(edge, "https://pass.example/", "--cacert", str(files / "pair.pem"))
    assert answer.told["name"] == "secure"
    assert visit(edge, "https://other.example/", "-k").status == 0


def test_tcp_goes_through(edge):
    command = f"echo hello | socat -t 30 - TCP:{edge.gate.ip}:5432"
    assert edge.mesh.exec(edge.mesh.pods["visitor"], ["bash", "-c", command]).stdout.strip() == "hello"


HTTPROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ingress}
spec:
  gatewayClassName: istio
  listeners:
  - {name: http, port: 8000, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: ingress}]
  hostnames: [api.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v1}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: ratings, port: 80}]
  - backendRefs: [{name: reviews, port: 80}]
"""


def test_gateway_api_documents_do_the_same(mall, parts):
    mall.apply(HTTPROUTE)
    url = "http://api.example:8000"
    where = ["--resolve", f"api.example:8000:{mall.gate.ip}"]

    def get(path):
        return mall.ask(url + path, *where, client=mall.mesh.pods["visitor"])

    mall.until(lambda: get("/v1/x").status == 200)
    assert (get("/v1/x").told["name"], get("/v1/x").told["path"]) == ("ratings-v1", "/x")
    assert get("/v1x").told["name"].startswith("reviews")


ORIGINATED = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: ext}}
spec:
  host: ext.example.com
  trafficPolicy: {{tls: {{mode: SIMPLE, credentialName: ext, sni: ext.example.com, subjectAltNames: [{name}]}}}}
---
"""


def test_the_way_out_begins_tls_and_knows_whom_it_expects(mall, parts):
    there = secret("ext") + external("ext", "240.240.7.7", mall.mesh.pods["ext"].ip, 8443)
    mall.apply(there + ORIGINATED.format(name="ext.example.com"))
    url, host = "http://240.240.7.7/", ["-H", "host: ext.example.com"]
    mall.until(lambda: mall.ask(url, *host).status == 200)
    assert mall.ask(url, *host).told["name"] == "ext"
    mall.clean()
    mall.apply(there + ORIGINATED.format(name="someone.else"))
    mall.until(lambda: mall.ask(url, *host).status == 503)
