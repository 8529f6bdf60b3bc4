"""The big world: what the generator writes is what the control plane reads."""

from controlplane.objects import Mesh
from controlplane.sources.files import FileSource
from controlplane.store import Store
from lab import scale


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
