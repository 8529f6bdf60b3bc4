"""The thin path through a real Envoy: a waypoint that routes, and is not gone round."""

import json

import pytest

from lab import apps, documents, proxies
from lab.documents import PodSpec
from lab.processes import wait_until

pytestmark = pytest.mark.lab


def test_a_request_goes_through_the_services_waypoint(mesh):
    proxies.apply(mesh, "way")
    proxies.add(mesh, "way", "node1")
    try:
        pod = mesh.add_pod(PodSpec("reviews-1", "node2", app="reviews", labels={"version": "v1"}), with_apps=False)
        mesh.start_in(pod, "echo", apps.echo("reviews-1", "v1"))
        vip = mesh.add_service("reviews", {80: 8080})
        mesh.apply(
            "service-shop-reviews", documents.http_service("shop", "reviews", [vip], {"istio.io/use-waypoint": "way"})
        )
        wait_until("reviews answers", lambda: "v1" in mesh.http(mesh.pods["web-1"], vip), 20)
        seen = json.loads(mesh.http(mesh.pods["web-1"], vip))
        print(json.dumps(seen, indent=1))
        assert seen["headers"]["x-forwarded-client-cert"].endswith(mesh.pods["web-1"].identity)
    finally:
        print(mesh.layout.log("waypoint-way-1").read_text()[-6000:])
        print(mesh.layout.log("controlplane").read_text()[-3000:])
        mesh.delete_pod("way-1")
