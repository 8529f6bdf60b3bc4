"""The agent over the Kubernetes API: a pod joins, is marked and reported; without the API what is known goes on."""

import pytest

from lab.apiserver.store import NOT_READY
from mesh.membership import MODE_LABEL
from nodeagent.cluster.taint import ISTIO
from nodeagent.enrol import machine as m
from nodeagent.enrol.registry import CniError, Registry
from nodeagent.enrol.requests import Attachment
from nodeagent.enrol.store import Store
from nodeagent.kubernetes import Cluster
from nodeagent.settings import Settings
from tests.kube import cluster
from tests.kube.cluster import play, pod, running, until
from tests.nodeagent.fakes import FakeKernel, FakeTunnel

WEB = "Kubernetes//Pod/shop/web-1"


class Node:
    def __init__(self, api, directory):
        api.create(cluster.NAMESPACES, "", {"metadata": {"name": "shop", "labels": {MODE_LABEL: "ambient"}}})
        taints = [{"key": ISTIO, "effect": "NoSchedule"}]
        api.create(cluster.NODES, "", {"metadata": {"name": "node-1"}, "spec": {"taints": taints}})
        self.api, self.said = api, []
        self.kernel, self.tunnel = FakeKernel(self.said), FakeTunnel(self.said)
        self.kernel.namespaces = {"/ns/web-1": "cookie:1"}
        self.cluster = Cluster(api.access, "node-1", 60)
        self.registry = Registry("Kubernetes", "node-1", self.cluster.pods, Store(directory / "state"), self.kernel)
        self.registry.use(self.tunnel)
        self.cluster.attach(self.registry, lambda: self.tunnel.is_there)

    async def add(self):
        await self.registry.add(Attachment("c1", "/ns/web-1", "eth0", "web-1", "shop", ("10.0.0.5",)))

    @property
    def mark(self):
        about = self.api.store.get(cluster.PODS, "shop", "web-1")["metadata"]
        return about.get("annotations", {}).get("ambient.istio.io/redirection")


def follows(story, directory):
    async def main(api):
        node = Node(api, directory)
        api.create(cluster.PODS, "shop", pod("web-1"))
        async with running(node.cluster.run()):
            await until(lambda: node.cluster.pods.synced and not node.cluster.pods.trouble)
            await story(node)
            await node.registry.stop()

    play(directory, main)


def test_a_pod_joins_and_is_marked_and_the_mark_goes_with_it(tmp_path):
    async def story(node):
        await node.add()
        await until(lambda: node.mark == "enabled")
        await node.registry.remove("c1")
        await until(lambda: node.mark is None)

    follows(story, tmp_path)


def test_a_pod_that_is_cut_off_is_marked_and_an_event_says_why(tmp_path):
    async def story(node):
        await node.add()
        await until(lambda: node.mark == "enabled")
        node.registry.tell(WEB, m.TunnelLost)
        node.kernel.broken.add("prove")
        node.registry.tell(WEB, m.Serving)
        await until(lambda: node.mark == "pending")
        events = cluster.BY_PATH["", "v1", "events"]
        await until(lambda: node.api.store.all(events))
        (said,) = node.api.store.all(events)
        assert (said["reason"], said["message"]) == ("MeshCutOff", "prove failed")

    follows(story, tmp_path)


def test_without_the_api_a_new_pod_does_not_start_and_the_old_one_goes_on(tmp_path):
    async def story(node):
        await node.add()
        await node.api.stop()
        await until(lambda: node.cluster.pods.trouble)
        with pytest.raises(CniError, match=r"pod shop/new is not known yet: GET ") as refused:
            await node.registry.add(Attachment("c2", "/ns/new", "eth0", "new", "shop", ()))
        assert refused.value.code == 11
        assert [each.state.name for each in node.registry.pods] == ["IN_MESH"]
        await node.api.start()

    follows(story, tmp_path)


def test_the_nodes_taint_goes_when_pods_can_be_served(tmp_path):
    async def story(node):
        await until(lambda: node.api.store.get(cluster.NODES, "", "node-1")["spec"]["taints"] == [NOT_READY])
        await until(lambda: node.cluster.describe() == {"trouble": "", "synced": True, "taints": []})

    follows(story, tmp_path)


@pytest.mark.parametrize(
    ("variables", "server"),
    [
        ({}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://10.0.0.1:443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://[fd00::1]:6443"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NODEMESH_PODS_SOURCE": "files"}, None),
    ],
)
def test_inside_a_cluster_pods_come_from_its_api(variables, server):
    settings = Settings.read({"NODE_NAME": "node-1", **variables})
    assert (settings.api and settings.api.server) == server
    assert settings.taint_after_s == 60
