"""What is made of the documents of layer 7 does not depend on what was made before, only its cost does."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.resources import Translation
from controlplane.translate.envoy.world import View
from tests.controlplane.documents import pod
from tests.controlplane.l7 import SHOP


def document(kind, name, spec, group="networking.istio.io/v1", namespace="shop"):
    return f"apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"


GATEWAY_API = "gateway.networking.k8s.io/v1"
# Per file: what it may hold, from nothing to several forms of the same.
FILES = {
    "service.yaml": [
        "",
        document("Service", "x", "{ports: [{port: 80, name: http}]}", "v1"),
        document("Service", "x", "{ports: [{port: 80, name: other}, {port: 81, name: http}]}", "v1"),
        document("Service", "x", "{clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}", "v1"),
    ],
    "web.yaml": ["", pod("web", labels="app: web"), pod("web", labels="app: web", ip="10.0.0.9")],
    "route.yaml": [
        "",
        document("VirtualService", "a", "{hosts: [web], http: [{route: [{destination: {host: x, subset: v1}}]}]}"),
        document(
            "VirtualService", "a", "{hosts: [web], http: [{route: [{destination: {host: x, port: {name: http}}}]}]}"
        ),
        document("VirtualService", "a", "{hosts: ['*.local'], http: [{delegate: {name: d}}]}"),
    ],
    "delegate.yaml": ["", document("VirtualService", "d", "{http: [{route: [{destination: {host: db}}]}]}")],
    "rule.yaml": [
        "",
        document("DestinationRule", "r", "{host: x, subsets: [{name: v1, labels: {version: v1}}]}"),
        document(
            "DestinationRule", "r", "{host: '*', trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}"
        ),
    ],
    "policy.yaml": [
        "",
        document("AuthorizationPolicy", "p", "{targetRefs: [{kind: Service, name: web}]}", "security.istio.io/v1"),
    ],
    "http.yaml": [
        "",
        document("HTTPRoute", "h", "{parentRefs: [{group: '', kind: Service, name: web}]}", GATEWAY_API),
    ],
    "entry.yaml": [
        "",
        *(
            document(
                "ServiceEntry", "e", f"{{hosts: ['{host}'], resolution: {how}, ports: [{{number: 80, name: http}}]}}"
            )
            for host, how in (("x.shop.svc.cluster.local", "NONE"), ("*.shop.svc.cluster.local", "NONE"), ("x", "DNS"))
        ),
    ],
    "way.yaml": [
        "",
        document(
            "Gateway",
            "other",
            "{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
            GATEWAY_API,
        ).replace("namespace: shop", "namespace: shop, labels: {istio.io/waypoint-for: all}"),
    ],
    "bound.yaml": [
        "",
        pod("bound", labels="app: web, istio.io/use-waypoint: other", ip="10.0.0.7"),
        pod("bound", labels="app: db, istio.io/use-waypoint: other", ip="10.1.0.1"),
    ],
    "telemetry.yaml": [
        "",
        document(
            "Telemetry",
            "t",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: way}],"
            " accessLogging: [{disabled: true}]}",
            "telemetry.istio.io/v1",
        ),
    ],
    "mesh.yaml": [
        "",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n"
        "data: {mesh: 'defaultHttpRetryPolicy: {attempts: 7}'}\n",
    ],
    "network.yaml": [
        "",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: here}}\n",
    ],
    "passage.yaml": [
        "",
        *(
            document(
                "Gateway",
                "passage",
                f"{{gatewayClassName: istio-remote, addresses: [{{type: IPAddress, value: {address}}}],"
                " listeners: [{name: cross-network, port: 15008, protocol: HBONE}]}",
                GATEWAY_API,
                "istio-system",
            ).replace(
                "namespace: istio-system",
                "namespace: istio-system, labels: {topology.istio.io/network: there},"
                f" annotations: {{gateway.istio.io/service-account: {account}}}",
            )
            for address, account in (("203.0.113.1", "one"), ("203.0.113.1", "other"), ("203.0.113.2", "one"))
        ),
    ],
    "far.yaml": [
        "",
        *(
            document(
                "WorkloadEntry", "far", f"{{address: 10.0.0.3, network: {network}, labels: {{app: web}}}}"
            ).replace("namespace: shop", "namespace: shop, annotations: {ambient.istio.io/redirection: enabled}")
            for network in ("here", "there")
        ),
    ],
    "pod.yaml": [
        "",
        document("Pod", "edge", "{nodeName: n, serviceAccountName: s}", "v1").replace(
            "namespace: shop", "namespace: shop, labels: {istio: ingressgateway}"
        ),
    ],
    "gateway.yaml": [
        "",
        document(
            "Gateway",
            "front",
            "{selector: {istio: ingressgateway},"
            " servers: [{port: {number: 80, name: a, protocol: TCP}, hosts: [a.b]}]}",
        ),
    ],
}


def contents(chosen):
    texts = {"shop.yaml": SHOP, **{file: FILES[file][number] for file, number in chosen.items()}}
    return {file: parse(file, text.encode()) for file, text in texts.items() if text}


CHANGE = st.sampled_from([(file, number) for file, forms in FILES.items() for number in range(len(forms))])


@settings(max_examples=40, deadline=None)
@given(st.lists(CHANGE, min_size=1, max_size=12))
def test_a_model_is_the_same_whatever_was_there_before(changes):
    store, chosen = Store(Mesh()), dict.fromkeys(FILES, 0)
    for file, number in changes:
        chosen[file] = number
        store.update(contents(chosen))
        fresh = Store(Mesh())
        fresh.update(contents(chosen))
        assert store.l7 == fresh.l7
        assert sorted(store.notices) == sorted(fresh.notices)


@settings(max_examples=15, deadline=None)
@given(st.lists(CHANGE, min_size=1, max_size=8))
def test_what_envoys_are_sent_is_the_same_whatever_was_made_before(changes):
    store, cache, chosen = Store(Mesh()), Cache(), dict.fromkeys(FILES, 0)
    for file, number in changes:
        chosen[file] = number
        store.update(contents(chosen))
        view = View(store.world)
        for proxy in store.l7.proxies.values():
            fresh = Translation(view, store.l7, Cache()).of(proxy)
            assert Translation(view, store.l7, cache).of(proxy) == fresh
        cache.turn()


def test_a_pod_that_serves_one_more_service_changes_no_other_services_resources():
    store, cache = Store(Mesh()), Cache()
    chosen = {**dict.fromkeys(FILES, 0), "web.yaml": 1}
    sent = []
    for chosen["service.yaml"] in (0, 1, 3):
        store.update(contents(chosen))
        [proxy] = store.l7.proxies.values()
        sent.append(Translation(View(store.world), store.l7, cache).of(proxy))
        cache.turn()
    before, _, after = sent
    other = [(url, name) for url, named in before.items() for name in named if "web" in name]
    assert other
    assert all(after[url][name] is before[url][name] for url, name in other)


def test_endpoints_in_another_network_follow_the_gateway_to_it():
    store, cache, chosen = Store(Mesh()), Cache(), dict.fromkeys(FILES, 0)
    chosen |= {"network.yaml": 1, "far.yaml": 2}
    sent = []
    for gateway in (0, 1, 2, 3, 0):
        store.update(contents(chosen | {"passage.yaml": gateway}))
        view = View(store.world)
        [proxy] = store.l7.proxies.values()
        sent.append(Translation(view, store.l7, cache).of(proxy))
        cache.turn()
        assert sent[-1] == Translation(view, store.l7, Cache()).of(proxy)
    assert len({str(each) for each in sent[:4]}) == 4
