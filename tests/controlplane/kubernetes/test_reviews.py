"""Who calls, by a service account's token: what the API server says of it, and what we make of that."""

import pytest

from controlplane.attest import Tokens
from controlplane.reviews import FRESH_S, Reviews
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


class Door:
    """Reviews over the stand-in; `token` issues what a kubelet would mount."""

    def __init__(self, api, directory):
        self.api, self.clock = api, Clock()
        self.tokens = Tokens(directory / "state")
        self.informer = Informer(api.connect(), PODS)
        self.reviews = Reviews(self.tokens, api.connect(), self, "istio-ca", ["mesh/ztunnel"], self.clock)
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

    async def who(self, token):
        return await self.reviews.caller(f"Bearer {token}")

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
        (("mesh", "ztunnel"), {"audience": "other"}, "the API server does not accept the token: token audiences"),
        (("mesh", "ztunnel"), {"ttl_s": -1}, "does not accept the token: service account token has expired"),
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
