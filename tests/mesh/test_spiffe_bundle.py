import base64
import json

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.spiffe_bundle import MAX_BYTES, pem_of_der, read_bundle, trust_domain_of
from tests.ztunnel.authority import Authority, pem

CA = Authority()
DER = CA.root.public_bytes(Encoding.DER)
KEY = {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(DER).decode()]}


def document(*keys, **more):
    return json.dumps({"keys": list(keys)} | more).encode()


def test_a_bundle_gives_its_x509_roots_and_its_sequence():
    bundle = read_bundle(document(KEY, spiffe_sequence=2**40, spiffe_refresh_hint=60), "td.json")
    assert (bundle.pem, bundle.sequence) == (pem(CA.root), 2**40)


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "EC", "use": "jwt-svid", "kid": "1"},
        {k: v for k, v in KEY.items() if k != "use"},
        KEY | {"use": "x509"},
        KEY | {"kty": "unheard-of"},
        KEY | {"x5c": []},
        {k: v for k, v in KEY.items() if k != "x5c"},
        "not an object",
    ],
)
def test_what_is_not_for_x509_is_left_out_and_nothing_left_is_an_empty_bundle(entry):
    assert read_bundle(document(entry), "td.json").pem == ""
    assert read_bundle(document(entry, KEY), "td.json").pem == pem(CA.root)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"keys": [], "keys": []}', "same key twice"),
        (document({**KEY, "x5c": ["!!"]}), "x5c"),
        (document({**KEY, "x5c": [base64.b64encode(b"x").decode()]}), "x5c"),
        (document({**KEY, "x5c": [7]}), "x5c"),
        (b"{}", "no list `keys`"),
        (b"[]", "no list `keys`"),
        (b'{"keys": null}', "no list `keys`"),
        (b"\xff", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (document(KEY, spiffe_sequence=-1), "spiffe_sequence"),
        (document(KEY, spiffe_sequence="1"), "spiffe_sequence"),
        (document(KEY, spiffe_sequence=True), "spiffe_sequence"),
        (b" " * (MAX_BYTES + 1), "is longer than"),
    ],
)
def test_tricks_with_bundles_are_refused(content, why):
    with pytest.raises(ValueError, match=why):
        read_bundle(content, "td.json")


def test_pem_is_taken_as_it_is_and_checked():
    assert read_bundle(pem(CA.root).encode() * 2, "td.pem").pem == pem(CA.root) * 2
    assert read_bundle(b"", "td.pem").pem == ""
    for bad in (b"words", b"\xff", pem(CA.root).encode()[:-40]):
        with pytest.raises(ValueError, match="PEM"):
            read_bundle(bad, "td.pem")


def test_certificates_one_after_the_other_are_told_apart():
    assert pem_of_der(DER + DER) == pem(CA.root) * 2
    assert pem_of_der(b"") == ""
    for bad in (b"\x30", b"\x30\x80\0\0", b"words", DER[:-1], DER + b"\0"):
        with pytest.raises(ValueError, match=r"."):
            pem_of_der(bad)


def test_a_trust_domain_is_named_by_its_id():
    assert trust_domain_of("spiffe://partner.org") == "partner.org"
    for bad in ("partner.org", "spiffe://", "spiffe://partner.org/", "https://partner.org"):
        with pytest.raises(ValueError, match="trust domain"):
            trust_domain_of(bad)
