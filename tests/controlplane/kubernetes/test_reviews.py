"""Who calls, by a service account's token: what the API server says of it, and what we make of that."""

import asyncio

import pytest

from controlplane.attest import Tokens
from controlplane.refusals import FORGIVEN_S, PATIENCE, REFUSED_S
from controlplane.reviews import AT_ONCE, FRESH_S, Reviews
from kube.informer import Informer
from kube.objects import PODS, Key
from mesh.errors import PeerError
from tests.kube import cluster
from tests.kube.cluster import play, pod, running, until

GATEWAY = {"gateway.networking.k8s.io/gateway-name": "shop-waypoint"}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Gate:
    """A client that holds back what is asked about every token but one until it is opened."""

    def __init__(self, client):
        self._client, self.through, self.waiting, self.opened = client, None, 0, asyncio.Event()
        self.opened.set()

    async def create(self, resource, namespace, body):
        if body["spec"]["token"] != self.through:
            self.waiting += 1
            await self.opened.wait()
            self.waiting -= 1
        return await self._client.create(resource, namespace, body)


class Door:
    """Reviews over the stand-in; `token` issues what a kubelet would mount."""

    def __init__(self, api, directory):
        self.api, self.clock = api, Clock()
        self.gate = Gate(api.connect())
        self.tokens = Tokens(directory / "state")
        self.informer = Informer(api.connect(), PODS)
        self.reviews = Reviews(self.tokens, self.gate, self, "istio-ca", ["mesh/ztunnel"], self.clock)
        for namespace, name in (("mesh", "ztunnel"), ("shop", "waypoint"), ("shop", "web")):
            api.create(cluster.SERVICE_ACCOUNTS, namespace, {"metadata": {"name": name}})

    def pod(self, namespace, name):
        return self.informer.objects.get(Key(namespace, name))

    def token(self, namespace, account, ttl_s=600, audience="istio-ca", *, bound=True, **about):
        made = (
            self.api.create(cluster.PODS, namespace, pod(f"{account}-pod", namespace, metadata=about))
            if bound
            else None
        )
        # The clock of the reviews starts at 0, that of the stand-in is the real one: life is what counts.
        self.clock.now = self.clock.now or cluster.standin_access.time.time()
        return self.api.tokens.issue(namespace, account, [audience], ttl_s, made)

    async def who(self, token, address="10.0.0.1"):
        return await self.reviews.caller(f"Bearer {token}", address)

    def forged(self, number=0):
        """Says all the right things, but nobody signed it."""
        head, claims, signature = self.good.split(".")
        return f"{head}.{claims}.{number:04d}{signature[4:]}"

    async def refused(self, token, address="10.0.0.1"):
        with pytest.raises(PeerError) as raised:
            await self.who(token, address)
        return str(raised.value)

    @property
    def asked(self):
        return len([each for each in self.api.server.asked if "tokenreviews" in each])


def tell(story, directory):
    async def main(api):
        door = Door(api, directory)
        async with running(door.informer.run()):
            await door.informer.synced.wait()
            await story(door)

    play(directory, main)


def test_a_tunnels_token_proves_its_node(tmp_path):
    async def story(door):
        token = door.token("mesh", "ztunnel")
        assert [await door.who(token), await door.who(token), door.asked] == ["node-1", "node-1", 1]
        door.clock.now += FRESH_S + 1
        assert [await door.who(token), door.asked] == ["node-1", 2]

    tell(story, tmp_path)


def test_a_waypoints_token_proves_its_gateway(tmp_path):
    async def story(door):
        token = door.token("shop", "waypoint", labels=GATEWAY)
        await until(lambda: door.pod("shop", "waypoint-pod"))
        assert await door.who(token) == "shop@shop-waypoint"

    tell(story, tmp_path)


def test_a_join_token_goes_on_being_one(tmp_path):
    async def story(door):
        assert [await door.who(door.tokens.create("bare-1", 60)), door.asked] == ["bare-1", 0]

    tell(story, tmp_path)


@pytest.mark.parametrize(
    ("account", "how", "why"),
    [
        (("mesh", "ztunnel"), {"audience": "other"}, "the token is not for the audience istio-ca"),
        (("mesh", "ztunnel"), {"ttl_s": -1}, "the service account token has expired"),
        (("mesh", "ztunnel"), {"bound": False}, "the token is not bound to a pod"),
        (("shop", "web"), {}, "pod shop/web-pod is neither a tunnel's, by its account, nor a gateway's, by its label"),
    ],
)  # fmt: skip
def test_any_other_token_proves_nothing(tmp_path, account, how, why):
    async def story(door):
        token = door.token(*account, **how)
        if how.get("bound", True):
            await until(lambda: door.pod(account[0], f"{account[1]}-pod"))
        with pytest.raises(PeerError, match=why):
            await door.who(token)

    tell(story, tmp_path)


@pytest.mark.parametrize("token", ["a.b.c", "", "a.b", "x" * 20_000 + ".b.c"])
def test_what_is_no_token_is_refused(tmp_path, token):
    async def story(door):
        with pytest.raises(PeerError):
            await door.who(token)

    tell(story, tmp_path)


def test_the_token_of_a_pod_that_is_gone_is_not_accepted(tmp_path):
    async def story(door):
        token = door.token("mesh", "ztunnel")
        assert await door.who(token) == "node-1"
        door.api.delete(cluster.PODS, "mesh", "ztunnel-pod")
        door.clock.now += FRESH_S + 1
        with pytest.raises(PeerError, match="does not accept the token"):
            await door.who(token)
        await door.api.stop()
        door.clock.now += REFUSED_S + 1
        # That it once was accepted is no longer worth anything.
        with pytest.raises(PeerError, match="the token cannot be reviewed"):
            await door.who(token)
        await door.api.start()

    tell(story, tmp_path)


def test_without_an_api_server_a_token_that_was_good_is_until_it_expires_and_others_are_not(tmp_path):
    async def story(door):
        token, other = door.token("mesh", "ztunnel", ttl_s=600), door.token("shop", "web")
        assert await door.who(token) == "node-1"
        await door.api.stop()
        door.clock.now += 500
        assert await door.who(token) == "node-1"
        with pytest.raises(PeerError, match="the token cannot be reviewed"):
            await door.who(other)
        door.clock.now += 101
        with pytest.raises(PeerError, match="the service account token has expired"):
            await door.who(token)
        await door.api.start()

    tell(story, tmp_path)


def test_what_a_token_itself_speaks_against_is_not_asked_about(tmp_path):
    async def story(door):
        for how in ({"audience": "other"}, {"ttl_s": -1}):
            await door.refused(door.token("mesh", "ztunnel", bound=False, **how))
        assert door.asked == 0

    tell(story, tmp_path)


def test_the_same_bad_token_is_asked_about_once_in_a_while(tmp_path):
    async def story(door):
        door.good = door.token("mesh", "ztunnel")
        first = await door.refused(door.forged())
        assert [await door.refused(door.forged(), f"10.0.0.{n}") for n in range(50)] == [first] * 50
        assert door.asked == 1
        door.clock.now += REFUSED_S
        await door.refused(door.forged())
        assert door.asked == 2

    tell(story, tmp_path)


def test_an_address_that_brings_one_bad_token_after_the_other_has_to_wait_and_nobody_else(tmp_path):
    async def story(door):
        door.good = door.token("mesh", "ztunnel")
        said = [await door.refused(door.forged(n)) for n in range(PATIENCE + 30)]
        assert door.asked == PATIENCE
        assert said[-1] == "too many tokens from this address were refused: it has to wait 3 s"
        assert await door.refused(door.good) == said[-1]
        assert await door.who(door.good, "10.0.0.2") == "node-1"
        assert await door.who(door.good) == "node-1"  # known by now
        door.clock.now += FORGIVEN_S
        asked = door.asked
        await door.refused(door.forged(99))
        await door.refused(door.forged(98))
        assert door.asked == asked + 1

    tell(story, tmp_path)


def test_a_flood_of_strangers_neither_floods_the_api_server_nor_delays_who_is_known(tmp_path):
    async def story(door):
        door.good = door.token("mesh", "ztunnel")
        assert await door.who(door.good) == "node-1"
        door.clock.now += FRESH_S + 1
        door.gate.through = door.good
        door.gate.opened.clear()
        flood = [asyncio.ensure_future(door.refused(door.forged(n), f"10.0.1.{n}")) for n in range(200)]
        await until(lambda: door.gate.waiting == AT_ONCE)
        assert await door.who(door.good) == "node-1"
        assert door.gate.waiting == AT_ONCE
        door.gate.opened.set()
        assert len(set(await asyncio.gather(*flood))) == 1

    tell(story, tmp_path)


def test_a_thousand_calls_with_one_new_token_are_one_question(tmp_path):
    async def story(door):
        token = door.token("mesh", "ztunnel")
        assert await asyncio.gather(*(door.who(token) for _ in range(1000))) == ["node-1"] * 1000
        assert door.asked == 1

    tell(story, tmp_path)
