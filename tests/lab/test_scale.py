"""The big world: what the generator writes is what the control plane reads, and a change in it is a small matter."""

import os

import pytest

from controlplane.objects import Mesh
from controlplane.push import PART, Conversation
from controlplane.sources.files import FileSource, one_by_one
from controlplane.store import Store
from controlplane.translate.tunnel import translate
from lab import scale, scale_run
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Subscriber
from mesh.gen.xds_pb2 import Node
from ztunnel.dataplane import read_response

WORKLOADS, SERVICES = 5000, 500


def read(directory):
    store = Store(Mesh())
    store.update(FileSource(directory).read())
    return store


def test_the_generated_world_is_read_without_a_finding_and_in_full(tmp_path):
    written = scale.world(130, 12, tmp_path)
    assert {path.parent for path in written} == {tmp_path}
    store = read(tmp_path)
    assert store.findings == ()
    assert (len(store.world.workloads), len(store.world.services)) == (130, 12)


def test_every_generated_pod_has_both_families_is_in_the_mesh_and_serves_one_service(tmp_path):
    scale.world(30, 7, tmp_path)
    world = read(tmp_path).world
    pod = world.workloads[scale.pod_uid(23, 7)]
    assert [address.version for address in pod.addresses] == [4, 6]
    assert pod.addresses[0] == scale.pod_address(23)
    assert pod.hbone
    assert list(pod.services) == ["scale-0000/svc-000002.scale-0000.svc.cluster.local"]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        scale.world(40, 11, directory)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def load(conversation):
    """The sizes of the responses by which a new tunnel gets everything, and the tunnel."""
    tunnel, sizes = Subscriber(Node(), [AUTHORIZATION_TYPE, ADDRESS_TYPE]), []
    requests = tunnel.start()
    while requests:
        for sent in conversation.receive(requests.pop(0)):
            batch = tunnel.receive(read_response(sent.data))
            sizes.append(len(batch.upserts))
            requests.append(tunnel.settle(batch))
    return sizes, tunnel


@pytest.mark.lab
def test_in_a_big_world_one_changed_pod_is_one_read_file_one_new_workload_and_one_resource(tmp_path):
    scale.world(WORKLOADS, SERVICES, tmp_path)
    store, judged = Store(Mesh()), []
    source = FileSource(tmp_path, one_by_one(lambda parsed: (judged.append(parsed.file), store.judge(parsed))))
    store.update(source.read())
    resources = translate(store.world)
    conversation = Conversation(resources)
    sizes, tunnel = load(conversation)
    assert sum(sizes) == WORKLOADS + SERVICES + 1, "one policy is always there"
    assert max(sizes) == PART, "none longer, so that neither side works on one for long"
    assert len(sizes) < 2 * (WORKLOADS + SERVICES) / PART
    assert tunnel.synced

    path = scale.services_file(tmp_path, 0)
    scale.replace(path, path.read_text().replace(f"{scale.pod_address(0)}\n", "100.127.255.1\n"))
    judged.clear()
    before = dict(store.world.workloads)
    assert store.update(source.read())
    assert judged == [str(path)]
    assert [uid for uid, each in store.world.workloads.items() if each is not before[uid]] == [
        scale.pod_uid(0, SERVICES)
    ]
    after = translate(store.world, resources)
    assert after.since(resources, ADDRESS_TYPE) == {scale.pod_uid(0, SERVICES)}
    (sent,) = conversation.update(after)
    assert [name for name, *_ in read_response(sent.data).upserts] == [scale.pod_uid(0, SERVICES)]


@pytest.mark.lab
def test_a_big_world_goes_through_the_real_daemons():
    said = []
    figures = scale_run.run(f"s{os.getpid()}", WORKLOADS, SERVICES, said.append)
    assert len(figures.change_s) == scale_run.CHANGES
    assert [line.split()[0] for line in figures.lines()] == ["documents", "control", "first", "tunnel", "a", "a"]
    assert len(said) >= 3
