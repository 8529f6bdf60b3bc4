"""Rate limits: which service is asked of which limit, and who says so when it is none."""

from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.resources import Translation
from controlplane.translate.envoy.world import View
from mesh.envoy import ROUTES, unpack
from tests.controlplane.documents import store_of
from tests.controlplane.l7 import DB, SHOP, WEB, served


def limits_of(name, *asked, kind="Service", group=""):
    """`asked`: of which service, and more."""
    listed = "".join(f"  - {{name: l{n}, service: {{{who}}}{more}}}\n" for n, (who, more) in enumerate(asked))
    return (
        "apiVersion: nodemesh.io/v1alpha1\nkind: RateLimit\n"
        f"metadata: {{name: {name}, namespace: shop}}\nspec:\n"
        f"  targetRefs: [{{group: '{group}', kind: {kind}, name: {name}}}]\n"
        f"  limits:\n{listed}  - {{name: own, requests: 1, per: 1s}}\n---\n"
    )


def test_two_rate_limit_services_are_asked_each_for_its_own_and_those_of_a_third_say_so():
    one, other, third = ((f"host: {host}, port: 80, domain: d", "") for host in ("db", "web", "gone"))
    limits = limits_of("web", other, third) + limits_of("db", one)
    kept = {s: [(each.name, each.place) for each in served(limits, s).rules.limits] for s in (DB, WEB)}
    assert kept == {DB: [("shop/db/l0", 0), ("shop/db/own", 0)], WEB: [("shop/web/l0", 1), ("shop/web/own", 0)]}
    both = "db.shop.svc.cluster.local (domain d), web.shop.svc.cluster.local (domain d)"
    why = f"'l1' is not enforced: proxy shop/way asks 2 rate-limit services at most, {both}"
    notices = [each for each in store_of(SHOP + limits).notices if each.kind == "RateLimit" and not each.status]
    assert {each.name: (each.reason, each.message) for each in notices} == {"web": ("LimitExceeded", why)}


def test_a_limit_that_closes_is_not_opened_by_another_of_the_same_service():
    who = "host: db, port: 80, domain: d"
    found = served(limits_of("web", (who, ", failOpen: true"), (who, ""))).rules.limits
    assert [(each.fail_open, each.place) for each in found if each.service] == [(True, 0), (False, 1)]


GATE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: shop}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{name: front}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
"""


def test_what_is_told_of_a_request_is_told_at_a_gateway_too():
    who = "host: db, port: 80, domain: d"
    by = ", by: [{attribute: header, header: x-user}]"
    text = SHOP + GATE + limits_of("front", (who, by), kind="Gateway", group="gateway.networking.k8s.io")
    store = store_of(text)
    found = Translation(View(store.world), store.l7, Cache()).of(store.l7.proxies["shop/front"])[ROUTES]
    [host] = [host for table in found.values() for host in unpack(table)["virtual_hosts"]]
    header = {"header_name": "x-user", "descriptor_key": "x-user"}
    assert host["rate_limits"] == [{"stage": 1, "actions": [{"request_headers": header}]}]
