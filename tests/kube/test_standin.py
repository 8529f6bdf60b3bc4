"""The stand-in's contract (docs/kubernetes.md), clause by clause: what a client may rely on from the real server."""

import asyncio

import pytest

from kube.client import Patch
from kube.errors import ApiError, Conflict, Expired, NotFound
from kube.objects import PODS, TOKEN_REVIEWS, Resource, Whole
from kube.reflect import ListPage
from lab.apiserver import patches
from lab.apiserver.kinds import BY_PATH
from lab.apiserver.selectors import selector
from lab.apiserver.server import Place
from lab.apiserver.store import Refused, Store
from tests.kube import cluster
from tests.kube.cluster import play, pod, until

ROLES, BINDINGS = (BY_PATH["rbac.authorization.k8s.io", "v1", each] for each in ("clusterroles", "clusterrolebindings"))


@pytest.mark.parametrize(
    ("media", "before", "patch", "after"),
    [
        (patches.MERGE, {"a": 1, "b": {"c": 2}}, {"a": None, "b": {"d": 3}}, {"b": {"c": 2, "d": 3}}),
        (patches.MERGE, {"l": [1]}, {"l": [2, 3]}, {"l": [2, 3]}),
        (
            patches.STRATEGIC,
            {"conditions": [{"type": "A", "status": "True"}, {"type": "B"}]},
            {"conditions": [{"type": "A", "status": "False"}, {"type": "B", "$patch": "delete"}]},
            {"conditions": [{"type": "A", "status": "False"}]},
        ),
        (patches.STRATEGIC, {"taints": [{"key": "a"}]}, {"taints": [{"key": "b"}]}, {"taints": [{"key": "b"}]}),
        (patches.JSON, {"l": [1, 2]}, [{"op": "add", "path": "/l/-", "value": 3}], {"l": [1, 2, 3]}),
        (patches.JSON, {"l": [1, 2]}, [{"op": "remove", "path": "/l/0"}], {"l": [2]}),
        (patches.JSON, {"a/b": 1}, [{"op": "replace", "path": "/a~1b", "value": 2}], {"a/b": 2}),
    ],
)
def test_patches(media, before, patch, after):
    assert patches.patched(media, before, patch) == after


@pytest.mark.parametrize(
    "step",
    [
        {"op": "test", "path": "/l/0", "value": 2},
        {"op": "replace", "path": "/x", "value": 2},
        {"op": "remove", "path": "/l/7"},
        {"op": "add", "path": "/l/0/x", "value": 2},
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused_as_a_whole(step):
    before = {"l": [1]}
    with pytest.raises(ValueError, match=r"."):
        patches.patched(patches.JSON, before, [{"op": "add", "path": "/y", "value": 1}, step])
    assert before == {"l": [1]}


@pytest.mark.parametrize(
    ("labels", "fields", "chosen"),
    [
        ("app=web", "", True),
        ("app==web,tier!=db", "", True),
        ("app in (web, api),!gone", "", True),
        ("app notin (web)", "", False),
        ("gone", "", False),
        ("", "spec.nodeName=node-1,metadata.namespace=shop", True),
        ("", "metadata.name!=a", False),
    ],
)
def test_selectors(labels, fields, chosen):
    assert selector(labels, fields)(pod("a", metadata={"labels": {"app": "web"}})) is chosen


def test_a_field_that_is_not_indexed_cannot_be_selected():
    with pytest.raises(ValueError, match=r"field label not supported: spec\.x"):
        selector("", "spec.x=1")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/api/v1/pods", ("", "v1", "pods", "", "", "")),
        ("/api/v1/namespaces/shop", ("", "v1", "namespaces", "", "shop", "")),
        ("/api/v1/namespaces/shop/status", ("", "v1", "namespaces", "", "shop", "status")),
        ("/api/v1/namespaces/shop/pods/a/status", ("", "v1", "pods", "shop", "a", "status")),
        ("/apis/discovery.k8s.io/v1/endpointslices", ("discovery.k8s.io", "v1", "endpointslices", "", "", "")),
    ],
)
def test_paths(path, place):
    assert Place.parse(path) == Place(*place)


def test_status_and_spec_are_written_apart():
    store = Store()
    store.create(cluster.PODS, "shop", pod("a", status={"phase": "Running"}))
    assert "status" not in store.get(cluster.PODS, "shop", "a")
    store.replace(cluster.PODS, "shop", pod("a", node="other", status={"phase": "Running"}), "status")
    found = store.get(cluster.PODS, "shop", "a")
    assert (found["status"], found["spec"]["nodeName"]) == ({"phase": "Running"}, "node-1")
    assert found["metadata"]["generation"] == 1
    store.replace(cluster.PODS, "shop", pod("a", node="other"))
    found = store.get(cluster.PODS, "shop", "a")
    assert (found["status"], found["metadata"]["generation"]) == ({"phase": "Running"}, 2)


def test_a_new_node_is_not_ready():
    made = Store().create(cluster.NODES, "", {"metadata": {"name": "a"}, "spec": {"taints": [{"key": "mine"}]}})
    assert [each["key"] for each in made["spec"]["taints"]] == ["mine", "node.kubernetes.io/not-ready"]


def test_writing_what_is_there_already_is_no_change():
    store = Store()
    made = store.create(cluster.PODS, "shop", pod("a"))
    assert store.replace(cluster.PODS, "shop", pod("a")) is made


def test_a_stale_version_or_another_object_of_the_name_is_a_conflict():
    store = Store()
    made = store.create(cluster.PODS, "shop", pod("a"))
    for about in ({"resourceVersion": "1"}, {"uid": "other"}):
        with pytest.raises(Refused, match=r".") as refused:
            store.replace(cluster.PODS, "shop", pod("a", metadata=about))
        assert refused.value.code == 409
    store.delete(cluster.PODS, "shop", "a")
    again = store.create(cluster.PODS, "shop", pod("a"))
    assert again["metadata"]["uid"] != made["metadata"]["uid"]


def test_a_selector_sees_objects_enter_and_leave():
    store, at = Store(), Store().version
    matches = selector("app=web", "")
    store.create(cluster.PODS, "shop", pod("a"))
    for labels in ({"app": "web"}, {"app": "web", "x": "y"}, {}):
        store.replace(cluster.PODS, "shop", pod("a", metadata={"labels": labels}))
    seen = [each.seen_through(matches) for each in store.since(cluster.PODS, at)]
    assert [each and each[0] for each in seen] == [None, "ADDED", "MODIFIED", "DELETED"]


def test_a_new_process_has_the_objects_but_not_the_history(tmp_path):
    store = Store(tmp_path / "objects.json")
    store.create(cluster.PODS, "shop", pod("a"))
    again = Store(tmp_path / "objects.json")
    assert (again.version, again.all(cluster.PODS)) == (store.version, store.all(cluster.PODS))
    with pytest.raises(Refused, match="too old resource version"):
        list(again.since(cluster.PODS, store.version - 1))


def test_an_old_watch_and_an_old_page_are_gone(tmp_path):
    async def main(api):
        client = api.connect()
        api.create(cluster.PODS, "shop", pod("a"))
        with pytest.raises(Expired):
            await client.list_page(PODS, ListPage(token="1.2"), {})
        api.server.compact()
        with pytest.raises(Expired, match=r"too old resource version: 1 \(\d+\)"):
            async with client.watch(PODS, "1", {}) as events:
                await anext(events)

    play(tmp_path, main)


def test_a_version_that_is_still_to_come_is_not_waited_for_by_a_list_and_for_ever_by_a_watch(tmp_path):
    async def main(api):
        client = api.connect()
        with pytest.raises(Expired, match="504: Timeout: Too large resource version: 1000, current: 2"):
            await client.list_page(PODS, ListPage("1000"), {})
        async with client.watch(PODS, "1000", {}) as events:
            heard = asyncio.ensure_future(anext(events))
            api.create(cluster.PODS, "shop", pod("a"))
            await client.get(PODS, "shop", "a")
            assert not heard.done()
            heard.cancel()
            await asyncio.wait([heard])

    play(tmp_path, main)


def test_a_watch_that_lists_first_says_where_the_list_ends(tmp_path):
    async def main(api):
        client = api.connect()
        api.create(cluster.PODS, "shop", pod("a"))
        listing = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        async with client.watch(PODS, "0", listing) as events:
            first, end = await anext(events), await anext(events)
            assert (first.kind, first.item.metadata.name, end.kind) == ("ADDED", "a", "BOOKMARK")
            assert end.item.metadata.annotations == {"k8s.io/initial-events-end": "true"}
        with pytest.raises(ApiError, match=r"422: .*sendInitialEvents requires resourceVersionMatch"):
            async with client.watch(PODS, "0", {"sendInitialEvents": "true"}) as events:
                await anext(events)

    play(tmp_path, main)


def test_errors_are_statuses(tmp_path):
    async def main(api):
        client = api.connect()
        with pytest.raises(NotFound, match=r'404: pods "a" not found'):
            await client.get(PODS, "shop", "a")
        api.create(cluster.PODS, "shop", pod("a"))
        with pytest.raises(Conflict, match="already exists"):
            await client.create(PODS, "shop", pod("a"))
        with pytest.raises(ApiError, match=r"422: Pod 'a' is invalid: metadata\.uid"):
            await client.patch(PODS, "shop", "a", Patch.MERGE, {"metadata": {"uid": "of another pod"}})
        with pytest.raises(ApiError, match="400: fieldManager is required"):
            await client.patch(PODS, "shop", "a", Patch.APPLY, {})

    play(tmp_path, main)


GATEWAYS = BY_PATH["gateway.networking.k8s.io", "v1", "gateways"]
POLICY, GATEWAY = (
    Resource(each.group, each.version, each.plural, each.name, Whole) for each in (cluster.POLICIES, GATEWAYS)
)


@pytest.mark.parametrize(
    ("kind", "resource", "left"),
    [(cluster.POLICIES, POLICY, ["Ours"]), (GATEWAYS, GATEWAY, ["Theirs", "Ours"])],
    ids=["of Istio's kinds", "of the Gateway API's"],
)
def test_applied_conditions_replace_all_or_each_its_own(tmp_path, kind, resource, left):
    """Istio's definitions say nothing of their lists' keys, so those are one value."""

    async def main(api):
        api.create(kind, "shop", {"metadata": {"name": "a"}})
        client = api.connect()
        for each in ("Theirs", "Ours"):
            status = {"status": {"conditions": [{"type": each, "status": "True"}]}}
            await client.patch(resource, "shop", "a", Patch.APPLY, status, subresource="status", owner=each)
        listed = api.store.get(kind, "shop", "a")["status"]["conditions"]
        assert [each["type"] for each in listed] == left
        stale = {"metadata": {"resourceVersion": "1"}, "status": {}}
        with pytest.raises(Conflict, match="the object has been modified"):
            await client.patch(resource, "shop", "a", Patch.APPLY, stale, subresource="status", owner="late")
        with pytest.raises(ApiError, match="415"):
            await client.patch(resource, "shop", "a", Patch.STRATEGIC, {})

    play(tmp_path, main)


def test_roles_in_the_store_are_what_is_allowed(tmp_path):
    async def main(api):
        client = api.connect()
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["a"]}
        api.create(ROLES, "", {"metadata": {"name": "reader"}, "rules": [rule]})
        subject = {"kind": "ServiceAccount", "namespace": "mesh", "name": "agent"}
        ref = {"kind": "ClusterRole", "name": "reader"}
        api.create(BINDINGS, "", {"metadata": {"name": "reader"}, "roleRef": ref, "subjects": [subject]})
        for name in ("a", "b"):
            api.create(cluster.PODS, "shop", pod(name))
        assert (await client.get(PODS, "shop", "a")).metadata.name == "a"
        for attempt in (client.get(PODS, "shop", "b"), client.patch(PODS, "shop", "a", Patch.MERGE, {})):
            with pytest.raises(ApiError, match="403: User"):
                await attempt

    play(tmp_path, main, rbac=True)


@pytest.mark.parametrize(
    ("audiences", "ttl_s", "error"),
    [(["istio-ca"], 60, ""), (["other"], 60, "audiences"), (["istio-ca"], -1, "expired")],
)
def test_a_bound_token_says_pod_and_node(tmp_path, audiences, ttl_s, error):
    async def main(api):
        made = api.create(cluster.PODS, "mesh", pod("tunnel", "mesh"))
        token = api.tokens.issue("mesh", "agent", audiences, ttl_s, made)
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        answer = await api.connect().create(
            TOKEN_REVIEWS, "", body | {"spec": {"token": token, "audiences": ["istio-ca"]}}
        )
        for word in (error,) if error else ("system:serviceaccount:mesh:agent", "node-1", made["metadata"]["uid"]):
            assert word in answer.decode()
        assert ('"authenticated": true' in answer.decode()) is not error or error

    play(tmp_path, main)


def test_a_token_for_another_audience_opens_nothing_here(tmp_path):
    async def main(api):
        (tmp_path / "account" / "token").write_text(api.token(audiences=["istio-ca"]))
        with pytest.raises(ApiError, match="401"):
            await api.connect().get(PODS, "shop", "a")

    play(tmp_path, main)


def test_watches_are_counted_and_cut(tmp_path):
    async def main(api):
        async with api.connect().watch(PODS, "", {}):
            await until(lambda: len(api.server.watches) == 1)
            api.hang_up()
        await until(lambda: not api.server.watches)

    play(tmp_path, main)
