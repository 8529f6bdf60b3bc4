"""What the authority signs, what it refuses, and when it does not start."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.ca import entitlement, load_authority
from mesh.errors import OperatorError, PeerError
from mesh.ids import SpiffeId
from tests.controlplane.documents import AMBIENT, pod, world_of

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WEB = SpiffeId("cluster.local", "shop", "web")
KEY = ec.generate_private_key(ec.SECP256R1())
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def request(*uris, key=KEY, algorithm=None, others=()):
    names = [*map(x509.UniformResourceIdentifier, uris), *others]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def authority(tmp_path):
    return load_authority(tmp_path, "cluster.local", lambda: NOW)


def issued(authority, ttl=None):
    leaf, root = authority.issue(request(str(WEB)), WEB, ttl)
    return x509.load_pem_x509_certificate(leaf.encode()), x509.load_pem_x509_certificate(root.encode())


def test_a_leaf_is_an_svid(authority):
    leaf, root = issued(authority)
    leaf.verify_directly_issued_by(root)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (list(san.value), san.critical, list(leaf.subject)) == ([x509.UniformResourceIdentifier(str(WEB))], True, [])
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.public_key() == KEY.public_key()
    assert leaf.serial_number.bit_length() == 128
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)


def test_the_root_names_the_trust_domain_and_nothing_below_it(authority):
    _, root = issued(authority)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert list(san) == [x509.UniformResourceIdentifier("spiffe://cluster.local")]


@pytest.mark.parametrize(("asked", "given"), [(None, 24), (0, 24), (1 / 60, 1), (3, 3), (200, 24)])
def test_the_lifetime_is_between_an_hour_and_a_day(authority, asked, given):
    leaf, _ = issued(authority, None if asked is None else timedelta(hours=asked))
    assert leaf.not_valid_after_utc - NOW == timedelta(hours=given)


STRONG = {"P-384": ec.generate_private_key(ec.SECP384R1()), "RSA": rsa.generate_private_key(65537, 2048)}


@pytest.mark.parametrize("key", STRONG.values(), ids=STRONG)
def test_other_strong_keys_are_accepted(authority, key):
    assert len(authority.issue(request(str(WEB), key=key), WEB)) == 2


REFUSED = [
    ("", "not a valid PKCS #10 request"),
    ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a valid PKCS #10 request"),
    ("x" * 20_000, "longer than 16384 characters"),
    (request(), "exactly one URI name"),
    (request("spiffe://cluster.local/ns/shop/sa/db"), "exactly one URI name"),
    (request(str(WEB), "spiffe://cluster.local/ns/shop/sa/db"), "exactly one URI name"),
    (request(str(WEB), str(WEB)), "exactly one URI name"),
    (request(str(WEB) + "/"), "exactly one URI name"),
    (request(str(WEB), others=[x509.DNSName("localhost")]), "something else than a URI"),
    (request(str(WEB), key=WEAK_RSA), "RSA of 2048 to 8192 bits"),
    (request(str(WEB), key=ec.generate_private_key(ec.SECP521R1())), "ECDSA P-256 or P-384"),
    (request(str(WEB), key=ec.generate_private_key(ec.SECP256K1())), "ECDSA P-256 or P-384"),
]


@pytest.mark.parametrize(("csr", "why"), REFUSED, ids=[f"{n} {why}" for n, (_, why) in enumerate(REFUSED)])
def test_a_bad_request_is_refused_with_a_sentence(authority, csr, why):
    with pytest.raises(PeerError, match=why):
        authority.issue(csr, WEB)


def test_a_request_signed_with_another_key_is_refused(authority):
    der = bytearray(x509.load_pem_x509_csr(request(str(WEB)).encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(PeerError, match="not signed with its own key"):
        authority.issue(forged, WEB)


def test_an_edwards_key_is_refused(authority):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(PeerError, match="SHA-256"):
        authority.issue(csr, WEB)


def test_the_same_root_comes_back_after_a_restart(tmp_path, authority):
    assert load_authority(tmp_path, "cluster.local", lambda: NOW).root_pem == authority.root_pem
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "ca").iterdir()}
    assert modes == {"root-key.pem": 0o600, "root-cert.pem": 0o644}
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700


def other_key():
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda ca: (ca / "root-key.pem").chmod(0o640), "root-key.pem: has mode 0640; only 0600 is accepted"),
        (lambda ca: ca.chmod(0o750), "ca: has mode 0750; only 0700 is accepted"),
        (lambda ca: (ca / "root-key.pem").write_bytes(other_key()), "does not belong to root-key.pem"),
        (lambda ca: (ca / "root-key.pem").write_text("x"), "root-key.pem: is not an unencrypted private key"),
        (lambda ca: (ca / "root-key.pem").unlink(), "root-key.pem: cannot be read: No such file"),
        (lambda ca: (ca / "root-cert.pem").write_text("x"), "root-cert.pem: is not the certificate of an authority"),
    ],
    ids=["key readable", "directory open", "other key", "no key", "key gone", "no certificate"],
)
def test_a_damaged_root_is_not_used(tmp_path, authority, damage, why):
    damage(tmp_path / "ca")
    with pytest.raises(OperatorError, match=why):
        load_authority(tmp_path, "cluster.local", lambda: NOW)


def test_a_root_of_another_time_or_trust_domain_is_not_used(tmp_path, authority):
    with pytest.raises(OperatorError, match="has expired at"):
        load_authority(tmp_path, "cluster.local", lambda: NOW + timedelta(days=4000))
    with pytest.raises(OperatorError, match="is not valid yet"):
        load_authority(tmp_path, "cluster.local", lambda: NOW - timedelta(days=1))
    with pytest.raises(OperatorError, match=r"is not for the trust domain other\.example"):
        load_authority(tmp_path, "other.example", lambda: NOW)


def test_a_leaf_never_outlives_its_root(tmp_path, authority):
    late = load_authority(tmp_path, "cluster.local", lambda: NOW + timedelta(days=3649, hours=20))
    leaf, root = issued(late)
    assert leaf.not_valid_after_utc == root.not_valid_after_utc


PODS = AMBIENT + "".join(
    (
        pod("web-1", account="web", ip="10.0.0.1"),
        pod("new", account="starting", ip=""),
        pod("plain", account="plain", ip="10.0.0.2", labels="istio.io/dataplane-mode: none"),
        pod("host", account="host", ip="10.0.0.3", extra=", hostNetwork: true"),
        pod("native", account="native", ip="10.0.0.4", labels="networking.istio.io/tunnel: http"),
        pod("done", account="done", ip="10.0.0.5").replace("podIP", "phase: Succeeded, podIP"),
        pod("far", account="far", ip="10.0.0.6", node="node2"),
    )
)


@pytest.mark.parametrize(
    ("node", "identity", "due"),
    [
        ("node1", "cluster.local/ns/shop/sa/web", True),
        ("node1", "cluster.local/ns/shop/sa/starting", True),
        ("node2", "cluster.local/ns/shop/sa/web", False),
        ("node1", "cluster.local/ns/shop/sa/far", False),
        ("node1", "cluster.local/ns/other/sa/web", False),
        ("node1", "other.example/ns/shop/sa/web", False),
        ("node1", "cluster.local/ns/shop/sa/plain", False),
        ("node1", "cluster.local/ns/shop/sa/host", False),
        ("node1", "cluster.local/ns/shop/sa/native", False),
        ("node1", "cluster.local/ns/shop/sa/done", False),
        ("node1", "cluster.local/ns/shop/sa/nobody", False),
        ("", "cluster.local/ns/shop/sa/web", False),
    ],
)
def test_a_node_gets_only_the_identities_of_its_pods_in_the_mesh(node, identity, due):
    wanted = SpiffeId.parse(f"spiffe://{identity}")
    if due:
        entitlement(world_of(PODS), node, wanted, "cluster.local")
    else:
        with pytest.raises(PeerError, match=f"no workload in the mesh on node {node} has the identity"):
            entitlement(world_of(PODS), node, wanted, "cluster.local")
