"""When the node's taint goes and when it comes back."""

import pytest

from kube.objects import Taint
from lab.apiserver.store import NOT_READY
from nodeagent.cluster.taint import ISTIO, OURS, NodeTaint, Rule, Wish, patch
from tests.kube import cluster
from tests.kube.cluster import play, running, until

MINE = Taint(OURS, None, "NoSchedule")
PLATFORMS = Taint(ISTIO, "true", "NoSchedule")
OTHER = Taint("other", None, "NoExecute")


def test_a_node_that_can_serve_has_no_taint_and_one_that_cannot_for_long_gets_it_back():
    rule = Rule(after_s=60)
    story = [(0, False), (100, False), (101, True), (102, False), (161, False), (162, False), (163, True)]
    assert [rule.judge(*each) for each in story] == [
        Wish.AS_IT_IS,
        Wish.AS_IT_IS,  # never ready: whoever put it there knows
        Wish.OFF,
        Wish.AS_IT_IS,
        Wish.AS_IT_IS,
        Wish.ON,
        Wish.OFF,
    ]


def test_it_need_not_come_back_at_all():
    rule = Rule(after_s=0)
    assert [rule.judge(0, True), rule.judge(10_000, False)] == [Wish.OFF, Wish.AS_IT_IS]


@pytest.mark.parametrize(
    ("before", "wish", "steps"),
    [
        (None, Wish.OFF, []),
        ([OTHER], Wish.OFF, []),
        ([PLATFORMS, MINE], Wish.AS_IT_IS, []),
        ([MINE], Wish.ON, []),
        ([PLATFORMS, MINE], Wish.OFF, ["test", "remove"]),
        ([OTHER, MINE], Wish.OFF, ["test", "replace"]),
        (None, Wish.ON, ["add"]),
        ([OTHER], Wish.ON, ["test", "replace"]),
    ],
)
def test_the_patch_names_what_it_found(before, wish, steps):
    made = patch(before, wish)
    assert [step["op"] for step in made] == steps
    for step in made:
        assert step["path"] == "/spec/taints"


def test_other_taints_stay():
    (_, step) = patch([OTHER, PLATFORMS], Wish.OFF)
    assert step["value"] == [{"key": "other", "effect": "NoExecute"}]


def test_on_the_real_conversation(tmp_path):
    async def main(api):
        taints = [{"key": "other", "effect": "NoExecute"}, {"key": ISTIO, "value": "true", "effect": "NoSchedule"}]
        api.create(cluster.NODES, "", {"metadata": {"name": "node-1"}, "spec": {"taints": taints}})
        ready = [False]
        taint = NodeTaint(api.connect(), "node-1", lambda: ready[0], after_s=1e-9)
        async with running(taint._node.run()):
            await taint._node.synced.wait()
            await taint.look()
            assert taint.present == [ISTIO]
            ready[0] = True
            await taint.look()
            await until(lambda: taint.present == [])
            assert api.store.get(cluster.NODES, "", "node-1")["spec"]["taints"] == [taints[0], NOT_READY]
            ready[0] = False
            await taint.look()
            await taint.look()
            await until(lambda: taint.present == [OURS])

    play(tmp_path, main)
