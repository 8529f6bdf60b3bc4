"""A root's replacement: what is trusted and what signs after each step, and what is refused when it is not its turn."""

import asyncio
import time

import pytest
from cryptography import x509

from controlplane.ca import NEXT, NEXT_KEY, PREVIOUS, ROOT, ROOT_KEY, load_authority
from controlplane.rotation import SPREAD_S, Rotation
from mesh.errors import OperatorError
from mesh.gen.spiffe_pb2 import X509BundlesRequest
from mesh.gen.spiffe_pb2_grpc import SpiffeWorkloadAPIStub
from mesh.spiffe_bundle import pem_of_der
from tests.controlplane.test_ca import WEB, request
from tests.controlplane.test_server import running

DAY = 86400


@pytest.fixture
def rotation(tmp_path):
    return Rotation(tmp_path, "cluster.local")


def leaf_and_roots(authority):
    leaf, roots = authority.issue(request(str(WEB)), WEB)
    return x509.load_pem_x509_certificate(leaf.encode()), x509.load_pem_x509_certificates(roots.encode())


def test_three_steps_and_in_each_every_leaf_is_under_a_root_that_everybody_believes_in(rotation):
    authority = rotation.authority
    first, before = leaf_and_roots(authority)
    rotation.prepare()
    second, both = leaf_and_roots(authority)
    rotation.activate(time.time() + SPREAD_S + 1)
    third, after = leaf_and_roots(authority)
    rotation.finish(time.time() + DAY + 1)
    fourth, last = leaf_and_roots(authority)
    old, new = both
    for leaf in (first, second):
        leaf.verify_directly_issued_by(old)
    for leaf in (third, fourth):
        leaf.verify_directly_issued_by(new)
    assert (before, after, last) == ([old], [new, old], [new])


def test_each_step_has_its_turn(rotation):
    for step in (rotation.activate, rotation.finish):
        with pytest.raises(OperatorError, match="first"):
            step(time.time())
    rotation.prepare()
    with pytest.raises(OperatorError, match="already"):
        rotation.prepare()
    with pytest.raises(OperatorError, match="too short a time ago: wait another 5 min"):
        rotation.activate(time.time())
    rotation.activate(time.time(), early=True)
    with pytest.raises(OperatorError, match="not finished"):
        rotation.prepare()
    with pytest.raises(OperatorError, match="too short a time ago: wait another 1440 min"):
        rotation.finish(time.time())
    rotation.finish(time.time(), early=True)
    assert len(rotation.describe()) == 1


def test_whoever_dies_in_the_middle_of_the_change_is_helped_over_it(rotation, tmp_path):
    rotation.prepare()
    files = tmp_path / "ca"
    (files / PREVIOUS).write_bytes((files / ROOT).read_bytes())
    (files / NEXT_KEY).replace(files / ROOT_KEY)
    again = load_authority(tmp_path, "cluster.local")
    assert not (files / NEXT).exists()
    leaf, roots = leaf_and_roots(again)
    leaf.verify_directly_issued_by(roots[0])
    assert len(roots) == 2


def test_files_that_cannot_be_used_leave_the_last_state_in_force(rotation, tmp_path):
    authority = rotation.authority
    _, before = leaf_and_roots(authority)
    (tmp_path / "ca" / NEXT).write_text("words")
    assert leaf_and_roots(authority)[1] == before
    assert NEXT in authority.trouble


def test_tunnels_are_told_of_each_step_without_asking(tmp_path):
    async def story():
        async with running(tmp_path) as control, control.channel() as channel:
            metadata = (*control.metadata(), ("workload.spiffe.io", "true"))
            stream = SpiffeWorkloadAPIStub(channel).FetchX509Bundles(X509BundlesRequest(), metadata=metadata)
            rotation = Rotation(tmp_path, "cluster.local")
            told = [await stream.read()]
            for step in (
                rotation.prepare,
                lambda: rotation.activate(time.time(), early=True),
                lambda: rotation.finish(time.time(), early=True),
            ):
                step()
                told.append(await stream.read())
            return [pem_of_der(message.bundles["spiffe://cluster.local"]) for message in told]

    one, two, three, four = asyncio.run(asyncio.wait_for(story(), 60))
    assert [text.count("BEGIN") for text in (one, two, three, four)] == [1, 2, 2, 1]
    assert two.startswith(one)
    assert three == four + one


@pytest.mark.parametrize(
    ("token", "header", "code"), [(None, "false", "INVALID_ARGUMENT"), ("wrong", "true", "UNAUTHENTICATED")]
)
def test_who_does_not_ask_properly_is_told_nothing(tmp_path, token, header, code):
    async def story():
        async with running(tmp_path) as control, control.channel() as channel:
            metadata = (*control.metadata(token), ("workload.spiffe.io", header))
            stream = SpiffeWorkloadAPIStub(channel).FetchX509Bundles(X509BundlesRequest(), metadata=metadata)
            return (await stream.code()).name

    assert asyncio.run(asyncio.wait_for(story(), 60)) == code
