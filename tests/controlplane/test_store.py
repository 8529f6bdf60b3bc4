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
    assert config.why == ["a.yaml: error: cannot be read: Permission denied"]


def test_last_good_is_kept_through_any_number_of_bad_edits(config):
    for text in (WRONG, "spec: [", DENY.replace("kind: A", "kind: B"), WRONG, "\t"):
        assert config.write("a.yaml", text).store.world.policies["shop/deny"].action == "DENY"


def test_an_object_goes_when_its_document_or_its_file_goes(config):
    assert config.write("a.yaml", NODE).counts == {"Node": 1}
    assert config.remove("a.yaml").counts == {}
    assert config.why == []


def test_a_document_of_a_strange_kind_beside_it_does_not_keep_a_deleted_object(config):
    strange = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: deny, namespace: shop}\n"
    config.write("a.yaml", DENY + NODE + strange)
    assert config.write("a.yaml", NODE + strange).counts == {"Node": 1}


def test_a_document_that_was_never_good_gives_no_object(config):
    counts = config.counts
    config.write("b.yaml", WRONG.replace("name: deny", "name: other"))
    assert config.counts == counts
    assert [why for why in config.why if "b.yaml" in why] == [
        "b.yaml:5: error: AuthorizationPolicy shop/other: spec.action: 'DENI' is not one of ALLOW, DENY, AUDIT, CUSTOM"
    ]


EVERYTHING = ((),)


@pytest.mark.parametrize(
    ("text", "key", "rules"),
    [
        (WRONG, "shop/deny", EVERYTHING),
        (WRONG.replace("DENI", "ALLOW").replace("{}", "{to: [{operation: {ports: [x]}}]}"), "shop/deny", EVERYTHING),
        (WRONG.replace("shop", "istio-system"), "istio-system/deny", EVERYTHING),
        (WRONG.replace("shop}", "shop, annotations: {istio.io/dry-run: 'true'}}"), "shop/deny", None),
        (WRONG.replace("DENI", "AUDIT, selector: 5"), "shop/deny", None),
        (WRONG.replace("DENI", "CUSTOM, provider: 5, x: 1"), "shop/deny", None),
    ],
)  # fmt: skip
def test_a_policy_that_is_unreadable_at_the_start_closes_what_it_could_govern(text, key, rules):
    config = Config().write("a.yaml", text)
    found = config.store.world.policies.get(key)
    assert (found and found.action, found and found.rules) == (rules and "DENY", rules)
    assert any("refuses every connection that it could govern" in why for why in config.why) is bool(rules)
    assert config.counts == {}


def test_a_selector_that_is_unreadable_selects_everything_of_its_namespace():
    selecting = WRONG.replace("DENI", "DENY, selector: {matchLabels: {app: web}}")
    for text, scope in [
        (selecting.replace("[{}]", "5"), "WORKLOAD_SELECTOR"),
        (selecting.replace("web", "5"), "NAMESPACE"),
    ]:
        assert Config().write("a.yaml", text).store.world.policies["shop/deny"].scope == scope


def test_what_was_closed_at_the_start_opens_when_it_is_corrected_or_goes():
    config = Config().write("a.yaml", WRONG)
    assert config.write("a.yaml", WRONG + "# more").store.world.policies["shop/deny"].rules == EVERYTHING
    allow = DENY.replace("DENY", "ALLOW")
    assert config.write("a.yaml", allow).store.world.policies["shop/deny"].action == "ALLOW"
    assert config.write("a.yaml", WRONG).store.world.policies["shop/deny"].action == "ALLOW"
    assert "shop/deny" not in Config().write("a.yaml", WRONG).remove("a.yaml").store.world.policies


def test_a_peer_authentication_that_is_unreadable_at_the_start_counts_as_strict():
    text = """
    apiVersion: security.istio.io/v1
    kind: PeerAuthentication
    metadata: {name: default, namespace: shop}
    spec: {mtls: {mode: PERMISSIV}}
    ---
    apiVersion: v1
    kind: Pod
    metadata: {name: web, namespace: shop}
    spec: {nodeName: n}
    status: {podIP: 10.0.0.1}
    """
    [web] = Config().write("a.yaml", text).store.world.workloads.values()
    assert web.policies == ("istio-system/istio_converted_static_strict",)


def condition(text, name="shop/deny"):
    [found] = [each for each in Config().write("a.yaml", text).store.conditions() if each["name"] == name]
    [only] = found["conditions"]
    return only["status"], only["reason"], only["message"]


@pytest.mark.parametrize(
    ("text", "status", "reason", "says"),
    [
        (DENY, "True", "Accepted", "in force as written"),
        (WRONG, "False", "Invalid", "line 5: spec.action: 'DENI'"),
        (DENY.replace("{}", "{to: [{operation: {methods: [GET]}}]}"), "False", "UnsupportedValue", "methods cannot"),
        (DENY.replace("DENY", "CUSTOM, provider: {name: x}"), "False", "NotForTunnel", "no external authorizer"),
        (
            DENY.replace("DENY", "DENY, targetRefs: [{kind: Gateway, name: g}]"),
            "False",
            "TargetNotFound",
            "shop/g does",
        ),
    ],
)
def test_the_object_itself_says_what_became_of_it(text, status, reason, says):
    found = condition(text)
    assert found[:2] == (status, reason)
    assert says in found[2]


def test_of_two_with_one_name_the_second_says_so(config):
    config.write("b.yaml", DENY)
    reasons = {each["file"]: each["conditions"][0]["reason"] for each in config.store.conditions()}
    assert reasons == {"a.yaml": "Accepted", "b.yaml": "Duplicate"}


def test_a_condition_says_what_stands_for_an_invalid_policy(config):
    config.write("a.yaml", WRONG)
    [broken_later] = config.store.conditions()
    assert broken_later["conditions"][0]["message"].endswith("its last good state is in force")
    assert condition(WRONG)[2].endswith("it refuses every connection that it could govern")


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
