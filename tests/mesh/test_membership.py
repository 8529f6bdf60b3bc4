"""The one rule of who is in the mesh, and that both daemons ask it: a difference would lose or expose traffic."""

import itertools
import os

import pytest

from controlplane.objects import Meta, Pod
from controlplane.sources.files import FileSource
from controlplane.translate.workloads import enrolled
from mesh.directory import Directory
from mesh.membership import is_document, is_hidden
from nodeagent.enrol.pods import FilePods, PodSpec, UnknownYet, is_eligible

MODES = (None, "ambient", "none", "other", "")
NAMESPACES = ("shop", "kube-system", "istio-system")
LABELS = ({}, {"app": "web"}, {"app": "ztunnel"})
ANNOTATIONS = ({}, {"sidecar.istio.io/status": ""}, {"ambient.istio.io/redirection": "enabled"})


def moded(mode, others=()):
    return {**dict(others), **({} if mode is None else {"istio.io/dataplane-mode": mode})}


class Source:
    def __init__(self, labels):
        self.labels = labels

    def namespace_labels(self, _):
        return self.labels


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("host_network", [False, True])
def test_agent_and_control_plane_agree_on_every_pod(namespace, host_network):
    for mode, around, labels, annotations in itertools.product(MODES, MODES, LABELS, ANNOTATIONS):
        own, outer = moded(mode, labels), moded(around)
        spec = PodSpec(namespace, "web", host_network=host_network, labels=own, annotations=annotations)
        meta = Meta("web", namespace, own, annotations)
        pod = Pod(meta, None, "node1", "default", host_network, {}, "Running", (), True)
        assert is_eligible(spec, Source(outer)) is enrolled(pod, outer), (own, outer, annotations)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a.yaml", True),
        ("a.yml", True),
        ("a.json", True),
        ("a.YAML", False),
        ("a.yaml~", False),
        ("a.yaml.swp", False),
        (".a.yaml", False),
        ("#a.yaml", False),
        ("~a.yaml", False),
        ("yaml", False),
    ],
)
def test_which_files_count(name, counts):
    assert is_document(name) is counts


def test_what_kubernetes_swaps_is_hidden():
    assert is_hidden("..data")
    assert not is_hidden("shop")


NAMES = ("a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "#f.yaml", "~g.yaml", "h.yaml.bak")
PLACES = ("", "shop", "shop/deep", "named.yaml", ".hidden", "..2026")


def test_agent_and_control_plane_see_the_same_files(tmp_path):
    for number, (place, name) in enumerate(itertools.product(PLACES, NAMES)):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_text(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}}}\n")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "d.txt")
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "shop/round").symlink_to(tmp_path)
    read = FileSource(tmp_path).read()
    pods = FilePods(Directory(tmp_path))
    seen = {number for number in range(len(PLACES) * len(NAMES)) if known(pods, f"p{number}")}
    assert seen == {int(document.key.name[1:]) for parsed in read.values() for document in parsed.documents}
    assert len(seen) == 4 * 3 + 1


def known(pods, name):
    try:
        return bool(pods.pod("default", name))
    except UnknownYet:
        return False


def test_a_pipe_among_the_documents_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UnknownYet):
        FilePods(Directory(tmp_path)).pod("shop", "web")
