"""The configuration printed on the slides that this project comes from, unchanged: it does what the slides say it does.

The documents are those of `tests/controlplane/golden/l7/decks.yaml` before its comment; each slide stands alone.
"""

from collections import Counter
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.lab

DECKS = Path(__file__).parents[1] / "controlplane/golden/l7/decks.yaml"
_PRINTED = DECKS.read_text().partition("# What the slides")[0]
SLIDES = {each["metadata"]["name"]: each for each in yaml.safe_load_all(_PRINTED) if each}
# The fault's two seconds as a client may see them: Envoy counts from the start of its loop's round.
JASONS_S = 1.9
# What the slides take for granted: the services of Consul, and which pods have which version.
SERVICES = "".join(
    f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}-consul, labels: {{istio.io/use-waypoint: way}}}}
spec:
  hosts: [{name}.service.consul]
  addresses: [{vip}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {{labels: {{app: {app}}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}-versions}}
spec:
  host: {name}.service.consul
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
"""
    for name, app, vip in (
        ("reviews", "reviews", "10.96.240.1"),
        ("ratings", "ratings", "10.96.240.2"),
        ("productpage", "ratings", "10.96.240.3"),
    )
)
REVIEWS, RATINGS, PRODUCTPAGE = (f"http://10.96.240.{n}" for n in (1, 2, 3))


@pytest.fixture
def slide(mall):
    """Applies one slide's document, as it is printed."""

    def apply(name):
        mall.apply(SERVICES + yaml.safe_dump(SLIDES[name]))
        return mall

    return apply


def test_reviews_v2_is_launched_to_iphones_alone(slide):
    mall = slide("reviews-v2-launch")
    mall.until(lambda: mall.counted(f"{REVIEWS}/", 20, "-A", "iPhone") == {"v2": 20})
    # A full match: what a real telephone sends is more than that.
    for agent in ("Android", "Mozilla/5.0 (iPhone)", ""):
        assert mall.counted(f"{REVIEWS}/", 5, "-A", agent) == {"v1": 5}


def test_jason_waits_two_seconds_for_ratings_and_nobody_else_does(slide):
    mall = slide("ratings")
    mall.until(lambda: mall.ask(f"{RATINGS}/", "-H", "cookie: user=jason").seconds > JASONS_S)
    assert mall.ask(f"{RATINGS}/", "-H", "cookie: user=jason").version == "v1"
    alice = ("-H", "cookie: user=alice")
    mall.until(lambda: all(each.seconds < JASONS_S for each in mall.ask_many(f"{RATINGS}/", 5, *alice)))


def test_reviews_has_a_second_to_answer(slide):
    mall = slide("reviews")
    mall.until(lambda: mall.counted(f"{REVIEWS}/", 20) == {"v2": 20})
    assert mall.ask(f"{REVIEWS}/delay/40").status == 504
    mall.until(lambda: mall.ask(f"{REVIEWS}/delay/0.2").status == 200)


def test_a_second_request_waits_for_productpage_and_a_third_is_refused_at_once(slide):
    """One connection, one waiting: the slide's circuit breaker, under load."""
    mall = slide("productpage")
    mall.until(lambda: mall.ask(f"{PRODUCTPAGE}/").status == 200)
    one = f"curl -s -o /dev/null -w '%{{http_code}} ' {PRODUCTPAGE}/delay/2"
    command = f"for i in 1 2 3 4 5 6; do {one} & done; wait"

    def statuses():
        return Counter(mall.mesh.exec(mall.alice, ["bash", "-c", command]).stdout.split())

    mall.until(lambda: statuses() == {"200": 2, "503": 4}, "one is served, one waits, the others are refused")


def test_all_slides_in_one_file_hold_together_as_they_are_written(mall):
    """Where two slides are about the same host the first one counts, and the second is not silently lost."""
    mall.apply(SERVICES + _PRINTED)
    mall.until(lambda: mall.counted(f"{REVIEWS}/", 10, "-A", "iPhone") == {"v2": 10})
    assert mall.counted(f"{REVIEWS}/", 10, "-A", "Android") == {"v1": 10}
    assert mall.ask(f"{RATINGS}/", "-H", "cookie: user=jason").seconds > JASONS_S
    told = [each["code"] for each in mall.mesh.ask("controlplane", "/analysis")]
    assert "IST0109" in told


def test_productpage_is_ejected_after_one_answer_of_a_broken_gateway(slide):
    mall = slide("productpage")
    mall.until(lambda: mall.ask(f"{PRODUCTPAGE}/").status == 200)
    mall.until(lambda: mall.ask(f"{PRODUCTPAGE}/status/502").status == 503, "its only endpoint is ejected")
    assert mall.ask(f"{PRODUCTPAGE}/").status == 503
