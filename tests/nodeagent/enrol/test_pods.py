"""Which pods are meant for the mesh, and how their documents are found."""

import asyncio
import os

import pytest

from mesh.bell import Bell
from mesh.directory import Directory
from nodeagent.enrol.pods import FilePods, PodSpec, UnknownYet, is_eligible

AMBIENT = {"istio.io/dataplane-mode": "ambient"}
NONE = {"istio.io/dataplane-mode": "none"}


class Source:
    def __init__(self, labels):
        self.labels = labels

    def pod(self, namespace, name):
        raise AssertionError("not asked for")

    def namespace_labels(self, namespace):
        if self.labels is None:
            raise UnknownYet(f"namespace {namespace} is not known yet")
        return self.labels


@pytest.mark.parametrize(
    ("eligible", "namespace", "pod"),
    [
        (True, AMBIENT, {}),
        (True, {}, {"labels": AMBIENT}),
        (True, NONE, {"labels": AMBIENT}),
        (True, None, {"labels": AMBIENT}),
        (True, AMBIENT, {"labels": {"istio.io/dataplane-mode": "other"}}),
        (False, {}, {}),
        (False, AMBIENT, {"labels": NONE}),
        (False, None, {"labels": NONE}),
        (False, AMBIENT, {"host_network": True}),
        (False, AMBIENT, {"annotations": {"sidecar.istio.io/status": "{}"}}),
        (False, AMBIENT, {"labels": {"app": "ztunnel"}}),
        (False, AMBIENT, {"namespace": "kube-system", "labels": AMBIENT}),
    ],
)
def test_who_is_meant_for_the_mesh(eligible, namespace, pod):
    assert is_eligible(PodSpec(**{"namespace": "shop", "name": "web", **pod}), Source(namespace)) is eligible


def test_a_namespace_not_known_yet_is_no_reason_to_start_uncaptured():
    with pytest.raises(UnknownYet, match="namespace shop is not known yet"):
        is_eligible(PodSpec("shop", "web"), Source(None))


POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, weight: 5}}
spec: {serviceAccountName: web, nodeName: node-1, hostNetwork: false}
"""


def test_a_pods_document(tmp_path):
    (tmp_path / "a.yaml").write_text(POD)
    expected = PodSpec("shop", "web-1", "web", "node-1", labels={"app": "web", "weight": "5"})
    assert FilePods(Directory(tmp_path)).pod("shop", "web-1") == expected


@pytest.mark.parametrize(
    ("annotation", "setting", "captured"),
    [(None, True, True), (None, False, False), ("false", True, False), ("true", False, True), ("yes", False, False)],
)
def test_a_pods_own_word_on_dns_goes_before_the_nodes(annotation, setting, captured):
    annotations = {"ambient.istio.io/dns-capture": annotation} if annotation else {}
    assert PodSpec("shop", "web", annotations=annotations).dns_capture(setting) is captured


@pytest.mark.parametrize(
    ("dns_config", "search"),
    [
        ("{searches: [corp.example, lab.example]}", ("corp.example", "lab.example")),
        ("{}", ()),
        ("5", ()),
        ("{searches: 5}", ()),
    ],
)
def test_a_pods_search_domains(tmp_path, dns_config, search):
    (tmp_path / "a.yaml").write_text(POD.replace("hostNetwork: false", f"dnsConfig: {dns_config}"))
    assert FilePods(Directory(tmp_path)).pod("shop", "web-1").search == search


STATUS = "status: {phase: PHASE, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}, 5, {}]}"


@pytest.mark.parametrize(("phase", "finished"), [("Running", False), ("Succeeded", True), ("Failed", True)])
def test_what_a_running_pods_document_says(tmp_path, phase, finished):
    given = POD.replace("web-1,", "web-1, uid: u-1,") + STATUS.replace("PHASE", phase)
    (tmp_path / "a.yaml").write_text(given)
    (found,) = FilePods(Directory(tmp_path)).pods().values()
    assert (found.uid, found.ips, found.finished) == ("u-1", ("10.0.0.1", "fd00::1"), finished)


@pytest.mark.parametrize("status", ["5", "[]", "{podIPs: 5}", "{podIP: 5, podIPs: [[]]}"])
def test_a_status_that_is_none_gives_no_address(tmp_path, status):
    (tmp_path / "a.yaml").write_text(POD + f"status: {status}")
    assert FilePods(Directory(tmp_path)).pod("shop", "web-1").ips == ()


def test_a_round_in_which_no_file_changed_makes_nothing_anew(tmp_path):
    """An agent beside 100,000 pods used half a core for reading the same documents again each second."""
    path, pods = tmp_path / "a.yaml", FilePods(Directory(tmp_path))
    path.write_text(POD)
    before = pods.pods()
    assert pods.pods() is before
    path.write_text(POD + "# changed")
    assert pods.pods() is not before


def test_of_two_documents_of_one_pod_the_first_counts_in_every_answer(tmp_path):
    pods = FilePods(Directory(tmp_path))
    (tmp_path / "b.yaml").write_text(POD.replace("Name: web", "Name: second"))
    (tmp_path / "a.yaml").write_text(POD + "---" + POD.replace("Name: web", "Name: third"))
    assert pods.pod("shop", "web-1").service_account == "web"
    assert [each.service_account for each in pods.pods().values()] == ["web"]


def test_whoever_waits_for_a_change_hears_of_it(tmp_path):
    async def story():
        pods = FilePods(Directory(tmp_path))
        await pods.changed()
        waiting = asyncio.ensure_future(pods.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        (tmp_path / "a.yaml").write_text(POD)
        await waiting
        assert [each.name for each in pods.pods().values()] == ["web-1"]

    asyncio.run(story())


def test_between_two_rings_only_a_pod_that_starts_is_looked_for(tmp_path):
    """On another machine changes are made that do not ring."""

    async def story():
        (tmp_path / "a.yaml").write_text(POD)
        with Directory(tmp_path, Bell(Deaf()), now=lambda: 0.0) as directory:
            pods = FilePods(directory)
            assert pods.pod("shop", "web-1").node == "node-1"
            (tmp_path / "a.yaml").write_text(POD.replace("node-1", "node-22"))
            assert pods.pod("shop", "web-1").node == "node-1"
            await pods.prepare("shop", "web-1", "")
            assert pods.pod("shop", "web-1").node == "node-22"

    asyncio.run(story())


class Deaf:
    """A kernel whose watches never ring."""

    def inotify_init1(self, flags):
        return os.eventfd(0, flags)

    def inotify_add_watch(self, *_):
        return 1


def test_what_a_document_leaves_out(tmp_path):
    (tmp_path / "a.yml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\n")
    assert FilePods(Directory(tmp_path)).pod("default", "web-1") == PodSpec("default", "web-1", "default")


def test_a_list_and_json_and_several_documents(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}]}'
    )
    (tmp_path / "b.yaml").write_text(f"{POD}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n")
    pods = FilePods(Directory(tmp_path))
    assert pods.pod("default", "a").name == "a"
    assert pods.namespace_labels("shop") == {}


def test_a_pod_that_comes_later_is_found_and_one_that_goes_is_not(tmp_path):
    pods = FilePods(Directory(tmp_path))
    with pytest.raises(UnknownYet, match=r"pod shop/web-1 is not known yet \(looked in .+\)"):
        pods.pod("shop", "web-1")
    (tmp_path / "a.yaml").write_text(POD)
    assert pods.pod("shop", "web-1")
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(UnknownYet):
        pods.pod("shop", "web-1")


def test_a_file_that_changed_is_read_again_and_one_that_broke_keeps_its_last_word(tmp_path, capsys):
    path, pods = tmp_path / "a.yaml", FilePods(Directory(tmp_path))
    path.write_text(POD)
    assert pods.pod("shop", "web-1").service_account == "web"
    path.write_text(POD.replace("Name: web", "Name: other"))
    assert pods.pod("shop", "web-1").service_account == "other"
    path.write_text("a: [")
    os.utime(path, ns=(1, 1))
    assert pods.pod("shop", "web-1").service_account == "other"
    assert "its last good content stays" in "".join(capsys.readouterr())


STRANGE = ["", "5", "[]", "kind: Pod", "apiVersion: v1\nkind: Pod", "apiVersion: v1\nkind: Pod\nmetadata: 5\nspec: 7"]


@pytest.mark.parametrize(
    "content", [*STRANGE, "apiVersion: v1\nkind: List\nitems: 3", "\x00", "apiVersion: v1\nkind: List"]
)
def test_strange_documents_name_no_pod(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UnknownYet):
        FilePods(Directory(tmp_path)).pod("shop", "web-1")


def test_a_directory_that_is_missing_knows_no_pod(tmp_path):
    with pytest.raises(UnknownYet):
        FilePods(Directory(tmp_path / "nowhere")).namespace_labels("shop")


LAUGHS = "{a: &a [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, LAUGHS + "}"], ids=["a huge number", "aliases of aliases"])
@pytest.mark.parametrize("place", ["serviceAccountName: web", "{app: web, weight: 5}"])
def test_a_value_that_is_no_text_neither_breaks_nor_fills_the_agent(tmp_path, place, value):
    """Found by fuzzing: the number raised out of `pod`, and the aliases were written out, 9^10 times."""
    path = tmp_path / "pods.yaml"
    path.write_text(POD)
    source = FilePods(Directory(tmp_path))
    assert source.pod("shop", "web-1").node == "node-1"
    path.write_text(POD.replace(place, place.split(":")[0] + ": " + value if place[0] != "{" else value) + "# changed")
    assert source.pod("shop", "web-1").node == "node-1"
