"""Door 4's promises, asked of the fake core and, where it is built, of the real one."""

import json
import os
import select
import zlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.workload_pb2 import Address, Workload
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
from tests.fakes import core as fakes
from tests.ztunnel.authority import Authority, pem

WEB, DB = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"
ADDRESS = Address(
    workload=Workload(uid="web", name="web", namespace="shop", service_account="web", addresses=[b"\x0a\0\0\1"])
).SerializeToString()


def real_class():
    try:
        from ztunnel import _core
    except ImportError:
        pytest.skip("the native core is not built")
    return _core.Core


@pytest.fixture(params=["fake", "real"])
def core_class(request):
    return fakes.FakeCore if request.param == "fake" else real_class()


@pytest.fixture
def core(core_class):
    core = core_class(json.dumps({"workers": 1, "access_log": "off", "log_level": "error"}).encode())
    yield core
    core.close()


def test_an_unknown_key_of_the_configuration_is_refused(core_class):
    with pytest.raises(ValueError, match="colour"):
        core_class(b'{"colour": 1}')


def test_resources_are_taken_or_refused_by_name(core):
    refused = core.apply(ADDRESS_TYPE, [("web", ADDRESS), ("bad", b"\xff\xff")], ["absent"])
    assert [name for name, _ in refused] == ["bad"]
    assert core.apply(ADDRESS_TYPE, [], ["web"]) == []
    assert core.apply(AUTHORIZATION_TYPE, [], []) == []
    with pytest.raises(ValueError, match=r"."):
        core.apply("type/T", [], [])


def test_what_more_follows_on_comes_into_force_with_what_follows(core):
    def known():
        return [workload["uid"] for workload in json.loads(core.dump())["workloads"]]

    assert core.apply(ADDRESS_TYPE, [("web", ADDRESS)], [], True) == []
    assert known() == []
    assert core.apply(AUTHORIZATION_TYPE, [], []) == []
    assert known() == ["web"]


def bundle(**resources):
    message = DeltaDiscoveryResponse()
    for name, data in resources.items():
        message.resources.add(name=name, version=f"of {name}").resource.value = data
    return zlib.compress(message.SerializeToString())


def test_what_was_kept_is_taken_at_once_and_told_by_bundle(core):
    good, bad = (ADDRESS_TYPE, bundle(web=ADDRESS)), (ADDRESS_TYPE, bundle(bad=b"\xff\xff"))
    names, refused = core.restore([(AUTHORIZATION_TYPE, bundle()), bad, good])
    assert [tuple(map(list, each)) for each in names] == [([], []), (["bad"], ["of bad"]), (["web"], ["of web"])]
    assert [each[:2] for each in refused] == [(ADDRESS_TYPE, "bad")]
    assert core.restore([]) == ([], [])


@pytest.mark.parametrize(
    "damaged", [(ADDRESS_TYPE, b""), (ADDRESS_TYPE, bundle(web=ADDRESS)[:-3]), ("type/T", bundle())]
)
def test_of_what_was_kept_and_is_damaged_nothing_is_taken(core, damaged):
    with pytest.raises(ValueError, match=r"."):
        core.restore([(ADDRESS_TYPE, bundle(web=ADDRESS)), damaged])


def test_a_key_is_asked_for_with_a_request_that_names_the_identity_and_nothing_else(core):
    request = x509.load_pem_x509_csr(core.new_key(WEB))
    assert request.is_signature_valid
    assert list(request.subject) == []
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]


@pytest.mark.parametrize("identity", ["", "web", "spiffe://td/ns/a/sa/b/", "spiffe://TD/ns/a/sa/b"])
def test_a_key_for_no_identity_is_refused(core, identity):
    with pytest.raises(ValueError, match=r"."):
        core.new_key(identity)


def test_a_chain_for_the_last_key_is_installed_and_its_life_told(core):
    authority = Authority()
    stale = authority.chain(WEB, core.new_key(WEB).decode())
    chain = authority.chain(WEB, core.new_key(WEB).decode())
    with pytest.raises(ValueError, match=r"."):
        core.install_chain(WEB, stale)
    not_before, not_after = core.install_chain(WEB, chain)
    assert not_after - not_before == 24 * 3600
    core.forget_identity(WEB)
    core.forget_identity(WEB)
    core.certificate_failed(WEB, "nobody waits")


@pytest.mark.parametrize("names", [[], [DB], [WEB + "x"], [WEB, DB]])
def test_a_leaf_must_carry_exactly_the_name_asked_for(core, names):
    authority = Authority()
    authority.names_instead = names
    with pytest.raises(ValueError, match=r"the certificate|certificate's"):
        core.install_chain(WEB, authority.chain(WEB, core.new_key(WEB).decode()))


@pytest.mark.parametrize("parts", [[], ["leaf"], ["no", "pem"]])
def test_a_chain_has_a_leaf_and_a_root(core, parts):
    leaf = Authority().chain(WEB, core.new_key(WEB).decode())[0]
    with pytest.raises(ValueError, match="chain"):
        core.install_chain(WEB, [leaf if part == "leaf" else part for part in parts])


def test_a_descriptor_that_is_no_namespace_enrols_nobody(core):
    with pytest.raises(Exception, match=r"."):
        core.enrol("web-1", "web-1", "shop", "web", -1)
    assert core.pods() == []
    core.withdraw("web-1")


def test_without_a_pod_there_are_no_listening_sockets(core):
    assert core.listeners("web-1") == []


def test_without_a_pod_no_policy_is_missing(core):
    record = Workload(uid="web", name="web", namespace="shop", service_account="web", authorization_policies=["shop/x"])
    assert core.apply(ADDRESS_TYPE, [("web", Address(workload=record).SerializeToString())], []) == []
    assert core.missing_policies() == []


def test_the_cores_processor_time_is_told_by_stack_and_out_of_range_is_refused():
    real_class()
    from ztunnel import _core

    for seconds, hertz in ((0, 99), (-1, 99), (1e9, 99), (float("nan"), 99), (1, 0)):
        with pytest.raises(ValueError, match="out of range"):
            _core.profile(seconds, hertz)
    for thread, frames, times in _core.profile(0.05, 99):
        assert isinstance(thread, str)
        assert times > 0
        assert all(function for function, _, _ in frames)


def test_the_bell_rings_once_drained(core):
    fd = core.fileno()
    assert os.get_inheritable(fd) is False
    core.drain(0.0)
    assert select.select([fd], [], [], 5)[0] == [fd]
    assert ("drained", "", "") in core.take()
    assert select.select([fd], [], [], 0)[0] == []
    assert core.take() == []


def test_what_people_read_is_well_formed(core):
    dump = json.loads(core.dump())
    assert dump.keys() >= {"workloads", "services", "policies", "certificates", "workloadState"}
    for line in core.metrics().decode().splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2


def test_levels_are_five(core):
    for level in ("error", "warn", "info", "debug", "trace"):
        core.set_log_level(level)
    core.set_log_level("error")
    with pytest.raises(ValueError, match=r"."):
        core.set_log_level("loud")
    core.set_log_level("debug", "access")
    with pytest.raises(ValueError, match="nothing"):
        core.set_log_level("debug", "nothing")


def test_without_traces_there_are_no_spans(core):
    assert core.take_spans() == []


def test_a_closed_core_answers_nothing(core):
    core.close()
    core.close()
    with pytest.raises(RuntimeError):
        core.pods()


def test_trust_is_taken_as_a_whole_or_not_at_all(core):
    root = pem(Authority().root)
    core.set_trust(json.dumps({"bundles": {"cluster.local": root, "partner.org": ""}, "aliases": ["old"]}).encode())
    for bad in ({"bundels": {}}, {"bundles": {"td": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}):
        with pytest.raises(ValueError, match=r"."):
            core.set_trust(json.dumps(bad).encode())


def test_a_key_from_outside_is_installed_with_its_chain_and_counted_until_it_is_forgotten(core):
    authority, key = Authority(), ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    chain = authority.chain(WEB, request.public_bytes(serialization.Encoding.PEM).decode())
    pkcs8 = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    not_before, not_after = core.install_svid(WEB, pkcs8, chain)
    assert not_after - not_before == 24 * 3600
    assert core.keys() == ([WEB], 0)
    core.forget_identity(WEB)
    assert core.keys() == ([], 1)
    core.forget_absent()
