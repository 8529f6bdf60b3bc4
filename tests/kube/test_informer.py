"""The informer against the stand-in over HTTPS: lists in pages, watches, 410, disconnects, outages, tokens."""

import asyncio

import pytest

from kube import client as client_module
from kube import informer as informer_module
from kube.client import Patch
from kube.errors import ApiError, Conflict, NotFound, Unreachable
from kube.informer import Informer
from kube.objects import PODS, Key, Resource, Whole
from mesh.errors import OperatorError
from tests.kube import cluster
from tests.kube.cluster import play, pod, running, until

POLICIES = Resource("security.istio.io", "v1", "authorizationpolicies", "AuthorizationPolicy", Whole)


class Listener:
    """An informer and what it told, by name: the version is left out, what counts is what happened."""

    def __init__(self, api, resource=PODS, **how):
        self.told = asyncio.Queue()
        self.informer = Informer(api.connect(), resource, self._hear, **how)

    def _hear(self, changes):
        for each in changes:
            what = "new" if each.before is None else "gone" if each.after is None else "changed"
            self.told.put_nowait((what, each.key.name))

    async def hears(self, *expected):
        assert {await self.told.get() for _ in expected} == set(expected)

    @property
    def names(self):
        return sorted(key.name for key in self.informer.objects)


def follows(story, directory, *present, resource=PODS, how=None, answers=(), **cluster_how):
    """`story(api, listener)` with the informer running. `present`: pods; `answers`: what the server says first."""

    async def main(api):
        for name in present:
            api.create(cluster.PODS, "shop", pod(name))
        api.server._failures.extend(answer() for answer in answers)
        listener = Listener(api, resource, **how or {})
        async with running(listener.informer.run()):
            await story(api, listener)

    play(directory, main, **cluster_how)


def test_what_is_there_and_what_happens_is_told(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        api.create(cluster.PODS, "shop", pod("a"))
        await listener.hears(("new", "a"))
        api.change(cluster.PODS, "shop", "a", labels={"app": "web"})
        await listener.hears(("changed", "a"))
        assert listener.informer.objects[Key("shop", "a")].metadata.labels == {"app": "web"}
        api.delete(cluster.PODS, "shop", "a")
        await listener.hears(("gone", "a"))

    follows(story, tmp_path)


def test_a_long_list_comes_in_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "PAGE", 2)

    async def story(api, listener):
        await listener.informer.synced.wait()
        assert listener.names == [f"p{number}" for number in range(5)]
        asked = [each for each in api.server.asked if "limit=2" in each]
        assert [("continue=" in each) for each in asked] == [False, True, True]

    follows(story, tmp_path, *(f"p{number}" for number in range(5)))


def test_only_the_pods_of_the_node_are_asked_for(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        api.create(cluster.PODS, "shop", pod("elsewhere", node="node-2"))
        api.create(cluster.PODS, "shop", pod("here"))
        await listener.hears(("new", "here"))
        assert listener.names == ["here"]

    follows(story, tmp_path, how={"selectors": {"fieldSelector": "spec.nodeName=node-1"}, "cached": True})


def test_a_stream_that_breaks_is_taken_up_where_it_was(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        await until(lambda: api.server.watches)
        api.hang_up()
        api.create(cluster.PODS, "shop", pod("a"))
        await listener.hears(("new", "a"))
        lists = [each for each in api.server.asked if "limit=" in each]
        assert len(lists) == 1

    follows(story, tmp_path)


def test_after_410_everything_is_listed_again_and_nothing_is_missed(tmp_path):
    async def story(api, listener):
        await listener.hears(("new", "stays"), ("new", "goes"))
        await until(lambda: api.server.watches)
        await api.stop()
        api.delete(cluster.PODS, "shop", "goes")
        api.create(cluster.PODS, "shop", pod("comes"))
        api.forget_history()
        await api.start()
        await listener.hears(("gone", "goes"), ("new", "comes"))
        assert listener.names == ["comes", "stays"]

    follows(story, tmp_path, "stays", "goes")


def set_back(api):
    """As a database that is restored from an old copy: it counts on from there."""
    api.store.version = api.store.oldest = 1
    api.store.history.clear()
    api.store._items.clear()
    api.create(cluster.SERVICE_ACCOUNTS, "mesh", {"metadata": {"name": "agent"}})


def test_a_server_that_was_set_back_is_listed_again(tmp_path):
    async def story(api, listener):
        await listener.hears(("new", "stays"), ("new", "goes"))
        await until(lambda: api.server.watches)
        await api.stop()
        set_back(api)
        api.create(cluster.PODS, "shop", pod("stays"))
        await api.start()
        await listener.hears(("changed", "stays"), ("gone", "goes"))

    follows(story, tmp_path, "stays", "goes")


def test_a_server_that_is_silent_for_too_long_is_asked_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(informer_module, "SILENT_S", 0.1)

    async def story(api, listener):
        await listener.hears(("new", "goes"))
        await until(lambda: api.server.watches)
        set_back(api)  # the watch stays, and is deaf
        await listener.hears(("gone", "goes"))

    follows(story, tmp_path, "goes")


def test_a_watch_that_broke_goes_on_without_a_list_when_the_server_is_as_far(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        await until(lambda: api.server.watches)
        api.hang_up()
        api.create(cluster.PODS, "shop", pod("a"))
        await listener.hears(("new", "a"))
        assert [("metadata.name" in each) for each in api.server.asked if "watch" not in each] == [False, True]

    follows(story, tmp_path)


def test_bookmarks_spare_the_list_after_a_long_silence(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        before = listener.informer._reflection.next()
        api.create(cluster.NODES, "", {"metadata": {"name": "node-9"}})
        await until(lambda: listener.informer._reflection.next() != before)
        api.forget_history()
        api.hang_up()
        api.create(cluster.PODS, "shop", pod("a"))
        await listener.hears(("new", "a"))
        assert len([each for each in api.server.asked if "limit=" in each]) == 1

    follows(story, tmp_path, bookmark_s=0.01)


def test_while_the_server_is_away_what_was_known_stays(tmp_path):
    async def story(api, listener):
        await listener.hears(("new", "a"))
        await until(lambda: api.server.watches)
        await api.stop()
        await until(lambda: listener.informer.trouble)
        assert listener.names == ["a"]
        await api.start()
        await until(lambda: not listener.informer.trouble)

    follows(story, tmp_path, "a")


def test_an_overloaded_server_is_waited_for(tmp_path, monkeypatch):
    waits = []
    real = asyncio.sleep

    async def sleep(seconds, *rest):
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(informer_module.asyncio, "sleep", sleep)

    def busy():
        return cluster.web.json_response({"message": "busy"}, status=429, headers={"Retry-After": "7"})

    async def story(api, listener):
        await listener.informer.synced.wait()
        assert waits.count(7.0) == 2

    follows(story, tmp_path, answers=[busy, busy])


def test_a_kind_that_is_not_installed_holds_nobody_up(tmp_path):
    async def story(api, listener):
        await listener.informer.synced.wait()
        assert listener.informer.trouble == ""

    unknown = Resource("example.com", "v1", "things", "Thing", Whole)
    follows(story, tmp_path, resource=unknown)


def test_without_the_right_to_list_it_is_never_in_step_and_says_why(tmp_path):
    async def story(api, listener):
        await until(lambda: "cannot list" in listener.informer.trouble)
        assert not listener.informer.synced.is_set()
        assert listener.informer.trouble == (
            'GET /api/v1/pods: the API server says 403: User "system:serviceaccount:mesh:agent" cannot list resource '
            '"pods" in API group "" at the cluster scope'
        )

    follows(story, tmp_path, rbac=True)


def test_a_renewed_token_is_used_at_once(tmp_path):
    async def main(api):
        client = api.connect()
        token = tmp_path / "account" / "token"
        token.write_text(api.token(ttl_s=-1))
        with pytest.raises(ApiError, match="401: Unauthorized"):
            await client.get(PODS, "shop", "a")
        token.write_text(api.token())
        with pytest.raises(NotFound):
            await client.get(PODS, "shop", "a")

    play(tmp_path, main)


def test_only_the_clusters_authority_is_trusted(tmp_path):
    async def main(api):
        path = tmp_path / "account" / "ca.crt"
        other = tmp_path / "other"
        other.mkdir()
        cluster.certificate(other, ("127.0.0.1",))
        path.write_text((other / "ca.crt").read_text())
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await api.connect().get(PODS, "shop", "a")

    play(tmp_path, main)


@pytest.mark.parametrize(("name", "content"), [("token", None), ("token", ""), ("ca.crt", None), ("ca.crt", "x")])
def test_a_missing_or_unusable_file_is_named(tmp_path, name, content):
    async def main(api):
        path = tmp_path / "account" / name
        path.unlink()
        if content is not None:
            path.write_text(content)
        with pytest.raises(OperatorError, match=rf"^{path}: "):
            api.access.check()

    play(tmp_path, main)


def test_patches_and_their_conflicts(tmp_path):
    async def main(api):
        api.create(cluster.PODS, "shop", pod("a"))
        client = api.connect()
        note = {"metadata": {"annotations": {"x": "1"}}}
        await client.patch(PODS, "shop", "a", Patch.MERGE, note, subresource="status")
        assert (await client.get(PODS, "shop", "a")).metadata.annotations == {"x": "1"}
        test = {"op": "test", "path": "/metadata/annotations/x", "value": "2"}
        with pytest.raises(ApiError, match="422"):
            await client.patch(PODS, "shop", "a", Patch.JSON, [test])
        with pytest.raises(Conflict):
            await client.create(PODS, "shop", pod("a"))
        stale = {"metadata": {"resourceVersion": "1"}}
        with pytest.raises(Conflict):
            await client.patch(PODS, "shop", "a", Patch.MERGE, stale)

    play(tmp_path, main)


def test_server_side_apply_writes_a_status(tmp_path):
    async def main(api):
        api.create(cluster.POLICIES, "shop", {"metadata": {"name": "p"}, "spec": {"action": "DENY"}})
        conditions = [{"type": "ZtunnelAccepted", "status": "True"}]
        body = {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "status": {"conditions": conditions},
        }
        client = api.connect()
        await client.patch(POLICIES, "shop", "p", Patch.APPLY, body, subresource="status", owner="me")
        found = await client.get(POLICIES, "shop", "p")
        assert (found.spec, found.status) == ({"action": "DENY"}, {"conditions": conditions})

    play(tmp_path, main)


def test_only_what_the_mesh_reads_is_kept_of_a_pod(tmp_path):
    async def main(api):
        about = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}}
        api.create(cluster.PODS, "shop", pod("a", metadata=about))
        found = await api.connect().get(PODS, "shop", "a")
        assert found.metadata.annotations == {"a": "b"}
        assert found.spec.node_name == "node-1"
        assert not hasattr(found.spec.containers[0], "image")

    play(tmp_path, main)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"items": []}', "has no version to watch from"),
        ("[", "is not understood"),
        ('{"items": [{"metadata": {"labels": 5}}], "metadata": {"resourceVersion": "1"}}', "is not understood"),
    ],
)
def test_an_answer_that_is_none_is_no_state(tmp_path, body, why):
    async def story(api, listener):
        await until(lambda: why in listener.informer.trouble)
        assert not listener.informer.synced.is_set()

    follows(story, tmp_path, answers=[lambda: cluster.web.Response(text=body)] * 100)
