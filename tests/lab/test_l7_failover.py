"""A waypoint that dies with requests in flight: only those are lost, the next go by another one, and never round."""

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import proxies
from lab.processes import wait_until
from tests.lab.mall import NAMESPACE
from waypoint.envoy import LAST_RETRY_S

pytestmark = pytest.mark.lab
AT_ONCE = 20
SLOW = "/delay/12"
REFUSED = {"000", "503"}


@pytest.fixture
def other(mall):
    """Another pod of the mall's waypoint."""
    pod = proxies.add(mall.mesh, "way", "node2", NAMESPACE, replica=3)
    yield pod
    mall.mesh.delete_pod(pod.name)


def ask_at_once(mall, path):
    """Statuses as curl says them; a connection each."""
    curl = f"curl -s -m 60 -o /dev/null -w '%{{http_code}}\\n' http://{mall.vip('reviews')}{path}"
    script = f"for i in $(seq {AT_ONCE}); do {curl} & done; wait"
    return Counter(mall.mesh.exec(mall.alice, ["bash", "-c", script]).stdout.split())


def seen(mall, path):
    """How many came to any of the applications."""
    return sum(mall.seen(pod).get(path, 0) for pod in mall.reviews)


def carried(mall, pod):
    """Requests that this proxy has open at the applications."""
    stats = mall.admin("/envoy/clusters", pod).splitlines()
    return sum(
        int(each.rpartition("::")[2])
        for each in stats
        if each.startswith("out|") and "mall/reviews" in each and "::rq_active::" in each
    )


def test_only_what_a_dead_waypoint_carried_is_lost_and_nothing_goes_round(mall, other):
    with ThreadPoolExecutor(1) as pool:
        before = seen(mall, SLOW)
        in_flight = pool.submit(ask_at_once, mall, SLOW)
        wait_until("all are in flight", lambda: seen(mall, SLOW) - before == AT_ONCE, 60)
        stays = carried(mall, mall.way)
        proxies.process(mall.mesh, other).kill()
        assert ask_at_once(mall, "/") == {"200": AT_ONCE}
        ended = in_flight.result()
    assert ended["200"] == stays
    assert ended.total() == AT_ONCE
    assert ended.keys() <= {"200", *REFUSED}

    last = proxies.process(mall.mesh, mall.way)
    last.signal(signal.SIGSTOP)  # or it would start another Envoy at once
    try:
        os.kill(envoy_of(last), signal.SIGKILL)
        before = seen(mall, "/last")
        assert ask_at_once(mall, "/last").keys() <= REFUSED
        assert seen(mall, "/last") == before
    finally:
        last.signal(signal.SIGCONT)
    wait_until("a dead Envoy is started again", lambda: mall.ask("/").status == 200, LAST_RETRY_S + 60)


def envoy_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])
