"""Many files are read by child processes, and nobody can tell by the result."""

import sys

import pytest

from controlplane.objects import Mesh
from controlplane.sources.files import FileSource
from controlplane.sources.many import Many
from controlplane.store import Store
from lab import scale

pytestmark = pytest.mark.lab

STRANGE = {
    "broken.yaml": "kind: [",
    "empty.yaml": "",
    "latin-\udce4.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: odd}\n",
    "misspelt.yaml": "apiVersion: v1\nkind: Namespce\nmetadata: {name: x}\n---\nkind: Pod\nmetadata: {name: _}\n",
    "not-utf8.yaml": "name: \udcff\n",
    "unreadable.yaml": None,
}


@pytest.fixture
def directory(tmp_path):
    scale.world(60, 30, tmp_path)
    for name, text in STRANGE.items():
        path = tmp_path / name
        if text is None:
            path.symlink_to("/proc/self/mem")
        else:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return tmp_path


def read(directory, worth_bytes):
    store = Store(Mesh())
    store.update(FileSource(directory, Many("istio-system", store.judged, worth_bytes)).read())
    return store.world, store.findings, store.places(), store.conditions()


def test_children_read_the_same_world_with_the_same_findings(directory):
    alone, together = read(directory, 1 << 40), read(directory, 0)
    assert len(together[0].workloads) == 60
    assert len(together[1]) > len(STRANGE) - 1
    assert together == alone


def test_what_a_child_does_not_do_is_done_without_it(directory, monkeypatch):
    alone = read(directory, 1 << 40)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert read(directory, 0) == alone
