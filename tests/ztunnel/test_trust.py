import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.errors import OperatorError
from tests.ztunnel.authority import Authority, pem
from ztunnel.trust import Trust

OURS, PARTNER = Authority(), Authority()
NOW = datetime.now(UTC)


def revocations(authority=OURS, life=timedelta(hours=1)):
    begin = NOW - timedelta(hours=2)
    builder = x509.CertificateRevocationListBuilder(authority.root.subject, begin, NOW + life)
    return builder.add_extension(x509.CRLNumber(1), critical=False).sign(authority.key, hashes.SHA256())


@pytest.fixture
def files(tmp_path):
    """A directory of bundles, one for a CRL, one for what is kept."""
    (tmp_path / "bundles").mkdir()
    return tmp_path


@pytest.fixture
def trust_of(files, settings_for, core):
    def make(**variables):
        state = {"NODEMESH_TRUST_BUNDLES": str(files / "bundles"), "NODEMESH_STATE_DIR": str(files / "state")}
        return Trust(settings_for(**(state | variables)), core.set_trust, lambda: NOW)

    return make


def test_a_bundle_per_file_and_the_operators_before_the_delivered_one(files, trust_of, core):
    (files / "bundles" / "partner.org.pem").write_text(pem(PARTNER.root))
    trust = trust_of(TRUST_DOMAIN_ALIASES="old.domain, older.domain")
    trust.restore()
    trust.deliver({"cluster.local": pem(OURS.root), "partner.org": pem(OURS.root)}, [])
    assert core.trust[-1] == {
        "bundles": {"cluster.local": pem(OURS.root), "partner.org": pem(PARTNER.root)},
        "aliases": ["old.domain", "older.domain"],
        "longest_life_s": 72 * 3600,
    }
    assert trust.own_roots() == pem(OURS.root)


def test_what_was_delivered_counts_after_a_restart(trust_of, core):
    trust_of().deliver({"cluster.local": pem(OURS.root)}, [])
    trust_of().restore()
    assert core.trust[-1]["bundles"] == {"cluster.local": pem(OURS.root)}


def test_what_does_not_change_is_not_told_again(trust_of, core):
    trust = trust_of()
    trust.restore()
    for _ in range(2):
        trust.deliver({"cluster.local": pem(OURS.root)}, [])
        trust.look()
    assert len(core.trust) == 2


def test_a_delivery_that_the_core_refuses_changes_nothing(trust_of, core):
    trust = trust_of()
    trust.deliver({"cluster.local": pem(OURS.root)}, [])
    trust.deliver({"cluster.local": "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"}, [])
    assert trust.own_roots() == pem(OURS.root)
    assert "delivered" in trust.troubles()


def test_a_bundle_file_that_goes_bad_leaves_what_it_said_and_one_that_goes_takes_its_domain(files, trust_of, core):
    path = files / "bundles" / "partner.org.json"
    empty = {"keys": [], "spiffe_sequence": 7}
    path.write_text(json.dumps(empty))
    trust = trust_of()
    trust.restore()
    for bad in ("{", json.dumps(empty | {"spiffe_sequence": 6})):
        path.write_text(bad)
        trust.look()
        assert list(trust.troubles()) == [str(path)]
        assert core.trust[-1]["bundles"] == {"partner.org": ""}
    path.unlink()
    trust.look()
    assert (trust.troubles(), core.trust[-1]["bundles"]) == ({}, {})


def test_two_files_for_one_domain_are_a_complaint(files, trust_of):
    for ending in ("json", "pem"):
        (files / "bundles" / f"partner.org.{ending}").write_text('{"keys": []}' if ending == "json" else "")
    with pytest.raises(OperatorError, match=r"second bundle of partner\.org"):
        trust_of().restore()


def test_a_directory_that_is_not_there_is_one_sentence(files, trust_of):
    shutil.rmtree(files / "bundles")
    with pytest.raises(OperatorError, match="No such file"):
        trust_of().restore()


def test_revocation_lists_reach_the_core_in_either_encoding(files, trust_of, core):
    path = files / "crl"
    lists = [revocations(), revocations(PARTNER)]
    texts = [each.public_bytes(Encoding.PEM) for each in lists]
    trust = trust_of(CRL_PATH=str(path))
    path.write_bytes(b"".join(texts))
    trust.restore()
    assert core.trust[-1]["crls"] == b"".join(texts).decode()
    path.write_bytes(lists[0].public_bytes(Encoding.DER))
    trust.look()
    assert core.trust[-1]["crls"] == texts[0].decode()


@pytest.mark.parametrize("content", [None, b"", b"words", b"-----BEGIN X509 CRL-----\nAA\n-----END X509 CRL-----\n"])
def test_a_revocation_list_that_cannot_be_read_makes_everybody_refused(files, trust_of, core, content):
    path = files / "crl"
    path.write_bytes(revocations().public_bytes(Encoding.PEM))
    trust = trust_of(CRL_PATH=str(path))
    trust.restore()
    path.unlink() if content is None else path.write_bytes(content)
    trust.look()
    assert str(path) in core.trust[-1]["crls_unusable"]
    assert "CRL_PATH" in trust.troubles()
    path.write_bytes(revocations().public_bytes(Encoding.PEM))
    trust.look()
    assert "crls_unusable" not in core.trust[-1]
    assert trust.troubles() == {}


def test_a_revocation_list_out_of_date_makes_everybody_refused(files, trust_of, core):
    path = files / "crl"
    path.write_bytes(revocations(life=timedelta(seconds=-1)).public_bytes(Encoding.PEM))
    with pytest.raises(OperatorError, match="out of date"):
        trust_of(CRL_PATH=str(path)).restore()
    assert "out of date" in core.trust[-1]["crls_unusable"]


def test_lists_that_the_source_delivers_count_too(trust_of, core):
    trust_of().deliver({}, [revocations().public_bytes(Encoding.DER)])
    assert core.trust[-1]["crls"] == revocations_text(core)


def revocations_text(core):
    text = core.trust[-1]["crls"]
    assert text.count("BEGIN X509 CRL") == 1
    return text
