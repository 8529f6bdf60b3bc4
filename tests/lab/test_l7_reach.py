"""Who reaches what by which waypoint: a namespace's, another trust domain's clients, hosts beyond the mesh."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import apps, documents
from lab.documents import AMBIENT, PodSpec
from lab.layout import underlay_address
from lab.processes import wait_until
from tests.lab.mall import NAMESPACE, external
from tests.lab.test_hbone_by_hand import ask_ca, byhand, new_key
from tests.lab.test_l7_routing import routes
from tests.lab.test_l7_security import policy

pytestmark = pytest.mark.lab

ANNEX = "annex"


@pytest.fixture(scope="module")
def annex(built_mall):
    """A namespace bound to mall's waypoint as a whole, whose pods may call only what the mesh knows."""
    mesh = built_mall.mesh
    bound = {"istio.io/use-waypoint": "way", "istio.io/use-waypoint-namespace": "mall"}
    namespace = documents.namespace(ANNEX, {**AMBIENT, **bound})
    namespace["metadata"]["annotations"] = {"nodemesh.io/outbound-policy": "REGISTRY_ONLY"}
    mesh.apply(f"namespace-{ANNEX}", namespace)
    client = mesh.add_pod(PodSpec("carol", "node1", ANNEX), with_apps=False)
    server = mesh.add_pod(PodSpec("store-1", "node2", ANNEX, app="store"), with_apps=False)
    mesh.start_in(server, "echo-store-1", apps.echo("store-1", "v1"))
    url = f"127.0.0.1:{apps.HTTP_PORT}/seen"
    wait_until("store-1 answers", lambda: mesh.http_status(server.netns, url) == 200, 60)
    vip = mesh.add_service("store", {80: apps.HTTP_PORT}, ANNEX)
    before = built_mall.version
    mesh.apply(f"service-{ANNEX}-store", documents.http_service(ANNEX, "store", [vip], {}))
    built_mall.settled(before)  # until then its address leads nowhere, and nowhere may take seconds
    yield client
    for pod in (client, server):
        mesh.delete_pod(pod.name)
    mesh.remove(f"service-{ANNEX}-store")
    mesh.remove(f"namespace-{ANNEX}")


def test_a_namespace_is_bound_and_with_it_every_service_in_it(mall, annex):
    store = f"http://{mall.vip('store')}/"

    def through():
        return mall.ask(store).header("x-forwarded-client-cert")

    mall.until(lambda: through().startswith("By=spiffe://cluster.local/ns/mall/sa/way;"))
    assert mall.ask(store).told["name"] == "store-1"
    rule = 'rules: [{from: [{source: {principals: ["cluster.local/ns/mall/sa/bob"]}}]}]'
    mall.apply(policy("DENY", rule, service="store").replace("name: p}", f"name: p, namespace: {ANNEX}}}"))
    assert mall.ask(store, client=mall.bob).status == 403
    assert mall.ask(store).status == 200


def test_beside_the_hosts_that_are_known_no_other_is_reached(mall, annex):
    """REGISTRY_ONLY of the client's namespace; others may go where they want."""
    mall.apply(external("allowed", "240.240.9.9", mall.mesh.pods["plain-2"].ip, apps.HTTP_PORT))
    known, unknown = "http://240.240.9.9/one", f"http://{underlay_address(2)}:15020/metrics"
    mall.until(lambda: mall.ask(known, client=annex).status == 200)
    assert mall.ask(unknown, client=annex).status == 0
    assert mall.ask(unknown, client=mall.alice).status == 200
    mall.apply(
        routes(
            "- match: [{uri: {exact: /one}}]\n  route: [{destination: {host: allowed.example.com}}]",
            "allowed.example.com",
        )
    )
    mall.until(lambda: mall.ask("http://240.240.9.9/", client=annex).status == 404)
    assert mall.ask(known, client=annex).status == 200


class Abroad:
    """The authority of another trust domain."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "abroad")])
        uri = x509.UniformResourceIdentifier("spiffe://partner.example")
        self.root = self._certificate(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None), uri, True)
        self.pem = self.root.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, identity):
        """What `byhand` takes: a chain and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(identity)
        leaf = self._certificate(x509.Name([]), key, x509.BasicConstraints(ca=False, path_length=None), uri, False)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain = [leaf.public_bytes(serialization.Encoding.PEM).decode()]
        return {"chain": chain, "key": key.private_bytes(*form).decode()}

    def _certificate(self, subject, key, constraints, uri, signs):
        now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(not signs, *[False] * 4, signs, signs, False, False)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1)).add_extension(constraints, critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=not signs)
        return builder.add_extension(usage, critical=True).sign(self.key, hashes.SHA256())


def test_another_trust_domain_is_believed_about_its_own_names_alone(mall):
    """By its bundle (federation). Its clients are somebody to the policies; it cannot vouch for a name of ours."""
    abroad = Abroad()
    bundle = mall.bundles / "partner.example.pem"
    buyer, seller, false = (
        abroad.issue(identity)
        for identity in (
            "spiffe://partner.example/ns/x/sa/buyer",
            "spiffe://partner.example/ns/x/sa/seller",
            "spiffe://cluster.local/ns/mall/sa/alice",
        )
    )

    def call(who):
        """The HTTP status that the waypoint answered within the tunnel, or why there was no tunnel."""
        answer = byhand(
            mall.mesh,
            mall.mesh.pods["plain-1"].netns,
            "connect",
            ip=mall.way.ip,
            authority=f"{mall.vip('reviews')}:80",
            send="GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n",
            ends=False,
            **who,
        )
        return answer.get("failed") or answer["echo"].split()[1]

    mall.apply(policy("DENY", 'rules: [{from: [{source: {principals: ["partner.example/ns/x/sa/seller"]}}]}]'))
    assert "SSL" in call(buyer)
    try:
        bundle.write_text(abroad.pem)
        mall.until(lambda: call(buyer) == "200")
        assert call(seller) == "403"
        assert "SSL" in call(false)
        assert mall.ask("/").status == 200
    finally:
        bundle.unlink()
    mall.until(lambda: "SSL" in call(buyer))


def test_what_a_tunnel_asks_for_is_an_address_or_a_name_with_a_port_and_no_other_word_of_the_waypoints(mall):
    """Its clusters are called so: those that lead past the policies, or to its own key, must not be had by asking."""
    key = new_key()
    answer = ask_ca(mall.mesh, f"spiffe://cluster.local/ns/{NAMESPACE}/sa/alice", key)
    who = {"chain": answer["chain"], "key": key}

    def status(authority):
        space = mall.mesh.pods["plain-1"].netns
        return byhand(mall.mesh, space, "connect", ip=mall.way.ip, authority=authority, **who).get("status")

    vip, host = mall.vip("reviews"), "reviews.mall.svc.cluster.local"
    for asked in (f"{vip}:80", f"{host}:80"):
        assert status(asked) == 200, asked
    past = ("tunnels", "direct", "identity", "controlplane", "identity:", "nosuch:80", f"{vip}:81")
    assert {asked: status(asked) for asked in past} == dict.fromkeys(past, 404)
    assert status(f"out|80||mall/{host}") != 200
