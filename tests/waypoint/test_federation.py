"""Other trust domains' bundles as files: what is believed after each change of them."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.errors import OperatorError
from tests.waypoint.certificates import server_certificate
from waypoint.federation import Files, begin
from waypoint.identity import Held
from waypoint.sds import secrets

ONE, OTHER, OWN = (server_certificate(name).chain for name in ("one", "other", "own"))


def der(pem):
    return [x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)]


def held():
    found = Held(lambda: None)
    found.bundles({"cluster.local": der(OWN)})
    return found


def test_a_file_is_a_trust_domain_and_goes_with_it(tmp_path):
    files = Files(tmp_path)
    assert files.read() == {}
    (tmp_path / "a.example.pem").write_text(ONE)
    (tmp_path / "notes.txt").write_text("nothing")
    assert files.read() == {"a.example": der(ONE)}
    (tmp_path / "a.example.pem").unlink()
    assert (files.read(), files.troubles) == ({}, {})


@pytest.mark.parametrize("content", ["-----BEGIN nonsense", "\xff"])
def test_a_file_that_cannot_be_used_leaves_what_it_said(tmp_path, content):
    path = tmp_path / "a.example.pem"
    path.write_text(ONE)
    files = Files(tmp_path)
    files.read()
    path.write_text(content)
    assert files.read() == {"a.example": der(ONE)}
    assert list(files.troubles) == [str(path)]
    path.write_text(OTHER)
    assert (files.read(), files.troubles) == ({"a.example": der(OTHER)}, {})


def test_two_files_of_one_domain_are_a_mistake(tmp_path):
    (tmp_path / "a.example.json").write_text('{"keys": []}')
    (tmp_path / "a.example.pem").write_text(ONE)
    files = Files(tmp_path)
    assert files.read() == {"a.example": []}
    assert files.troubles == {str(tmp_path / "a.example.pem"): "is a second bundle of a.example"}


def test_a_mistake_at_the_start_is_one_sentence(tmp_path):
    with pytest.raises(OperatorError, match="No such file"):
        begin(tmp_path / "missing", held())
    assert begin(None, held()) is None


def test_a_file_counts_before_what_was_delivered(tmp_path):
    (tmp_path / "cluster.local.pem").write_text(ONE)
    (tmp_path / "a.example.pem").write_text(OTHER)
    mine = held()
    begin(tmp_path, mine)
    assert mine.roots == {"cluster.local": der(ONE), "a.example": der(OTHER)}
    mine.bundles({"cluster.local": der(OTHER)})
    assert mine.roots["cluster.local"] == der(ONE)


def test_a_bundle_without_certificates_believes_nobody_of_its_domain():
    mine = held()
    pair = server_certificate("way")
    mine.certificate(pair.chain, pair.key, 0.0)
    mine.federated({"a.example": []})
    trust = secrets(mine)["trust"].data
    assert b"cluster.local" in trust
    assert b"a.example" not in trust


def test_files_alone_are_not_enough_to_begin():
    mine = Held(lambda: None)
    pair = server_certificate("way")
    mine.certificate(pair.chain, pair.key, 0.0)
    mine.federated({"a.example": der(ONE)})
    assert secrets(mine) == {}
