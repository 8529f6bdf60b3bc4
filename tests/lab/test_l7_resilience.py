"""Timeouts, retries, circuit breakers, ejection, locality, hashing, faults, limits through a waypoint."""

import pytest

from lab.processes import wait_until
from tests.lab.test_l7_routing import SUBSETS, routes, to

pytestmark = pytest.mark.lab

LIMIT = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
"""


def policy(spec: str, host: str = "reviews") -> str:
    lines = "\n".join(f"    {line}" for line in spec.strip("\n").split("\n"))
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}}}
spec:
  host: {host}
  trafficPolicy:
{lines}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
"""


def test_a_timeout_ends_a_request(mall):
    mall.apply(routes("- timeout: 1s\n  route: [{destination: {host: reviews}}]"))
    mall.until(lambda: mall.ask("/delay/40").status == 504)
    answer = mall.ask("/delay/40")
    assert 0.9 < answer.seconds < 30
    mall.until(lambda: mall.ask("/delay/0.05").status == 200)


def test_without_a_timeout_nothing_ends_a_slow_request(mall):
    assert mall.ask("/delay/1.2").status == 200


def test_retries_hide_what_fails_now_and_then(mall):
    once = SUBSETS + routes(f"- retries: {{attempts: 2, retryOn: 5xx}}\n  route: [{to('v1')}]")
    mall.apply(once)
    mall.until(lambda: mall.ask("/flaky/2", "-H", "x-key: ready").status == 200)
    assert mall.ask("/flaky/2", "-H", "x-key: two").status == 200
    assert mall.ask("/flaky/3", "-H", "x-key: three").status == 503
    assert mall.ask("/flaky/1", "-H", "x-key: attempt").header("x-envoy-attempt-count") == "2"


def test_attempts_zero_is_no_retry(mall):
    mall.apply(SUBSETS + routes(f"- retries: {{attempts: 0}}\n  route: [{to('v1')}]"))
    mall.until(lambda: mall.ask("/flaky/1", "-H", "x-key: zero").status == 503)


def test_each_try_has_its_own_timeout_within_the_whole(mall):
    mall.apply(
        SUBSETS
        + routes(f"""
- timeout: 4s
  retries: {{attempts: 5, perTryTimeout: 1.1s, retryOn: 5xx}}
  route: [{to("v1")}]
""")
    )
    mall.until(lambda: mall.ask("/delay/41").status == 504)
    path = "/delay/40"
    before = mall.seen(mall.reviews[0]).get(path, 0)
    answer = mall.ask(path)
    assert answer.status == 504
    assert 3.9 < answer.seconds < 30
    assert mall.seen(mall.reviews[0])[path] - before in (2, 3, 4)


def test_a_tunnel_without_its_application_is_tried_elsewhere(mall):
    """The tunnel of a dead application answers 503 on its CONNECT; the other endpoint serves."""
    extra = mall.pod("reviews-dead", "node2", "reviews", "v3", account="reviews")
    try:
        mall.apply(
            routes(
                "- retries: {attempts: 3, retryOn: 'connect-failure,reset'}\n  route: [{destination: {host: reviews}}]"
            )
        )
        mall.until(lambda: set(mall.counted("/", 30)) == {"v1", "v2"})
        assert set(mall.counted("/", 100)) == {"v1", "v2"}
    finally:
        mall.mesh.delete_pod(extra.name)


def test_a_full_pool_refuses_at_once(mall):
    mall.apply(
        policy(
            "connectionPool: {tcp: {maxConnections: 1},"
            " http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}"
        )
    )
    one = f"curl -s -o /dev/null -w '%{{http_code}}\\n' http://{mall.vip('reviews')}/delay/2"
    command = f"for i in 1 2 3 4 5 6; do {one} & done; wait"

    def statuses():
        return sorted(mall.mesh.exec(mall.alice, ["bash", "-c", command]).stdout.split())

    mall.until(lambda: {"200", "503"} == set(statuses()))


def test_a_retry_budget_limits_how_many_try_again(mall):
    mall.apply(
        policy("retryBudget: {percent: 1, minRetryConcurrency: 1}")
        + routes("- retries: {attempts: 10, retryOn: 5xx}\n  route: [{destination: {host: reviews}}]")
    )
    mall.until(lambda: mall.ask("/status/503").status == 503)
    stats = "/envoy/stats?filter=reviews.*retry_overflow"
    command = f"for i in $(seq 20); do curl -s -o /dev/null http://{mall.vip('reviews')}/status/503 & done; wait"

    def overflowed():
        mall.mesh.exec(mall.alice, ["bash", "-c", command])
        text = mall.admin(stats)
        return any(int(line.rpartition(": ")[2]) > 0 for line in text.splitlines())

    mall.until(overflowed)


def test_an_endpoint_that_fails_is_left_alone(mall):
    mall.apply(
        policy(
            "outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 50}"
        )
        + routes("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    )
    mall.until(lambda: set(mall.counted("/", 30)) == {"v1", "v2"})
    assert mall.ask("/status/500").status == 500
    mall.until(lambda: len(mall.counted("/", 30)) == 1, "one of two is ejected")


def test_the_near_zone_is_used_until_it_fails(mall):
    """The waypoint is on node1 (zone-node1), as is reviews-v1."""
    mall.apply(
        policy("""
loadBalancer: {localityLbSetting: {enabled: true, failoverPriority: ["topology.kubernetes.io/zone"]}}
outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}
""")
    )
    mall.until(lambda: mall.counted("/", 30) == {"v1": 30})
    mall.apply(routes("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]"))
    mall.until(lambda: mall.ask("/status/500").status == 500)
    mall.until(lambda: "v2" in mall.counted("/", 20), "the far zone serves while the near one is ejected")


def test_localities_get_the_shares_that_they_are_given(mall):
    mall.apply(
        policy("""
loadBalancer:
  localityLbSetting:
    distribute:
    - {from: "lab/*", to: {"lab/zone-node1/*": 80, "lab/zone-node2/*": 20}}
""")
    )
    mall.until(lambda: 600 < mall.counted("/", 800)["v1"] < 690)


@pytest.mark.parametrize(
    "balancer", ["consistentHash: {httpHeaderName: x-user}", "consistentHash: {httpHeaderName: x-user, maglev: {}}"]
)
def test_a_hash_of_a_header_is_sticky(mall, balancer):
    mall.apply(policy(f"loadBalancer: {{{balancer}}}"))
    users = [f"user-{n}" for n in range(30)]

    def by_user():
        return {user: set(mall.counted("/", 3, "-H", f"x-user: {user}")) for user in users}

    mall.until(lambda: all(len(versions) == 1 for versions in by_user().values()))
    assert set().union(*by_user().values()) == {"v1", "v2"}


def test_a_cookie_is_made_and_is_sticky(mall):
    mall.apply(policy("loadBalancer: {consistentHash: {httpCookie: {name: stay, ttl: 60s}}}"))
    mall.until(lambda: "stay=" in mall.ask("/").headers.get("set-cookie", ""))
    cookie = mall.ask("/").headers["set-cookie"].partition(";")[0]
    assert len(mall.counted("/", 20, "-H", f"cookie: {cookie}")) == 1


SESSION = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: stay}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews}]
  rules: [{sessionPersistence: {sessionName: stay}, backendRefs: [{name: reviews, port: 80}]}]
"""


def test_a_session_stays_with_the_endpoint_that_began_it(mall):
    """For either endpoint there is a client that stays there."""
    mall.apply(SESSION)
    wait_until("a cookie is made", lambda: "stay=" in mall.ask("/").headers.get("set-cookie", ""), 60)
    stayed = set()
    for answer in mall.ask_many("/", 20):
        cookie = answer.headers["set-cookie"].partition(";")[0]
        if answer.version not in stayed:
            assert mall.counted("/", 20, "-H", f"cookie: {cookie}") == {answer.version: 20}
            stayed.add(answer.version)
    assert stayed == {"v1", "v2"}


@pytest.mark.parametrize("simple", ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])
def test_simple_balancers_use_every_endpoint(mall, simple):
    mall.apply(policy(f"loadBalancer: {{simple: {simple}}}"))
    mall.until(lambda: set(mall.counted("/", 40)) == {"v1", "v2"})


def test_a_delay_is_for_whom_it_is_meant(mall):
    mall.apply(
        routes("""
- match: [{headers: {end-user: {exact: jason}}}]
  fault: {delay: {percentage: {value: 100}, fixedDelay: 3s}}
  route: [{destination: {host: reviews}}]
- route: [{destination: {host: reviews}}]
""")
    )
    mall.until(lambda: mall.ask("/", "-H", "end-user: jason").seconds > 2.9)
    mall.until(lambda: mall.ask("/").seconds < 2.9)


def test_an_abort_takes_its_share(mall):
    mall.apply(
        routes(
            "- fault: {abort: {percentage: {value: 50}, httpStatus: 418}}\n  route: [{destination: {host: reviews}}]"
        )
    )
    mall.until(lambda: mall.counted("/", 60)["418"] > 0)
    assert 130 < mall.counted("/", 400)["418"] < 270
