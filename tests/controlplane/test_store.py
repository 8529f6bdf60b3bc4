"""What stays in force when documents change, break, vanish or come twice."""

from textwrap import dedent

import pytest

from controlplane.documents import broken, parse
from controlplane.objects import Mesh
from controlplane.store import Store

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{}]}
"""
NODE = """
---
apiVersion: v1
kind: Node
metadata: {name: node1}
"""
WRONG = DENY.replace("action: DENY", "action: DENI")


class Config:
    """A directory, as a source would hand it over: write and remove files, then look at what is in force."""

    def __init__(self):
        self.store = Store(Mesh())
        self._contents = {}

    def write(self, name, text):
        self._contents[name] = parse(name, dedent(text).encode())
        return self._update()

    def damage(self, name):
        self._contents[name] = broken(name, 0, "cannot be read: Permission denied")
        return self._update()

    def remove(self, name):
        del self._contents[name]
        return self._update()

    def _update(self):
        self.changed = self.store.update(self._contents)
        return self

    @property
    def counts(self):
        return self.store.counts

    @property
    def why(self):
        return [str(finding) for finding in self.store.findings]


@pytest.fixture
def config():
    return Config().write("a.yaml", DENY + NODE)


def test_a_valid_change_is_in_force_and_makes_a_new_world(config):
    version = config.store.world.version
    assert config.write("a.yaml", DENY.replace("DENY", "ALLOW") + NODE).changed
    assert config.store.world.version == version + 1
    assert config.store.world.policies["shop/deny"].action == "ALLOW"


def test_a_change_of_comments_is_none(config):
    world = config.store.world
    assert not config.write("a.yaml", DENY + "# why\n" + NODE).changed
    assert config.store.world is world


@pytest.mark.parametrize(
    "text",
    [
        WRONG + NODE,
        DENY.replace("AuthorizationPolicy", "AuthorizationPolcy") + NODE,
        DENY.replace("name: deny", "name: Deny_") + NODE,
        DENY.replace("name: deny, ", "") + NODE,
        DENY.replace("kind: AuthorizationPolicy", "") + NODE,
        DENY.replace("security.istio.io/v1", "security.istio.io/v9") + NODE,
        DENY.replace("namespace: shop", "namespace: Shop!") + NODE,
        NODE + "---\nspec: {action: [",
        NODE + "---\n\x01",
        "",
        "   \n",
    ],
    ids=["value", "kind", "name", "no name", "no kind", "version", "namespace", "cut off", "bytes", "empty", "blank"],
)
def test_what_cannot_be_understood_keeps_its_last_good_state(config, text):
    config.write("a.yaml", text)
    assert config.store.world.policies["shop/deny"].action == "DENY"
    assert config.why
    assert config.write("a.yaml", DENY + NODE).why == []


def test_the_rest_of_the_file_is_applied(config):
    assert config.write("a.yaml", WRONG + NODE.replace("node1", "node2")).counts == {
        "AuthorizationPolicy": 1,
        "Node": 1,
    }


def test_an_unreadable_file_keeps_everything_that_it_held(config):
    assert not config.damage("a.yaml").changed
    assert config.why == ["a.yaml:0: error: cannot be read: Permission denied"]


def test_last_good_is_kept_through_any_number_of_bad_edits(config):
    for text in (WRONG, "spec: [", DENY.replace("kind: A", "kind: B"), WRONG, "\t"):
        assert config.write("a.yaml", text).store.world.policies["shop/deny"].action == "DENY"


def test_an_object_goes_when_its_document_or_its_file_goes(config):
    assert config.write("a.yaml", NODE).counts == {"Node": 1}
    assert config.remove("a.yaml").counts == {}
    assert config.why == []


def test_a_document_of_a_strange_kind_beside_it_does_not_keep_a_deleted_object(config):
    strange = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: deny, namespace: shop}\n"
    config.write("a.yaml", DENY + NODE + strange)
    assert config.write("a.yaml", NODE + strange).counts == {"Node": 1}


def test_a_document_that_was_never_good_gives_no_object():
    config = Config().write("b.yaml", WRONG)
    assert config.counts == {}
    assert config.why == [
        "b.yaml:5: error: AuthorizationPolicy shop/deny: spec.action: 'DENI' is not one of ALLOW, DENY, AUDIT, CUSTOM"
    ]


def test_of_two_documents_the_one_that_was_there_first_stays(config):
    config.write("0.yaml", DENY.replace("DENY", "ALLOW"))
    assert config.store.world.policies["shop/deny"].action == "DENY"
    assert config.why == [
        "0.yaml:2: error: AuthorizationPolicy shop/deny: is a duplicate of a.yaml:2, which is in force"
    ]
    config.remove("a.yaml")
    assert config.store.world.policies["shop/deny"].action == "ALLOW"


def test_an_object_may_move_to_another_file(config):
    config.write("b.yaml", DENY)
    assert not config.write("a.yaml", NODE).changed
    assert config.why == []


def test_a_pod_that_is_being_created_is_known_but_not_reachable():
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop}\nspec: {nodeName: node1}\n"
    [workload] = Config().write("p.yaml", pod).store.world.workloads.values()
    assert (workload.uid, workload.addresses) == ("Kubernetes//Pod/shop/new", ())
