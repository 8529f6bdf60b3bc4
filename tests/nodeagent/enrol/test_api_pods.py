"""This node's pods from the API server: cache first, then a question, and no pod that nobody could ask about."""

import asyncio

import pytest

from mesh.membership import MODE_LABEL
from nodeagent.enrol.api_pods import ApiPods
from nodeagent.enrol.pods import PodSpec, UnknownYet, is_eligible
from tests.kube import cluster
from tests.kube.cluster import play, pod, running, until

AMBIENT = {MODE_LABEL: "ambient"}


def follows(story, directory):
    """`story(api, pods)` with the informers running and in step."""

    async def main(api):
        api.create(cluster.NAMESPACES, "", {"metadata": {"name": "shop", "labels": AMBIENT}})
        api.create(cluster.PODS, "shop", pod("here"))
        api.create(cluster.PODS, "shop", pod("elsewhere", node="node-2"))
        pods = ApiPods(api.connect(), "node-1")
        async with running(pods.run()):
            await until(lambda: pods.synced and not pods.trouble)
            await story(api, pods)

    play(directory, main)


def asked(api, name):
    return len([each for each in api.server.asked if f"/pods/{name}" in each])


def test_what_the_informer_has_is_not_asked_for(tmp_path):
    async def story(api, pods):
        uid = api.store.get(cluster.PODS, "shop", "here")["metadata"]["uid"]
        await pods.prepare("shop", "here", uid)
        await pods.prepare("shop", "here", "")
        assert is_eligible(pods.pod("shop", "here"), pods)
        assert [each.name for each in pods.pods().values()] == ["here"]
        assert asked(api, "here") == 0

    follows(story, tmp_path)


def test_a_pod_that_the_informer_has_not_heard_of_is_asked_for(tmp_path):
    async def story(api, pods):
        pods.node_pods._reflection.objects.clear()
        await pods.prepare("shop", "here", "")
        assert (pods.pod("shop", "here").name, asked(api, "here")) == ("here", 1)

    follows(story, tmp_path)


def test_a_pod_of_the_same_name_is_told_from_the_one_before(tmp_path):
    async def story(api, pods):
        earlier = api.store.get(cluster.PODS, "shop", "here")["metadata"]["uid"]
        # Behind the informer's back: as if its watch lagged.
        api.store.delete(cluster.PODS, "shop", "here")
        again = api.store.create(cluster.PODS, "shop", pod("here", metadata={"labels": {MODE_LABEL: "none"}}))
        assert pods.pod("shop", "here").uid == earlier
        await pods.prepare("shop", "here", again["metadata"]["uid"])
        assert not is_eligible(pods.pod("shop", "here"), pods)
        with pytest.raises(UnknownYet, match="pod shop/here is another one now"):
            await pods.prepare("shop", "here", earlier)
        api.server.wake()
        await until(lambda: not pods._asked)
        assert pods.pod("shop", "here").uid == again["metadata"]["uid"]

    follows(story, tmp_path)


def test_what_the_server_does_not_know_does_not_start(tmp_path):
    async def story(api, pods):
        with pytest.raises(UnknownYet, match=r"^pod shop/none is not known to the API server$"):
            await pods.prepare("shop", "none", "")
        with pytest.raises(UnknownYet):
            pods.pod("shop", "none")
        with pytest.raises(UnknownYet, match="namespace nowhere is not known yet"):
            pods.namespace_labels("nowhere")

    follows(story, tmp_path)


def test_without_a_server_known_pods_are_answered_for_and_new_ones_are_not(tmp_path):
    async def story(api, pods):
        uid = api.store.get(cluster.PODS, "shop", "here")["metadata"]["uid"]
        await api.stop()
        await until(lambda: pods.node_pods.trouble)
        await pods.prepare("shop", "here", uid)
        assert [each.name for each in pods.pods().values()] == ["here"]
        for name, known in (("new", "u"), ("here", ""), ("here", "another")):
            with pytest.raises(UnknownYet, match=f"pod shop/{name} is not known yet: GET .*Cannot connect"):
                await pods.prepare("shop", name, known)
        await api.start()

    follows(story, tmp_path)


def test_changes_are_told_once_each(tmp_path):
    async def story(api, pods):
        await pods.changed()
        waiting = asyncio.ensure_future(pods.changed())
        api.change(cluster.NAMESPACES, "", "shop", labels={})
        await waiting
        assert pods.namespace_labels("shop") == {}

    follows(story, tmp_path)


def test_everything_that_enrolment_reads_is_there(tmp_path):
    async def story(api, pods):
        spec = {
            "nodeName": "node-1",
            "serviceAccountName": "web",
            "hostNetwork": True,
            "dnsConfig": {"searches": ["corp.example"]},
        }
        about = {"name": "full", "labels": {"a": "b"}, "annotations": {"c": "d"}}
        made = api.create(cluster.PODS, "shop", {"metadata": about, "spec": spec})
        status = {"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
        api.set_status(cluster.PODS, "shop", "full", status)
        await until(lambda: any(each.finished for each in pods.pods().values()))
        assert pods.pod("shop", "full") == PodSpec(
            "shop", "full", "web", "node-1", True, {"a": "b"}, {"c": "d"}, ("corp.example",),
            made["metadata"]["uid"], ("10.0.0.1", "fd00::1"), True,
        )  # fmt: skip

    follows(story, tmp_path)
