"""What a waypoint does when it has too much to do: it takes no more, and what it has goes on."""

import json

import pytest

from lab import daemons, proxies
from tests.lab.mall import NAMESPACE

pytestmark = pytest.mark.lab


def limited(mall, name, **settings):
    """A waypoint with such settings, and a service `by-NAME` of ratings' pods that is behind it."""
    mesh = mall.mesh
    proxies.apply(mesh, name, NAMESPACE)
    file = daemons.more_settings(mesh.layout, f"{name}-1")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))
    pod = proxies.add(mesh, name, "node1", NAMESPACE)
    before = mall.version
    mall.service(f"by-{name}", name, app="ratings")
    mall.settled(before)
    return pod


@pytest.fixture
def gone_after(mall):
    """What the test names is gone after it."""
    names = []
    yield names.append
    for name in names:
        mall.mesh.delete_pod(f"{name}-1")
        mall.mesh.remove(f"service-{NAMESPACE}-by-{name}")
        mall.mesh.remove(f"gateway-{NAMESPACE}-{name}")


def stat(mall, pod, name):
    """The sum of what is called so."""
    lines = mall.admin(f"/envoy/stats?filter={name}", pod).splitlines()
    return sum(int(line.rpartition(":")[2]) for line in lines)


def test_beyond_its_connections_a_waypoint_takes_no_more(mall, gone_after):
    gone_after("narrow")
    pod = limited(mall, "narrow", MAX_CONNECTIONS="1")
    url = f"http://{mall.vip('by-narrow')}/narrow"
    mall.until(lambda: mall.ask(url).status == 200)
    before = mall.seen(mall.ratings)["/narrow"]
    assert mall.ask(url, client=mall.bob).status == 0  # whose identity needs a tunnel of its own
    assert stat(mall, pod, "downstream_global_cx_overflow") >= 1
    assert mall.seen(mall.ratings)["/narrow"] == before
    mall.until(lambda: mall.ask(url).status == 200)


def test_before_its_memory_ends_a_waypoint_takes_no_more_requests(mall, gone_after):
    gone_after("poor")
    pod = limited(mall, "poor", MAX_HEAP_MIB="1")
    mall.until(lambda: stat(mall, pod, "overload.envoy.overload_actions.stop_accepting_requests.active") == 1)
    assert mall.ask(f"http://{mall.vip('by-poor')}/poor").status == 0
    assert "/poor" not in mall.seen(mall.ratings)
    assert stat(mall, pod, "downstream_rq_overload_close") >= 1
