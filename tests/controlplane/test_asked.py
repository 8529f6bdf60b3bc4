"""What a tunnel may ask a waypoint for, and which cluster it gets."""

import re

from controlplane.translate.envoy.blocks import Cache
from controlplane.translate.envoy.resources import Translation
from controlplane.translate.envoy.tunnels import AUTHORITY
from controlplane.translate.envoy.world import View
from mesh.envoy import CLUSTER, ROUTES, unpack
from tests.controlplane.documents import pod, store_of
from tests.controlplane.l7 import SHOP

BY_PEERS = {"10.1.0.1:80", "10.1.0.2:80", "10.1.0.2:5432", "web.shop.svc.cluster.local:80"}
WILD = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec:
  hosts: ["*.example.com", api.example.com, other.org]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1}]
---
"""


def sent(text):
    store = store_of(text)
    [proxy] = store.l7.proxies.values()
    found = Translation(View(store.world), store.l7, Cache()).of(proxy)
    return {name: unpack(item) for name, item in found[CLUSTER].items()}, unpack(found[ROUTES]["connect"])


def leads(clusters, name):
    [[endpoint]] = [each["lb_endpoints"] for each in clusters[name]["load_assignment"]["endpoints"]]
    return endpoint["endpoint"]["address"]["envoy_internal_address"]["server_listener_name"]


def domains(table):
    return {domain: host["routes"][0]["route"] for host in table["virtual_hosts"] for domain in host["domains"]}


def test_an_address_or_a_name_with_a_port_is_the_cluster_of_that_service():
    clusters, table = sent(SHOP)
    asked = {name for name in clusters if re.fullmatch(AUTHORITY, name)}
    assert asked >= BY_PEERS
    assert leads(clusters, "10.1.0.2:5432") == "shop/db.shop.svc.cluster.local|5432"
    assert domains(table).keys() == {"*"}, "one more service changes nothing that others have"


def test_no_other_cluster_can_be_asked_for():
    clusters, _ = sent(SHOP)
    for name, cluster in clusters.items():
        internal = "envoy_internal_address" in str(cluster) and name not in ("tunnels", "direct")
        assert not re.fullmatch(AUTHORITY, name) or (internal and leads(clusters, name).startswith("shop/"))
    for name in ("tunnels", "direct", "identity", "controlplane", "out|80||shop/web", "jwks|https|a:443", "*.a:80", ""):
        assert not re.fullmatch(AUTHORITY, name)


def test_a_wildcard_has_a_virtual_host_and_so_has_what_it_covers():
    clusters, table = sent(SHOP + WILD)
    assert domains(table).keys() == {"*", "*.example.com:80", "api.example.com:80"}
    for domain in ("*.example.com:80", "api.example.com:80"):
        assert domains(table)[domain]["cluster"] == domain
    assert leads(clusters, "*.example.com:80") == "shop/*.example.com|80"


def test_an_address_of_which_every_port_is_served_has_a_virtual_host_for_each_port_that_is_a_services():
    everything = SHOP.replace(
        "name: way, namespace: shop}", "name: way, namespace: shop, labels: {istio.io/waypoint-for: all}}"
    )
    _, table = sent(everything + pod("web", labels="app: web") + "---\n")
    assert domains(table)["10.0.0.1:*"]["cluster"] == "to|Kubernetes//Pod/shop/web|*"
    assert domains(table)["10.0.0.1:80"]["cluster"] == "10.0.0.1:80"
    assert "10.1.0.1:80" not in domains(table)
