"""The demo's part on layer 7: three services of two versions behind a waypoint, and what is asked of it, counted."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lab import apps, documents, proxies
from lab.asking import Answer, ask_many, counted
from lab.cluster import Cluster, Pod
from lab.demo_parts import Stage
from lab.documents import AMBIENT, PodSpec
from lab.processes import wait_until
from lab.report import Report, median, ms

NAMESPACE = "books"
SERVICES = ("catalog", "reviews", "ratings")
EFFECT_S = 60.0
CHANGES = 15
FEW = 9
# What the metrics say of a request that no application answered.
_NONE = ("-", "unknown")
FELT_BUDGET_S = 0.100
_SERIES = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\d+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Shop:
    report: Report
    cluster: Cluster
    alice: Pod
    bob: Pod
    way: Pod

    def ask(self, service: str, path: str, times: int, *options: str, by: Pod | None = None) -> list[Answer]:
        return ask_many(self.cluster, by or self.alice, f"http://{self.cluster.vip(service)}{path}", times, *options)

    def apply(self, text: str, felt: Callable[[], bool]) -> float:
        """Seconds from the saved file to its effect on a request."""
        self.cluster.apply("demo-layer7", text)
        began = time.perf_counter()
        wait_until("the change is felt", felt, EFFECT_S, step_s=0.002)
        return time.perf_counter() - began


def waypoint(stage: Stage) -> None:
    """Everything of this part."""
    shop = build(stage)
    for show in (routes, canary, fault, denial, mirror, retry, latency, graph):
        show(shop)


def build(stage: Stage) -> Shop:
    cluster = stage.cluster
    began = time.monotonic()
    cluster.apply(f"namespace-{NAMESPACE}", documents.namespace(NAMESPACE, {**AMBIENT, "istio.io/use-waypoint": "way"}))
    proxies.apply(cluster, "way", NAMESPACE)
    way = proxies.add(cluster, "way", "node1", NAMESPACE)
    stage.report.check("a waypoint is ready: pod, certificate, configuration", ms(time.monotonic() - began), True)
    alice, bob = (cluster.add_pod(PodSpec(name, "node1", NAMESPACE), with_apps=False) for name in ("alice", "bob"))
    for name in SERVICES:
        vip = cluster.add_service(name, {80: apps.HTTP_PORT}, NAMESPACE)
        cluster.apply(f"service-{NAMESPACE}-{name}", documents.http_service(NAMESPACE, name, [vip]))
        for number in (1, 2):
            _version(cluster, name, number)
    shop = Shop(stage.report, cluster, alice, bob, way)
    for name in SERVICES:
        wait_until(f"{name} answers in both versions", lambda name=name: len(shop_versions(shop, name)) == 2, EFFECT_S)  # type: ignore[misc]
    return shop


def _version(cluster: Cluster, name: str, number: int) -> None:
    labels = {"version": f"v{number}"}
    spec = PodSpec(f"{name}-v{number}", f"node{number}", NAMESPACE, name, name, labels)
    pod = cluster.add_pod(spec, with_apps=False)
    cluster.start_in(pod, f"echo-{pod.name}", apps.echo(pod.name, f"v{number}"))


def shop_versions(shop: Shop, name: str) -> set[str]:
    return {each.version for each in shop.ask(name, "/", 20) if each.version}


SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: books}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
"""


def http(rules: str) -> str:
    return f"""{SUBSETS}apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: books}}
spec:
  hosts: [reviews]
  http:
{rules}
"""


V1, V2 = (f"{{destination: {{host: reviews, subset: {version}}}}}" for version in ("v1", "v2"))
JASON = ["-H", "end-user: jason"]


def routes(shop: Shop) -> None:
    rules = f"  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]\n    route: [{V2}]\n  - route: [{V1}]"
    # Of what both versions answer by turns without it, so many alike are no luck.
    shop.apply(http(rules), lambda: counted(shop.ask("reviews", "/", 20)) == {"v1": 20})
    seen = [counted(shop.ask("reviews", "/", 50, *options)) for options in (JASON, [])]
    fine = seen == [{"v2": 50}, {"v1": 50}]
    shop.report.check("route by header: jason, everybody else", " / ".join(map(said, seen)), fine, "v2 50 / v1 50")


def canary(shop: Shop) -> None:
    rules = (
        "  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 90}\n"
        "    - {destination: {host: reviews, subset: v2}, weight: 10}"
    )
    shop.apply(http(rules), lambda: "v2" in counted(shop.ask("reviews", "/", 20)))
    seen = counted(shop.ask("reviews", "/", 1000))
    fine = set(seen) == {"v1", "v2"} and 50 <= seen["v2"] <= 160
    shop.report.check("canary 90/10, 1000 requests", said(seen), fine, "v2 50 to 160: one run in 10⁸ is outside")


def fault(shop: Shop) -> None:
    rules = (
        "  - match: [{headers: {end-user: {exact: jason}}}]\n"
        "    fault: {delay: {percentage: {value: 100}, fixedDelay: 2s}}\n"
        f"    route: [{V1}]\n  - route: [{V1}]"
    )
    shop.apply(http(rules), lambda: shop.ask("reviews", "/", 1, *JASON)[0].seconds > 1.9)
    times = [shop.ask("reviews", "/", 1, *options)[0].seconds for options in (JASON, [])]
    fine = times[1] < 1.9 < times[0]
    shop.report.check("fault: 2 s for jason; everybody else", f"{ms(times[0])}; {ms(times[1])}", fine, "2 s; at once")


DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-posts-by-bob, namespace: books}
spec:
  targetRefs: [{kind: Service, group: "", name: ratings}]
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/books/sa/bob]}}]
    to: [{operation: {methods: [POST]}}]
"""


def denial(shop: Shop) -> None:
    post = ["-X", "POST"]
    shop.apply(DENY, lambda: shop.ask("ratings", "/", 1, *post, by=shop.bob)[0].status == 403)
    seen = [
        shop.ask("ratings", "/", 1, *options, by=pod)[0].status
        for pod, options in ((shop.bob, post), (shop.bob, []), (shop.alice, post))
    ]
    shop.report.equal("denied by identity and method: bob POST, bob GET, alice POST", str(seen), "[403, 200, 200]")


def mirror(shop: Shop) -> None:
    rules = f"  - route: [{V1}]\n    mirror: {{host: reviews, subset: v2}}"
    copy = shop.cluster.pods["reviews-v2"]
    warm = ("reviews", "/warm", 8)
    shop.apply(http(rules), lambda: counted(shop.ask(*warm)) == {"v1": 8} and _seen(shop, copy, "/warm") > 8)
    answers = counted(shop.ask("reviews", "/mirrored", 50))
    wait_until("the copies arrive", lambda: _seen(shop, copy, "/mirrored") >= 50, EFFECT_S)
    seen = f"answered by {said(answers)}; copies at v2: {_seen(shop, copy, '/mirrored')}"
    shop.report.equal("mirror, 50 requests", seen, "answered by v1 50; copies at v2: 50")


def _seen(shop: Shop, pod: Pod, path: str) -> int:
    [answer] = ask_many(shop.cluster, pod, f"http://127.0.0.1:{apps.HTTP_PORT}/seen", 1)
    return int(answer.told.get(path, 0))


def retry(shop: Shop) -> None:
    rules = f"  - retries: {{attempts: 2, retryOn: 5xx}}\n    route: [{V1}]"
    key = ["-H", "x-key: demo"]
    shop.apply(http(rules), lambda: shop.ask("reviews", "/flaky/2", 1, "-H", "x-key: warm")[0].status == 200)
    seen = shop.ask("reviews", "/flaky/2", 1, *key)[0]
    told = f"{seen.status}, attempt {seen.header('x-envoy-attempt-count')}"
    shop.report.equal("retry of a request that fails twice", told, "200, attempt 3")


def latency(shop: Shop) -> None:
    """A file is saved; how long until a request is answered by it? Asked every few milliseconds from a pod."""
    felt = []
    for number in range(CHANGES):
        status = 400 + number
        rules = f"  - directResponse: {{status: {status}}}"
        felt.append(shop.apply(http(rules), lambda status=status: _status(shop) == status))  # type: ignore[misc]
    seen = f"{ms(median(felt))}, longest {ms(max(felt))}"
    fine = median(felt) <= FELT_BUDGET_S
    shop.report.check(f"a route change is felt after, p50 of {CHANGES}", seen, fine, f"≤ {ms(FELT_BUDGET_S)}")
    shop.apply(http(f"  - route: [{V1}]"), lambda: _status(shop) == 200)


def _status(shop: Shop) -> int:
    return shop.cluster.http_status(shop.alice.netns, f"{shop.cluster.vip('reviews')}/")


def graph(shop: Shop) -> None:
    """Who called whom, from the waypoint's own metrics."""
    edges = edges_of(proxies.metrics(shop.cluster, shop.way))
    shop.report.check("service graph of what just happened, edges", str(len(edges)), len(edges) >= 6, "at least 6")
    for (source, service, version), codes in sorted(edges.items()):
        shop.report.note(f"     {source} → {service} {version or '(answered by the waypoint)'}: {said(codes)}")


def edges_of(text: str) -> dict[tuple[str, str, str], Counter[str]]:
    """Source, service and version that answered, with the number of each status."""
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for labels, value in requests_total(text):
        version = labels["destination_version"]
        key = (labels["source_workload"], labels["destination_service_name"], "" if version in _NONE else version)
        found.setdefault(key, Counter())[labels["response_code"]] += value
    return found


def requests_total(text: str) -> Iterator[tuple[dict[str, str], int]]:
    for line in text.splitlines():
        if (match := _SERIES.fullmatch(line)) and match["name"] == "istio_requests_total":
            yield dict(_LABEL.findall(match["labels"])), int(match["value"])


def said(counts: Counter[str]) -> str:
    """Many different statuses are those of the changes that were timed: from which to which, and how many in all."""
    if len(counts) > FEW:
        return f"{min(counts)} to {max(counts)} {counts.total()}"
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
