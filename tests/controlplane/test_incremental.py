"""A world that grew by changes is that of the documents that are there now; what did not change stays itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.documents import parse
from controlplane.objects import Mesh
from controlplane.store import Store
from controlplane.translate.tunnel import translate
from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.controlplane.documents import pod

META = "metadata: {{name: {name}, namespace: shop}}\n"
SECURITY = "apiVersion: security.istio.io/v1\n"
FILES = {
    "namespace": [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
    ],
    "root": [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: n1}}\n"
    ],
    "node": [
        "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}\n",
        "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {topology.kubernetes.io/zone: b}}\n",
    ],
    "web": [pod("web", labels="app: web"), pod("web", labels="app: db"), pod("web", labels="app: web", ip="10.0.0.9")],
    "db": [pod("db", labels="app: db", ip="10.0.0.2"), pod("db", labels="app: db", ip="")],
    "service": [
        f"apiVersion: v1\nkind: Service\n{META.format(name='web')}"
        f"spec: {{clusterIP: 10.96.0.{n}, selector: {{app: {app}}}, ports: [{{port: 80}}]}}\n"
        for n, app in ((1, "web"), (1, "db"), (2, "web"))
    ],
    "headless": [
        f"apiVersion: v1\nkind: Service\n{META.format(name='sliced')}"
        "spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}\n"
    ],
    "slice": [
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nports: [{port: 8080}]\n"
        "metadata: {name: sliced-1, namespace: shop, labels: {kubernetes.io/service-name: sliced}}\n"
        f"endpoints: [{{addresses: [{ip}]}}]\n"
        for ip in ("10.0.0.2", "10.9.9.9")
    ],
    "policy": [
        f"{SECURITY}kind: AuthorizationPolicy\n{META.format(name='deny')}"
        f"spec: {{selector: {{matchLabels: {{app: {app}}}}}, action: DENY, rules: [{{}}]}}\n"
        for app in ("web", "db")
    ],
    "egress": [
        f"{SECURITY}kind: AuthorizationPolicy\nmetadata: {{name: out, namespace: {where}, "
        f"annotations: {{nodemesh/direction: egress}}}}\nspec: {spec}\n"
        for where, spec in (
            ("shop", "{}"),
            ("shop", "{selector: {matchLabels: {app: web}}}"),
            ("istio-system", "{}"),
        )
    ],
    "mtls": [
        f"{SECURITY}kind: PeerAuthentication\nmetadata: {{name: default, namespace: {where}}}\n"
        "spec: {mtls: {mode: STRICT}}\n"
        for where in ("shop", "istio-system")
    ],
}
# Whether it is in force depends on what was before.
DISPUTED = FILES | {
    "broken": ["kind: [", "kind: Pod\nmetadata: {name: WEB}\n"],
    "twice": [
        pod("web", labels="app: db"),
        f"{SECURITY}kind: AuthorizationPolicy\n{META.format(name='deny')}spec: 1\n",
    ],
}


def edits_of(files):
    change = st.sampled_from(sorted(files)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from([*files[name], None]))
    )
    return st.lists(change, max_size=20)


class Unread(dict):
    """Of which nobody looks at more than the documents that were named."""

    def _refuse(self):
        raise AssertionError("everything is looked at for the sake of one change")

    __iter__ = keys = values = items = _refuse


def facts(store):
    return dict(store.world.workloads), dict(store.world.services), dict(store.world.policies)


@settings(max_examples=60, deadline=None)
@given(edits_of(FILES))
def test_however_it_came_to_be_the_world_is_that_of_the_documents(story):
    grown, contents = Store(Mesh()), {}
    resources = translate(grown.world)
    for name, text in story:
        contents.pop(name, None)
        if text:
            contents[name] = parse(name, text.encode())
        before = resources
        grown.update(contents)
        resources = translate(grown.world, resources)
        for url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            old, new = before.by_type[url], resources.by_type[url]
            differ = {key for key in {**old, **new} if old.get(key) is not new.get(key)}
            assert differ <= resources.since(before, url)
    fresh = Store(Mesh())
    fresh.update({name: parse(name, each) for name, each in texts(story).items()})
    assert facts(grown) == facts(fresh)
    assert {url: dict(of) for url, of in resources.by_type.items()} == {
        url: dict(of) for url, of in translate(fresh.world).by_type.items()
    }


@settings(max_examples=60, deadline=None)
@given(edits_of(DISPUTED))
def test_a_store_that_is_told_what_changed_looks_at_nothing_else_and_comes_to_the_same(story):
    looked, told, every, named = Store(Mesh()), Store(Mesh()), {}, Unread()
    for name, text in story:
        for contents in (every, named):
            contents.pop(name, None)
            if text:
                contents[name] = parse(name, text.encode())
        looked.update(every)
        told.update(named, {name})
        assert facts(told) == facts(looked)
        assert (told.findings, told.conditions(), told.counts) == (looked.findings, looked.conditions(), looked.counts)


def texts(story):
    return {name: text.encode() for name, text in dict(story).items() if text}


def test_a_change_leaves_what_it_does_not_concern_the_same_object():
    store = Store(Mesh())
    contents = {name: parse(name, FILES[name][0].encode()) for name in ("namespace", "node", "web", "db", "service")}
    store.update(contents)
    before = dict(store.world.workloads)
    store.update(contents | {"web": parse("web", FILES["web"][2].encode())})
    after = store.world.workloads
    assert [uid for uid in after if after[uid] is not before[uid]] == ["Kubernetes//Pod/shop/web"]


def test_a_tunnel_that_missed_too_many_pushes_is_compared_in_full():
    store = Store(Mesh())
    first = latest = translate(store.world)
    for number in range(40):
        store.update({"web": parse("web", pod("web", ip=f"10.0.0.{number}").encode())})
        previous, latest = latest, translate(store.world, latest)
    assert latest.since(first, ADDRESS_TYPE) is None
    assert latest.since(previous, ADDRESS_TYPE) == {"Kubernetes//Pod/shop/web"}
    assert latest.since(latest, ADDRESS_TYPE) == set()
