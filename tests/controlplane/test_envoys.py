"""In which order an Envoy learns of a new configuration. The stream is played by hand; there is no network."""

import pytest

from controlplane.documents import parse
from controlplane.envoys import Configuration, EnvoyConversation, Envoys, place_of
from controlplane.l7.model import L7
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.locality import Place
from controlplane.translate.envoy.resources import TYPES
from mesh.delta import Publisher
from mesh.envoy import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET
from mesh.gen.xds_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.model import World
from tests.controlplane.documents import AMBIENT

WAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: way}}}}
spec: {{clusterIP: {ip}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {0}, namespace: shop}}
spec: {{host: {0}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: 7}}}}}}}}
---
"""
RULES = RULE.format("web") + RULE.format("db")
ONE = AMBIENT + WAY + SERVICE.format(name="web", ip="10.96.0.1")
TWO = ONE + SERVICE.format(name="db", ip="10.96.0.2")
WEB, DB = "out|80||shop/web.shop.svc.cluster.local", "out|80||shop/db.shop.svc.cluster.local"
# What a tunnel may ask for, to get to it.
ASKED = ("10.96.0.2:80", "db.shop.svc.cluster.local:80")
WHO = ("shop/way", Place())


class Play:
    """One store, so that versions grow; `update` is what the control plane sends for another text."""

    def __init__(self, text=ONE, in_a_part=1000):
        self.store, self.cache, self.nonces = Store(Mesh()), Cache(), {}
        self.envoy = EnvoyConversation(self.configuration(text), WHO, _publisher=Publisher(in_a_part))

    def configuration(self, text):
        self.store.update({"a.yaml": parse("a.yaml", text.encode())})
        world, l7 = self.store.world, self.store.l7
        return Configuration(world, l7, self.cache)

    def ask(self, type_url, *names, **fields):
        return self._noted(
            self.envoy.receive(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names, **fields))
        )

    def answer(self, type_url, error=""):
        request = DeltaDiscoveryRequest(type_url=type_url, response_nonce=self.nonces[type_url])
        if error:
            request.error_detail.message = error
        return self._noted(self.envoy.receive(request))

    def update(self, text):
        return self._noted(self.envoy.update(self.configuration(text)))

    def _noted(self, responses):
        for each in responses:
            self.nonces[each.type_url] = each.nonce
        read = [DeltaDiscoveryResponse.FromString(each.data) for each in responses]
        return [(each.type_url, [r.name for r in each.resources], list(each.removed_resources)) for each in read]

    def greeted(self, *endpoints):
        """Everything of the text has been taken."""
        for type_url, names in ((CLUSTER, ()), (ENDPOINTS, endpoints), (LISTENER, ()), (ROUTES, ("connect",))):
            if names or type_url != ENDPOINTS:
                self.ask(type_url, *names)
                while self.answer(type_url):
                    pass
        assert self.envoy.synced_version == self.store.world.version
        return self


def test_clusters_and_their_endpoints_come_together_because_only_warm_ones_are_acknowledged():
    play = Play().greeted(WEB)
    [clusters, endpoints] = play.update(ONE + RULE.format("web"))
    assert clusters == (CLUSTER, [WEB], [])
    assert endpoints == (ENDPOINTS, [WEB], []), "a changed cluster is a new one to Envoy"
    assert play.answer(ENDPOINTS) == []
    assert play.answer(CLUSTER) == []
    assert play.envoy.synced_version == play.store.world.version


def test_a_changed_cluster_that_must_wait_is_not_overtaken_by_its_endpoints():
    play = Play().greeted(WEB)
    assert [clusters for clusters, *_ in play.update(TWO)] == [CLUSTER]
    assert play.update(TWO + RULE.format("web")) == []
    assert play.answer(CLUSTER) == [(CLUSTER, [WEB], []), (ENDPOINTS, [WEB], [])]


def test_each_part_of_the_changed_clusters_brings_its_own_endpoints():
    play = Play(TWO, in_a_part=1).greeted(WEB, DB)
    assert play.update(TWO + RULES) == [(CLUSTER, [DB], []), (ENDPOINTS, [DB], [])]
    assert play.answer(ENDPOINTS) == []
    assert play.answer(CLUSTER) == [(CLUSTER, [WEB], []), (ENDPOINTS, [WEB], [])]
    assert play.answer(CLUSTER) == []
    assert play.answer(ENDPOINTS) == []
    assert play.envoy.synced_version == play.store.world.version


def test_endpoints_that_were_on_their_way_before_their_cluster_changed_come_again_after_it():
    play = Play(TWO, in_a_part=1).greeted()
    play.ask(SECRET, "nothing")
    [(_, [first], _)] = play.ask(ENDPOINTS, WEB, DB)
    assert play.update(TWO + RULES) == [], "secrets come before clusters, and are not acknowledged"
    assert play.answer(ENDPOINTS) == [(ENDPOINTS, [({WEB, DB} - {first}).pop()], [])]
    assert play.answer(ENDPOINTS) == []
    assert play.answer(SECRET) == [(CLUSTER, [DB], []), (ENDPOINTS, [DB], [])]
    assert play.answer(CLUSTER) == [(CLUSTER, [WEB], [])]
    assert play.answer(ENDPOINTS) == [(ENDPOINTS, [WEB], [])]


def test_a_change_that_is_taken_back_before_it_was_sent_sends_nothing():
    play = Play().greeted(WEB)
    play.update(TWO)
    assert play.update(TWO + RULE.format("web")) == []
    assert play.update(TWO) == []
    assert [type_url for type_url, *_ in play.answer(CLUSTER)] == [LISTENER]


def test_endpoints_that_changed_with_their_cluster_come_once():
    play = Play().greeted(WEB)
    changed = ONE.replace("targetPort: 8080", "targetPort: 8081") + RULE.format("web")
    assert play.update(changed) == [(CLUSTER, [WEB], []), (ENDPOINTS, [WEB], [])]
    assert play.answer(ENDPOINTS) == []
    assert play.answer(CLUSTER) == []


def test_a_cluster_that_changed_while_an_envoy_was_away_is_a_new_one_to_it_too():
    """It asks for all types before it hears the first answer, and does not say for which cluster it had endpoints."""
    before, play = Play(TWO), Play(TWO + RULE.format("web"))
    held = {url: {name: of.version for name, of in before.envoy.target.of(WHO)[url].items()} for url in TYPES}
    assert play.ask(CLUSTER, initial_resource_versions=held[CLUSTER]) == [(CLUSTER, [WEB], [])]
    endpoints = {name: held[ENDPOINTS][name] for name in (WEB, DB)}
    [(_, again, _)] = play.ask(ENDPOINTS, WEB, DB, initial_resource_versions=endpoints)
    assert set(again) == {WEB, DB}
    assert play.answer(ENDPOINTS) == []
    assert play.answer(CLUSTER) == []


def test_what_refers_to_something_comes_after_it_and_goes_before_it():
    play = Play().greeted(WEB)
    [clusters] = play.update(TWO)
    assert clusters[0] == CLUSTER
    assert set(clusters[1]) == {DB, *ASKED}
    [listeners] = play.answer(CLUSTER)
    assert listeners == (LISTENER, ["shop/db.shop.svc.cluster.local|80"], [])
    table = "shop/db.shop.svc.cluster.local|80"
    assert play.answer(LISTENER) == []
    assert play.ask(ROUTES, table) == [(ROUTES, [table], [])]
    assert play.answer(ROUTES) == []
    [routes] = play.update(ONE)
    assert routes == (ROUTES, [], [table])
    [listeners] = play.answer(ROUTES)
    assert listeners == (LISTENER, [], ["shop/db.shop.svc.cluster.local|80"])
    [clusters] = play.answer(LISTENER)
    assert (clusters[0], set(clusters[2])) == (CLUSTER, {DB, *ASKED})


def test_a_refusal_is_remembered_and_the_rest_goes_on():
    play = Play().greeted(WEB)
    play.update(TWO)
    [listeners] = play.answer(CLUSTER, error="no such thing")
    assert listeners[0] == LISTENER
    assert play.envoy.last_nack.message == "no such thing"


def test_a_name_that_is_not_there_is_answered_so_that_nobody_waits_for_it():
    assert Play().ask(ENDPOINTS, "nothing") == [(ENDPOINTS, [], ["nothing"])]


def test_a_proxy_that_the_model_does_not_know_gets_nothing():
    play = Play()
    play.envoy = EnvoyConversation(play.configuration(ONE), ("shop/other", Place()))
    assert play.ask(CLUSTER) == [(CLUSTER, [], [])]


@pytest.mark.parametrize(("region", "zone"), [("r", "z"), ("", "")])
def test_an_envoy_says_where_it_is(region, zone):
    request = DeltaDiscoveryRequest()
    request.node.metadata.update({"REGION": region, "ZONE": zone, "LABELS": {"a": "b"}})
    assert place_of(request) == Place(region, zone, "", (("a", "b"),))


class Untouched(dict):
    """Workloads that nobody may go through."""

    def values(self):
        raise AssertionError("somebody went through all workloads")


def test_a_world_is_not_gone_through_for_envoys_while_none_asks():
    """With 100,000 workloads the tunnels would hear of each change later for that."""
    envoys = Envoys(World(workloads=Untouched()), L7())
    assert envoys.current.of(("shop/unknown", Place()))[CLUSTER] == {}
