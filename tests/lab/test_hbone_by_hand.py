"""HBONE spoken by a stranger (`byhand.py`): what is served, what is refused, and that a refusal reaches nobody.

The statuses are those of Istio's ztunnel (its `inbound.rs`). At every refusal SYNs are counted in all namespaces of the
target's node, where the tunnel has sockets: none may leave on behalf of a refused request.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import daemons, netns, processes
from lab.apps import ECHO_PORT
from lab.layout import underlay_address

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).parents[2]
CLIENT = "spiffe://cluster.local/ns/shop/sa/web-1"
# Whatever the interface: a new connection on the tunnel's behalf would count here, one to the control plane does not.
COUNT_SYNS = """
table inet syns { counter opened { }
  chain out {
    type filter hook output priority -400
    tcp flags & (syn | ack) == syn tcp dport != 15012 counter name opened
  }
}
"""
# TLS alerts as OpenSSL prints them (RFC 8446, section 6.2): who refuses, and that somebody was there to refuse.
NO_CERTIFICATE = "alert certificate required"
UNKNOWN_AUTHORITY = "alert unknown ca"
BAD_VERSION = "alert protocol version"


def byhand(mesh, space, command, **arguments):
    """Runs the stranger in a namespace."""
    env = processes.environment(mesh.layout, {"PYTHONPATH": str(REPOSITORY)})
    done = subprocess.run(
        [*netns.inside(space), sys.executable, str(REPOSITORY / "tests/lab/byhand.py"), command],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_key():
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def ask_ca(mesh, identity, key, node="node1", token=None):
    """The CA's answer to `node`'s join token, asked from that node."""
    return byhand(
        mesh,
        mesh.layout.node_netns(node),
        "certificate",
        ca=f"{underlay_address(0)}:15012",
        root=daemons.root_certificate(mesh.layout).read_text(),
        token=token or daemons.token_path(mesh.layout, node).read_text(),
        identity=identity,
        key=key,
    )


@pytest.fixture(scope="module")
def svid(mesh):
    """A real certificate of web-1, obtained as node1's tunnel would: (chain, key)."""
    key = new_key()
    return ask_ca(mesh, CLIENT, key)["chain"], key


@pytest.fixture(scope="module")
def target(mesh):
    """The pod that is attacked."""
    return mesh.pods["web-2"]


@pytest.fixture(scope="module")
def syns(mesh):
    """How many SYNs have left any namespace of the target's node."""
    spaces = [mesh.layout.node_netns("node2"), *(mesh.pods[name].netns for name in ("web-2", "web-4", "plain-2"))]
    for space in spaces:
        netns.run(*netns.inside(space), "nft", "-f", "-", stdin=COUNT_SYNS)
    yield lambda: sum(counted(space) for space in spaces)
    for space in spaces:
        netns.run(*netns.inside(space), "nft", "delete", "table", "inet", "syns")


def counted(space):
    listed = json.loads(netns.run(*netns.inside(space), "nft", "-j", "list", "counters"))["nftables"]
    return next(entry["counter"]["packets"] for entry in listed if entry.get("counter", {}).get("name") == "opened")


@pytest.fixture
def attempt(mesh, svid, target, syns, version):
    """One request from a pod outside the mesh straight to the target's 15008: (answer, SYNs it caused)."""

    def make(**changes):
        chain, key = svid
        arguments = {
            "ip": target.address(version),
            "authority": target.at(ECHO_PORT, version),
            "chain": chain,
            "key": key,
        }
        before = syns()
        answer = byhand(mesh, mesh.pods["plain-1"].netns, "connect", **(arguments | changes))
        return answer, syns() - before

    return make


def self_signed(identity):
    """A certificate of a CA that nobody here knows: (chain, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stranger")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(san, critical=True)
        .add_extension(signs_only(), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    form = serialization.PrivateFormat.PKCS8
    return [pem], key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def test_a_stranger_with_a_certificate_gets_200_and_its_bytes_back(attempt, target):
    answer, opened = attempt(send="hello through the mesh")
    assert (answer["status"], answer["echo"], answer["end"]) == (200, "hello through the mesh", "END_STREAM")
    assert (answer["alpn"], answer["tls"], answer["peer"]) == ("h2", "TLSv1.3", target.identity)
    assert opened == 1, "the counter sees what it has to see"


def test_no_certificate_is_no_tunnel(attempt):
    answer, opened = attempt(chain=None)
    assert NO_CERTIFICATE in answer["failed"]
    assert opened == 0


@pytest.mark.parametrize(
    "identity", ["spiffe://other.example/ns/shop/sa/web-1", "spiffe://cluster.local/ns/shop/sa/web-1"]
)
def test_a_certificate_of_another_authority_is_no_tunnel(attempt, identity):
    chain, key = self_signed(identity)
    answer, opened = attempt(chain=chain, key=key)
    assert UNKNOWN_AUTHORITY in answer["failed"]
    assert opened == 0


def test_a_certificate_of_our_ca_for_another_trust_domain_is_no_tunnel(mesh, attempt):
    """Signed with the mesh's own root key, which vouches for the mesh's own trust domain and no other."""
    chain, key = signed_by_the_mesh(mesh, "spiffe://other.example/ns/shop/sa/web-1")
    answer, opened = attempt(chain=chain, key=key)
    assert UNKNOWN_AUTHORITY in answer["failed"]
    assert opened == 0


def signs_only():
    """X509-SVID, section 4.3: a leaf's key usage has digitalSignature and neither of the CA's."""
    return x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def signed_by_the_mesh(mesh, identity):
    authority = daemons.state_dir(mesh.layout, daemons.CONTROL) / "ca"
    root = x509.load_pem_x509_certificate((authority / "root-cert.pem").read_bytes())
    root_key = serialization.load_pem_private_key((authority / "root-key.pem").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    both = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH])
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(san, critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(signs_only(), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    form = serialization.PrivateFormat.PKCS8
    return [pem], key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def test_a_certificate_made_like_that_for_our_trust_domain_is_served(mesh, attempt):
    """Else the test above proves nothing."""
    chain, key = signed_by_the_mesh(mesh, CLIENT)
    answer, _ = attempt(chain=chain, key=key, send="x")
    assert answer["status"] == 200


def test_tls_1_2_is_no_tunnel(attempt):
    answer, opened = attempt(tls="1.2")
    assert BAD_VERSION in answer["failed"]
    assert opened == 0


def test_get_is_answered_with_400(attempt):
    answer, opened = attempt(method="GET", path="/")
    assert (answer["status"], opened) == (400, 0)


@pytest.mark.parametrize(
    "authority",
    ["", "nonsense", "10.244.2.2", "10.244.2.2:", "10.244.2.2:0", "10.244.2.2:70000", "[fd00::2]", "fd00::2:80"],
)
def test_an_authority_that_names_no_port_is_answered_with_400(attempt, authority):
    answer, opened = attempt(authority=authority)
    assert answer.get("status", 400) == 400
    assert answer.get("status") == 400 or "Reset" in answer.get("end", "") or "failed" in answer
    assert opened == 0


@pytest.mark.parametrize("other", ["web-4", "web-1", "plain-2"])
def test_another_pods_address_is_answered_with_400(mesh, attempt, version, other):
    answer, opened = attempt(authority=mesh.pods[other].at(ECHO_PORT, version))
    assert (answer["status"], opened) == (400, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"])
def test_loopback_is_answered_with_400(attempt, host):
    answer, opened = attempt(authority=f"{host}:{ECHO_PORT}")
    assert (answer["status"], opened) == (400, 0)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_meshs_own_ports_are_answered_with_503(attempt, target, version, port):
    answer, opened = attempt(authority=target.at(port, version))
    assert (answer["status"], opened) == (503, 0)


def test_an_unknown_service_is_answered_with_503(attempt):
    answer, opened = attempt(authority="nosuch.shop.svc.cluster.local:80")
    assert (answer["status"], opened) == (503, 0)


def test_nobody_listening_is_answered_with_503(attempt, target, version):
    answer, _ = attempt(authority=target.at(9999, version))
    assert answer["status"] == 503


# The CA --------------------------------------------------------------------------------------------------------------


def test_the_ca_issues_only_for_pods_of_the_callers_node(mesh):
    answer = ask_ca(mesh, mesh.pods["web-2"].identity, new_key(), node="node1")
    assert answer["refused"] in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_the_ca_issues_nothing_for_an_identity_that_runs_nowhere(mesh):
    answer = ask_ca(mesh, "spiffe://cluster.local/ns/shop/sa/nobody", new_key())
    assert answer["refused"] in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_the_ca_does_not_know_a_token_nobody_issued(mesh):
    answer = ask_ca(mesh, CLIENT, new_key(), token="nobody-issued-this")
    assert answer["refused"] == "UNAUTHENTICATED"
