"""Running pods that join and leave by their label, and rules that are mended: registry and keeper, kernel faked."""

import asyncio
import re

import pytest

from mesh.directory import Directory
from nodeagent.enrol.keeper import Keeper
from nodeagent.enrol.pods import FilePods
from nodeagent.enrol.registry import CniError, describe
from tests.nodeagent.enrol.test_registry import JOINS, LEAVES, WEB, Node, request

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {istio.io/dataplane-mode: MODE}}
spec: {serviceAccountName: web, nodeName: node-1}
"""
ROW = re.compile(r'^nodemesh_agent_repairs_total\{kind="(.*)",backend="(.*)"\} (\d+)$', re.MULTILINE)
JOINS_RUNNING = ["release", f"serve {WEB} as web", "put rules", "prove"]


def mended(node):
    """What the agent's metric says."""
    return [(kind, backend, int(n)) for kind, backend, n in ROW.findall(node.registry.repairs.render())]


class Kept:
    """A node with a keeper whose clock and whose view of the namespaces the test holds."""

    def __init__(self, directory):
        self.node = Node(directory)
        self.directory = directory
        self.clock, self.suspicious, self.open_connections, self.gone = 1000.0, False, 0, False
        self.runtime = []
        source = FilePods(Directory(directory / "pods"))
        self.keeper = Keeper(self.node.registry, source, self, self, drain_s=30.0, now=lambda: self.clock)

    def label(self, mode):
        (self.directory / "pods/all.yaml").write_text(PODS.replace("MODE", mode))

    def attachments(self):
        return self.runtime

    def is_gone(self, member):
        return self.gone

    def may_differ(self, member, namespace, looked_s_ago):
        return self.suspicious

    async def compare(self, member, namespace):
        return await self.node.kernel.compare(member, namespace)

    def deaf(self, member, namespace):
        return self.node.kernel.deaf(member, namespace)

    async def tunnelled(self, namespace):
        return self.open_connections

    async def reconcile(self):
        self.keeper.reconcile()
        await self.node.settle()

    async def look(self):
        await self.keeper.look()
        await self.node.settle()


def run(directory, story):
    async def main():
        kept = Kept(directory)
        await story(kept, kept.node)
        await kept.keeper.stop()
        await kept.node.registry.stop()

    asyncio.run(main())


def test_a_pod_outside_joins_when_its_label_says_so_listeners_first(tmp_path):
    async def story(kept, node):
        kept.label("none")
        await node.registry.add(request())
        await kept.reconcile()
        node.claim()
        kept.label("ambient")
        await kept.reconcile()
        node.claim(*JOINS_RUNNING)
        (pod,) = node.registry.pods
        assert (pod.state.name, pod.member.was_running) == ("IN_MESH", True)
        await kept.reconcile()
        node.claim()

    run(tmp_path, story)


def test_a_pod_that_started_without_us_is_found_in_the_runtimes_records(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        kept.runtime = [request()]
        await kept.reconcile()
        node.claim(*JOINS_RUNNING)

    run(tmp_path, story)


def test_a_pod_that_cannot_join_is_tried_again_ever_more_seldom(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        kept.runtime = [request()]
        node.kernel.broken = {"put rules"}
        tries = []
        for _ in range(40):
            await kept.reconcile()
            tries += [kept.clock] * node.said.count("put rules")
            node.said.clear()
            kept.clock += 1
        assert [tried - 1000 for tried in tries] == [0, 1, 3, 7, 15, 31]
        node.kernel.broken = set()
        kept.clock += 60
        await kept.reconcile()
        node.claim(*JOINS_RUNNING)

    run(tmp_path, story)


def test_a_pod_that_is_dismissed_goes_its_own_way_and_is_let_go_when_its_connections_have_ended(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        kept.label("none")
        await kept.reconcile()
        node.claim("release")
        (pod,) = node.registry.pods
        pod.since -= 3
        kept.open_connections = 1
        await kept.look()
        node.claim()
        kept.open_connections = 0
        await kept.look()
        node.claim(*LEAVES)
        assert node.states == {}
        kept.label("ambient")
        await kept.reconcile()
        node.claim(*JOINS_RUNNING)

    run(tmp_path, story)


def test_connections_that_do_not_end_have_time_until_the_deadline(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        kept.label("none")
        await kept.reconcile()
        (pod,) = node.registry.pods
        kept.open_connections, pod.since = 1, pod.since - 31
        await kept.look()
        assert node.states == {}

    run(tmp_path, story)


def test_a_pod_whose_document_is_missing_stays_as_it_is(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        (tmp_path / "pods/all.yaml").write_text("")
        await kept.reconcile()
        node.claim()
        assert node.states == {WEB: "IN_MESH"}

    run(tmp_path, story)


def test_rules_are_compared_only_on_suspicion_and_mended_and_proven(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        node.kernel.different = ["chain nat-output lacks 1 of its 9 rules"]
        await kept.look()
        node.claim()
        kept.suspicious = True
        await kept.look()
        node.claim("compare", "compare", "put rules", "prove")
        (pod,) = node.registry.pods
        assert (pod.repairs, pod.last_repair) == (1, "chain nat-output lacks 1 of its 9 rules")
        assert mended(node) == [("capture", pod.member.backend, 1)]
        assert pod.state.name == "IN_MESH"

    run(tmp_path, story)


def test_a_pod_that_nobody_listens_for_is_renewed_when_that_was_seen_twice(tmp_path):
    """Between two tunnels that is so for a moment."""

    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        node.kernel.unheard = [15001, 15006]
        await kept.look()
        node.claim()
        kept.clock += 1
        await kept.look()
        node.claim("listen again at [15001, 15006]", "prove")
        (pod,) = node.registry.pods
        assert (pod.repairs, pod.last_repair) == (1, "nobody listened at 15001, 15006")
        assert mended(node) == [("listeners", pod.member.backend, 1)]
        assert pod.state.name == "IN_MESH"

    run(tmp_path, story)


def test_a_pod_that_was_deaf_for_a_moment_is_left_alone(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        for node.kernel.unheard in ([15001], [], [15006], []):
            await kept.look()
            kept.clock += 2
        node.claim()

    run(tmp_path, story)


def test_a_pod_that_cannot_be_renewed_is_cut_off_and_tried_again(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        node.kernel.unheard, node.tunnel.is_there = [15001], False
        await kept.look()
        kept.clock += 1
        await kept.look()
        node.claim("listen again at [15001]")
        assert node.states == {WEB: "CUT_OFF"}
        node.kernel.unheard, node.tunnel.is_there = [], True
        kept.clock += 11
        await kept.look()
        node.claim("compare", "compare", f"serve {WEB} as web", "prove")
        assert node.states == {WEB: "IN_MESH"}

    run(tmp_path, story)


def test_a_pod_that_is_cut_off_is_tried_again_with_the_tunnels_consent(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        kept.suspicious, node.kernel.different, node.kernel.broken = True, ["gone"], {"put rules"}
        await kept.look()
        assert node.states == {WEB: "CUT_OFF"}
        node.said.clear()
        kept.suspicious, node.kernel.different, node.kernel.broken = False, [], set()
        await kept.look()
        node.claim()
        kept.clock += 11
        await kept.look()
        node.claim("compare", "compare", f"serve {WEB} as web", "prove")
        assert node.states == {WEB: "IN_MESH"}
        assert mended(node) == [("tunnel", node.registry.pods[0].member.backend, 1)]

    run(tmp_path, story)


def test_a_pod_whose_end_was_told_is_not_brought_in_again_while_the_records_still_have_it(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        kept.runtime = [request()]
        await node.registry.add(request())
        node.claim(*JOINS)
        await node.registry.remove(request().container_id)
        node.claim(*LEAVES)
        await kept.reconcile()
        node.claim()
        kept.runtime = []
        await kept.reconcile()
        assert node.registry.departed == set()

    run(tmp_path, story)


@pytest.mark.parametrize("broken", [set(), {"put rules"}], ids=["in the mesh", "cut off"])
def test_a_pod_whose_end_nobody_told_goes_when_the_records_and_its_namespace_have_gone(tmp_path, broken):
    """While the agent was away, or through a list without our entry. One of both alone may be somebody's mistake."""

    async def story(kept, node):
        kept.label("ambient")
        kept.runtime = [request()]
        await node.registry.add(request())
        if broken:
            kept.suspicious, node.kernel.different, node.kernel.broken = True, ["gone"], broken
            await kept.look()
            kept.suspicious = False
        node.said.clear()
        for kept.gone, kept.runtime in ((True, [request()]), (False, [])):
            await kept.look()
            node.claim()
        kept.gone = True
        await kept.look()
        node.claim(*LEAVES)
        await kept.reconcile()
        assert node.registry.pods == []

    run(tmp_path, story)


def test_a_pod_that_was_refused_is_the_runtimes_to_try_again(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        node.kernel.broken = {"put rules"}
        with pytest.raises(CniError):
            await node.registry.add(request())
        node.said.clear()
        kept.clock += 60
        await kept.reconcile()
        node.claim()

    run(tmp_path, story)


RULE = "IPv4 legacy table nat sends TCP elsewhere: -A OUTPUT -p tcp -j REDIRECT --to-ports 9"
UNREADABLE = "there are legacy tables that cannot be read: inspect failed"


def test_what_others_put_beside_a_capture_is_noted_until_it_is_gone_and_nothing_is_mended(tmp_path):
    async def story(kept, node):
        kept.label("ambient")
        await node.registry.add(request())
        node.claim(*JOINS)
        for node.kernel.foreign in ([RULE], []):
            await kept.keeper.search()
            assert [describe(pod)["foreign"] for pod in node.registry.pods] == [node.kernel.foreign]
        node.kernel.broken = {"inspect"}
        await kept.keeper.search()
        assert [(pod.state.name, pod.foreign) for pod in node.registry.pods] == [("IN_MESH", [UNREADABLE])]
        node.claim()

    run(tmp_path, story)
