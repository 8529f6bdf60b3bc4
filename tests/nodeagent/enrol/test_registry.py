"""Pods that come, fail, leave and are found again: the registry, the machine and the store together, kernel faked."""

import asyncio

import pytest

from mesh.directory import Directory
from mesh.errors import OperatorError
from nodeagent.enrol import machine as m
from nodeagent.enrol.pods import FilePods
from nodeagent.enrol.registry import CniError, Registry, describe
from nodeagent.enrol.requests import Attachment
from nodeagent.enrol.store import Store
from tests.nodeagent.fakes import FakeKernel, FakeTunnel

WEB = "Kubernetes//Pod/shop/web-1"
JOINS = ["put rules", f"serve {WEB} as web", "prove"]
LEAVES = [f"stop serving {WEB}", "take rules out"]

DOCUMENTS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
spec: {serviceAccountName: web, nodeName: node-1}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, labels: {istio.io/dataplane-mode: none}}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop}
spec: {nodeName: node-2}
---
apiVersion: v1
kind: Pod
metadata: {name: gateway, namespace: shop, annotations: {ambient.istio.io/bypass-inbound-capture: "true"}}
"""


class Node:
    """A node's registry with what it asked of kernel and tunnel in `said`."""

    def __init__(self, directory, namespaces=None):
        (directory / "pods").mkdir(exist_ok=True)
        (directory / "pods/all.yaml").write_text(DOCUMENTS)
        self.said = []
        self.kernel, self.tunnel = FakeKernel(self.said), FakeTunnel(self.said)
        self.kernel.namespaces = namespaces or {"/ns/web-1": "cookie:1", "/ns/other": "cookie:2"}
        self.store = Store(directory / "state")
        self.registry = Registry(
            "Kubernetes", "node-1", FilePods(Directory(directory / "pods")), self.store, self.kernel
        )
        self.registry.use(self.tunnel)

    @property
    def states(self):
        return {pod.member.uid: pod.state.name for pod in self.registry.pods}

    def claim(self, *said):
        """What was said since the last claim."""
        assert self.said == list(said)
        self.said.clear()

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)


def request(name="web-1", container="c1", netns="/ns/web-1"):
    return Attachment(container, netns, "eth0", name, "shop", ("10.0.0.5",))


def run(directory, story, **how):
    async def main():
        node = Node(directory, **how)
        await story(node)
        await node.registry.stop()

    asyncio.run(main())


async def refusal(node, *arguments, **keywords):
    with pytest.raises(CniError) as raised:
        await node.registry.add(request(*arguments, **keywords))
    return raised.value.code, raised.value.msg


def test_a_pod_joins_and_is_listed(tmp_path):
    async def story(node):
        await node.registry.add(request())
        node.claim(*JOINS)
        (pod,) = map(describe, node.registry.pods)
        assert (pod["state"], pod["ips"], pod["netns_identity"]) == ("IN_MESH", ["10.0.0.5"], "cookie:1")
        assert pod["add_ms"] >= 0
        assert list(pod["took_ms"]) == ["rules_ms", "tunnel_ms", "canary_ms"]

    run(tmp_path, story)


def test_a_gateways_pod_gets_the_ingress_rules(tmp_path):
    async def story(node):
        await node.registry.add(request("gateway"))
        assert node.said[0] == "put rules for ingress"

    run(tmp_path, story)


def test_a_node_that_does_not_capture_dns_puts_other_rules(tmp_path):
    async def story(node):
        node.registry = Registry(
            "Kubernetes", "node-1", FilePods(Directory(tmp_path / "pods")), node.store, node.kernel, dns_capture=False
        )
        node.registry.use(node.tunnel)
        await node.registry.add(request())
        assert node.said[0] == "put rules without DNS"

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("nobody", (11, "pod shop/nobody is not known yet (looked in {pods})")),
        ("elsewhere", (100, "pod shop/elsewhere belongs to node node-2, this is node-1")),
    ],
)
def test_a_pod_that_cannot_be_ours_is_refused_untouched(tmp_path, name, refused):
    async def story(node):
        code, msg = await refusal(node, name)
        assert (code, msg) == (refused[0], refused[1].format(pods=tmp_path / "pods"))
        node.claim()

    run(tmp_path, story)


def test_a_pod_not_meant_for_the_mesh_is_not_touched(tmp_path):
    async def story(node):
        await node.registry.add(request("plain"))
        await node.registry.check(request("plain"))
        node.claim()
        assert node.states == {}

    run(tmp_path, story)


def test_a_pod_that_no_backend_can_capture_is_refused_untouched(tmp_path):
    async def story(node):
        node.kernel.broken = {"choose"}
        assert await refusal(node) == (100, "pod shop/web-1 is not in the mesh: not nft: it is Tuesday")
        node.claim()
        assert all(namespace.closed for namespace in node.kernel.opened)

    run(tmp_path, story)


def test_a_found_pod_keeps_the_backend_that_it_started_with(tmp_path):
    run(tmp_path, killed_with_a_pod)

    async def story(node):
        node.kernel.backend = "bpf"
        node.registry.readopt()
        (pod,) = map(describe, node.registry.pods)
        assert (pod["capture"], pod["capture_why"]) == ("nft", "first that can")

    run(tmp_path, story)


def test_a_path_that_is_no_namespace_is_the_runtimes_mistake(tmp_path):
    async def story(node):
        assert await refusal(node, netns="/nowhere") == (4, "CNI_NETNS: /nowhere cannot be opened")
        assert node.states == {}

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("broken", "said", "why"),
    [
        ("put rules", ["put rules", "take rules out"], "put rules failed"),
        ("prove", [*JOINS, *LEAVES], "prove failed"),
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(tmp_path, broken, said, why):
    async def story(node):
        node.kernel.broken = {broken}
        assert await refusal(node) == (100, f"pod shop/web-1 is not in the mesh: {why}")
        node.claim(*said)
        assert node.states == {}
        assert node.store.load() == []
        assert all(namespace.closed for namespace in node.kernel.opened)

    run(tmp_path, story)


def test_rules_that_cannot_even_be_taken_out_still_end_in_an_answer(tmp_path):
    async def story(node):
        node.kernel.broken = {"put rules", "take rules out"}
        assert (await refusal(node))[0] == 100

    run(tmp_path, story)


def test_a_tunnel_that_refuses_fails_the_start_and_one_that_is_missing_asks_to_try_again(tmp_path):
    async def story(node):
        node.tunnel.broken = True
        assert (await refusal(node))[0] == 100
        node.tunnel.is_there = False
        assert await refusal(node) == (11, "pod shop/web-1 is not in the mesh: no tunnel is connected")

    run(tmp_path, story)


def test_a_disk_that_is_full_refuses_the_pod_before_it_is_touched(tmp_path):
    async def story(node):
        (tmp_path / "state/enrolled.tmp").mkdir()
        code, msg = await refusal(node)
        assert code == 100
        assert "enrolled.json cannot be written" in msg
        assert "put rules" not in node.said

    run(tmp_path, story)


def test_an_agent_that_cannot_write_its_list_does_not_start(tmp_path):
    async def story(node):
        (tmp_path / "state/enrolled.tmp").mkdir()
        with pytest.raises(OperatorError, match=r"enrolled\.json cannot be written: Is a directory"):
            node.registry.readopt()

    run(tmp_path, story)


def test_asking_twice_for_the_same_container_enrols_it_once(tmp_path):
    async def story(node):
        await asyncio.gather(node.registry.add(request()), node.registry.add(request()))
        await node.registry.add(request())
        node.claim(*JOINS)

    run(tmp_path, story)


def test_a_new_sandbox_of_the_same_pod_replaces_the_old_one_and_its_late_del_does_nothing(tmp_path):
    async def story(node):
        await node.registry.add(request())
        node.claim(*JOINS)
        await node.registry.add(request(container="c2", netns="/ns/other"))
        node.claim(*LEAVES, *JOINS)
        await node.registry.remove("c1")
        node.claim()
        assert node.states == {WEB: "IN_MESH"}

    run(tmp_path, story)


def test_the_same_container_in_another_namespace_is_captured_there(tmp_path):
    async def story(node):
        await node.registry.add(request())
        node.claim(*JOINS)
        await node.registry.add(request(netns="/ns/other"))
        node.claim(*LEAVES, *JOINS)

    run(tmp_path, story)


def test_a_namespace_belongs_to_one_pod(tmp_path):
    """Else the end of one would take the other's rules out."""

    async def story(node):
        await node.registry.add(request())
        node.claim(*JOINS)
        said = f"CNI_NETNS: /ns/web-1 is the namespace of {WEB}"
        assert await refusal(node, "gateway", "c2") == (4, said)
        node.claim()
        assert node.states == {WEB: "IN_MESH"}
        assert [namespace.closed for namespace in node.kernel.opened] == [False, True]

    run(tmp_path, story)


def test_del_is_idempotent_and_forgets(tmp_path):
    async def story(node):
        await node.registry.add(request())
        node.claim(*JOINS)
        await asyncio.gather(node.registry.remove("c1"), node.registry.remove("c1"))
        await node.registry.remove("c1")
        node.claim(*LEAVES)
        assert node.store.load() == []
        assert node.kernel.opened[0].closed

    run(tmp_path, story)


def test_del_while_the_pod_starts_waits_and_then_takes_it_down(tmp_path):
    async def story(node):
        adding = asyncio.create_task(node.registry.add(request()))
        await asyncio.sleep(0)
        await node.registry.remove("c1")
        await adding
        node.claim(*JOINS, *LEAVES)

    run(tmp_path, story)


def test_garbage_collection_keeps_what_is_named(tmp_path):
    async def story(node):
        await node.registry.add(request())
        await node.registry.add(request("gateway", "c2", "/ns/other"))
        await node.registry.keep_only(frozenset({"c2"}))
        assert node.states == {"Kubernetes//Pod/shop/gateway": "IN_MESH"}

    run(tmp_path, story)


def test_check_finds_what_is_missing(tmp_path):
    async def story(node):
        with pytest.raises(CniError, match="pod shop/web-1 is not enrolled"):
            await node.registry.check(request())
        await node.registry.add(request())
        await node.registry.check(request())
        node.kernel.different = ["chain nat-output lacks 1 of its 5 rules"]
        with pytest.raises(CniError, match="pod shop/web-1: chain nat-output lacks 1 of its 5 rules"):
            await node.registry.check(request())
        node.kernel.different, node.kernel.broken = [], {"prove"}
        with pytest.raises(CniError, match="pod shop/web-1: prove failed"):
            await node.registry.check(request())

    run(tmp_path, story)


async def killed_with_a_pod(node):
    """An agent that ends without a word: the store keeps what it had written."""
    await node.registry.add(request())
    node.said.clear()


def test_after_a_restart_pods_are_found_untouched_and_proven_when_the_tunnel_is_back(tmp_path):
    run(tmp_path, killed_with_a_pod)

    async def story(node):
        node.registry.readopt()
        await node.settle()
        node.claim("compare")
        assert node.states == {WEB: "WAITING"}
        assert [pod.member.uid for pod in node.registry.snapshot()] == [WEB]
        node.registry.tell(WEB, m.Serving)
        await node.settle()
        node.claim("prove")
        assert node.states == {WEB: "IN_MESH"}

    run(tmp_path, story)


def test_rules_that_were_changed_meanwhile_are_replaced(tmp_path):
    run(tmp_path, killed_with_a_pod)

    async def story(node):
        node.kernel.different = ["chain nat-output lacks 5 of its 5 rules"]
        node.registry.readopt()
        await node.settle()
        node.claim("compare", "put rules")

    run(tmp_path, story)


def test_a_found_pod_that_cannot_be_repaired_stays_cut_off_and_says_why(tmp_path):
    run(tmp_path, killed_with_a_pod)

    async def story(node):
        node.kernel.broken = {"compare"}
        node.registry.readopt()
        await node.settle()
        (pod,) = map(describe, node.registry.pods)
        assert (pod["state"], pod["last_error"]) == ("CUT_OFF", "compare failed")
        assert await refusal(node) == (11, f"pod {WEB} is CUT_OFF: compare failed")

    run(tmp_path, story)


@pytest.mark.parametrize("namespaces", [{"/ns/web-1": "cookie:99"}, {"/ns/other": "cookie:1"}])
def test_a_pod_whose_namespace_is_gone_or_another_is_dropped(tmp_path, namespaces):
    run(tmp_path, killed_with_a_pod)

    async def story(node):
        node.registry.readopt()
        assert node.states == {}
        assert node.store.load() == []
        node.claim()

    run(tmp_path, story, namespaces=namespaces)


def test_losing_the_tunnel_shows_and_coming_back_heals(tmp_path):
    async def story(node):
        await node.registry.add(request())
        node.registry.tell_all(m.TunnelLost)
        await node.settle()
        assert node.states == {WEB: "WAITING"}
        node.registry.tell(WEB, m.Serving)
        await node.settle()
        assert node.states == {WEB: "IN_MESH"}

    run(tmp_path, story)


def test_a_tunnels_word_on_a_pod_that_left_is_ignored(tmp_path):
    async def story(node):
        node.registry.tell("nobody", m.Serving)

    run(tmp_path, story)


def test_a_bug_answers_the_plugin_and_is_not_silent(tmp_path):
    async def story(node):
        crashed = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: crashed.append(context["exception"]))
        node.kernel.put = None
        with pytest.raises(TypeError):
            await node.registry.add(request())
        assert len(crashed) == 1

    run(tmp_path, story)
