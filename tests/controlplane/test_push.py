"""In which order a tunnel learns of a new world. The tunnel is `mesh.delta.Subscriber`; there is no stream."""

import asyncio

import pytest

from controlplane.push import LONGEST_S, QUIET_S, Board, Burst, Conversation
from controlplane.translate.tunnel import Resources, translate
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Subscriber, head_of
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, Node
from tests.controlplane.documents import AMBIENT, pod, world_of
from ztunnel.dataplane import read_response

STRICT = "istio-system/istio_converted_static_strict"
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}
---
"""
WEB = pod("web", labels="app: web")


def resources(text):
    return translate(world_of(AMBIENT + text))


class Tunnel:
    """Applies whatever the control plane sends, in order, and keeps a diary of it."""

    def __init__(self, before: Resources, held=None, refuse=()):
        self.subscriber = Subscriber(Node(), [ADDRESS_TYPE, AUTHORIZATION_TYPE], held)
        self.control = Conversation(before)
        self.diary = []
        self.refuse = refuse
        for request in self.subscriber.start():
            self._play(self.control.receive(request))

    def update(self, after: Resources):
        self.diary.clear()
        self._play(self.control.update(after))
        return self

    def _play(self, responses):
        for response in responses:
            batch = self.subscriber.receive(read_response(response.data))
            self.diary += [f"+{name}" for name, _, _ in batch.upserts] + [f"-{name}" for name in batch.removed]
            refused = [(name, "no") for name, _, _ in batch.upserts if name in self.refuse]
            self._play(self.control.receive(self.subscriber.settle(batch, refused)))

    def holds(self, target: Resources):
        versions = {url: {name: each.version for name, each in of.items()} for url, of in target.by_type.items()}
        return versions == {url: dict(self.subscriber.held(url)) for url in versions}


def test_a_new_tunnel_gets_everything():
    everything = resources(WEB + DENY)
    tunnel = Tunnel(everything)
    assert tunnel.holds(everything)
    assert tunnel.subscriber.synced
    assert tunnel.control.synced_version == everything.world.version


def test_a_tunnel_that_resumes_gets_only_what_differs():
    before = resources(WEB + DENY)
    held = {url: {name: each.version for name, each in of.items()} for url, of in before.by_type.items()}
    tunnel = Tunnel(resources(WEB + DENY + pod("db", ip="10.0.0.2")), held)
    assert tunnel.diary == ["+Kubernetes//Pod/shop/db"]


def test_a_policy_comes_before_the_workload_that_refers_to_it():
    tunnel = Tunnel(resources(WEB)).update(resources(WEB + DENY))
    assert tunnel.diary == ["+shop/deny", "+Kubernetes//Pod/shop/web"]


def test_a_policy_goes_after_the_last_workload_that_referred_to_it():
    after = resources(WEB)
    tunnel = Tunnel(resources(WEB + DENY)).update(after)
    assert tunnel.diary == ["+Kubernetes//Pod/shop/web", "-shop/deny"]
    assert tunnel.holds(after)


def test_the_same_holds_for_a_policy_that_went_while_the_tunnel_was_away():
    before, after = resources(WEB + DENY), resources(WEB)
    held = {url: {name: each.version for name, each in of.items()} for url, of in before.by_type.items()}
    tunnel = Tunnel(after, held)
    assert tunnel.diary == ["+Kubernetes//Pod/shop/web", "-shop/deny"]
    assert tunnel.holds(after)


def test_an_unchanged_world_sends_nothing():
    tunnel = Tunnel(resources(WEB)).update(resources(WEB))
    assert tunnel.diary == []


def test_a_workload_that_goes_is_removed():
    assert Tunnel(resources(WEB)).update(resources("")).diary == ["-Kubernetes//Pod/shop/web"]


def test_a_refusal_is_remembered_and_does_not_stop_the_rest():
    after = resources(WEB + DENY)
    tunnel = Tunnel(resources(WEB), refuse={"shop/deny"}).update(after)
    assert tunnel.diary == ["+shop/deny", "+Kubernetes//Pod/shop/web"]
    assert tunnel.control.last_nack.message == "shop/deny: no"


def test_many_worlds_in_a_row_end_with_the_last_one():
    """The tunnel answers only after three pushes have been planned."""
    worlds = [resources(WEB + pod(f"p{n}", ip=f"10.0.1.{n}") + DENY * (n % 2)) for n in range(4)]
    tunnel = Tunnel(worlds[0])
    waiting = [response for world in worlds[1:] for response in tunnel.control.update(world)]
    tunnel._play(waiting)
    assert tunnel.holds(worlds[-1])


def test_a_type_that_nobody_knows_is_empty():
    conversation = Conversation(resources(WEB))
    [response] = conversation.receive(DeltaDiscoveryRequest(type_url="type.googleapis.com/x.Y"))
    assert read_response(response.data)[:-1] == ("type.googleapis.com/x.Y", response.nonce, "", [], [], [])


def test_equal_content_has_an_equal_version_and_is_serialized_once():
    world = world_of(AMBIENT + WEB + DENY)
    first = translate(world)
    second = translate(world_of(AMBIENT + WEB + DENY + pod("db", ip="10.0.0.2")), first)
    for url, named in first.by_type.items():
        for name, item in named.items():
            assert second.by_type[url][name] is item
            assert item.head == head_of(name, item.version, url, len(item.data))


@pytest.mark.parametrize(
    ("touches", "due"),
    [((0.0,), QUIET_S), ((0.0, 0.04), 0.04 + QUIET_S), (tuple(n * 0.04 for n in range(20)), LONGEST_S)],
    ids=["one change", "two changes", "changes without end"],
)
def test_a_push_waits_for_quiet_but_not_for_long(touches, due):
    burst = Burst.begin(touches[0])
    for now in touches:
        burst.touch(now)
    assert burst.wait_s(due) == pytest.approx(0)


def test_a_burst_of_worlds_is_one_publication():
    async def play():
        board = Board(world_of("# nothing"))
        published = []
        running = asyncio.create_task(board.run(published.append))
        seen = board.current
        for text in (WEB, WEB + DENY):
            board.propose(world_of(AMBIENT + text))
        newer = await board.newer_than(seen)
        running.cancel()
        return published, newer

    published, newer = asyncio.run(play())
    assert published == [newer]
    assert "shop/deny" in newer.by_type[AUTHORIZATION_TYPE]
