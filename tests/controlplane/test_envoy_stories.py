"""What an Envoy holds in the end does not depend on the order in which it and the control plane got to speak.

Here an Envoy is played, too: random stories of changes, requests, acknowledgements and streams that break.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.envoys import EnvoyConversation
from mesh.delta import Publisher
from mesh.envoy import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from tests.controlplane.documents import AMBIENT, pod
from tests.controlplane.test_envoys import DB, ONE, RULE, RULES, TWO, WAY, WEB, WHO, Play

POD, MOVED = pod("web", labels="app: web"), pod("web", labels="app: web", ip="10.0.0.9")
# What the waypoint is for: from one to the next clusters change, or endpoints, or both.
BOTH = {
    "both": TWO + POD,
    "both, moved": TWO + MOVED,
    "both, db limited": TWO + RULE.format("db") + POD,
    "both, limited": TWO + RULES + POD,
    "both, limited and moved": TWO + RULES + MOVED,
}
TEXTS = {**BOTH, "web": ONE + POD, "web, limited": ONE + RULE.format("web") + POD, "none": AMBIENT + WAY}
PLAY = Play()
CONFIGURATIONS = {name: PLAY.configuration(text) for name, text in TEXTS.items()}


class Envoy:
    """It takes what comes, and acknowledges clusters only when all are warm: had their endpoints since they came.

    `clusters`, `endpoints`: name to version. `repeated`: warm clusters whose endpoints came again unchanged.
    """

    def __init__(self, in_a_part):
        self.configuration, self.in_a_part = CONFIGURATIONS["both"], in_a_part
        self.clusters, self.endpoints = {}, {}
        self.warm, self.repeated = set(), []
        self.connect()

    @property
    def followed(self):
        """The clusters that need endpoints."""
        return self.clusters.keys() & {WEB, DB}

    def connect(self):
        self.server = EnvoyConversation(self.configuration, WHO, _publisher=Publisher(self.in_a_part))
        self.unanswered, self.requests = {}, []
        self.ask(CLUSTER, held=self.clusters)
        self.ask(LISTENER)
        self.ask(ROUTES, ["connect"])
        self.ask(SECRET, ["nothing"])  # which nobody has: one more answer that clusters wait for
        if self.followed:
            self.ask(ENDPOINTS, self.followed, held=self.endpoints)

    def ask(self, type_url, subscribe=(), unsubscribe=(), held=None):
        self.requests.append(
            DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=subscribe,
                resource_names_unsubscribe=unsubscribe,
                initial_resource_versions=held,
            )
        )

    def take(self, responses):
        for each in responses:
            assert each.type_url not in self.unanswered
            self.unanswered[each.type_url] = each.nonce
            response = DeltaDiscoveryResponse.FromString(each.data)
            if each.type_url == CLUSTER:
                self.take_clusters({item.name: item.version for item in response.resources}, response.removed_resources)
            elif each.type_url == ENDPOINTS:
                self.take_endpoints({item.name: item.version for item in response.resources})

    def take_clusters(self, came, gone):
        assert not came.items() & self.clusters.items()
        before = self.followed
        self.clusters.update(came)
        for name in gone:
            self.clusters.pop(name, None)
            self.endpoints.pop(name, None)
        self.warm -= {*came, *gone}
        if self.followed != before:
            self.ask(ENDPOINTS, self.followed - before, before - self.followed)

    def take_endpoints(self, came):
        for name in came.keys() & self.followed:
            if name in self.warm and self.endpoints[name] == came[name]:
                self.repeated.append(name)
            self.warm.add(name)
            self.endpoints[name] = came[name]

    def answer(self, type_url):
        if type_url in self.unanswered and (type_url != CLUSTER or self.warm == self.followed):
            nonce = self.unanswered.pop(type_url)
            self.requests.append(DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce))

    def speak(self):
        """The control plane reads the next request."""
        if self.requests:
            self.take(self.server.receive(self.requests.pop(0)))

    def settle(self):
        for _ in range(100):
            for type_url in tuple(self.unanswered):
                self.answer(type_url)
            while self.requests:
                self.speak()

    def play(self, move):
        if move in CONFIGURATIONS:
            self.configuration = CONFIGURATIONS[move]
            self.take(self.server.update(self.configuration))
        elif move == "speak":
            self.speak()
        elif move == "settle":
            self.settle()
        elif move == "reconnect":
            self.connect()
        else:
            self.answer(move)


def played(story, in_a_part):
    envoy = Envoy(in_a_part)
    for move in story:
        envoy.play(move)
    envoy.settle()
    return envoy


def versions(resources):
    return {name: item.version for name, item in resources.items()}


def stories(texts, *more):
    talk = (CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET, "speak", "speak", "speak", "settle", *more)
    return st.lists(st.sampled_from(sorted(texts)) | st.sampled_from(talk), max_size=40)


@settings(max_examples=300, deadline=None)
@given(stories(TEXTS, "reconnect"), st.integers(1, 3))
def test_whatever_happens_an_envoy_ends_with_what_is_wanted_and_with_warm_clusters(story, in_a_part):
    envoy = played(story, in_a_part)
    wanted = envoy.configuration.of(WHO)
    assert envoy.clusters == versions(wanted[CLUSTER])
    assert envoy.endpoints == versions(wanted[ENDPOINTS])
    assert envoy.warm == envoy.followed
    assert not envoy.unanswered
    assert envoy.server.synced_version == envoy.configuration.world.version


@settings(max_examples=250, deadline=None)
@given(stories(BOTH), st.integers(1, 3))
def test_while_services_stay_a_warm_cluster_is_not_sent_the_same_endpoints_again(story, in_a_part):
    assert played(story, in_a_part).repeated == []
