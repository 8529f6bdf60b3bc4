import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.backoff import Backoff
from ztunnel.rotation import Rotation, Urgency

HOUR = 3600.0


def test_waits_double_to_the_cap_and_start_over_after_success():
    backoff = Backoff()
    assert [backoff.failed() for _ in range(4)] == [0.010, 0.020, 0.040, 0.080]
    assert max(backoff.failed() for _ in range(20)) == 15.0
    backoff.worked()
    assert backoff.failed() == 0.010


def test_what_is_wanted_is_asked_for_once():
    rotation = Rotation()
    rotation.want("a", Urgency.PREFETCH, now=0)
    assert rotation.wake_at() == 0
    assert rotation.due(0) == ["a"]
    rotation.want("a", Urgency.NOW, now=0)
    assert rotation.due(0) == []
    assert rotation.wake_at() is None


@pytest.mark.parametrize(("chance", "share"), [(-1, 0.4), (0, 0.5), (1, 0.6)])
def test_renewal_comes_at_half_of_the_lifetime_give_or_take_a_tenth(chance, share):
    rotation = Rotation()
    rotation.want("a", Urgency.NOW, now=0)
    rotation.due(0)
    assert rotation.issued("a", 0, 24 * HOUR, now=0, chance=chance)
    assert rotation.wake_at() == pytest.approx(share * 24 * HOUR)
    assert rotation.due(share * 24 * HOUR - 1) == []
    assert rotation.due(share * 24 * HOUR + 1) == ["a"]
    assert rotation.expiries() == {"a": 24 * HOUR}


def test_a_certificate_past_its_half_is_not_renewed_in_a_tight_loop():
    rotation = Rotation()
    rotation.want("a", Urgency.NOW, now=100)
    rotation.due(100)
    rotation.issued("a", 0, 101, now=100, chance=0)
    assert rotation.wake_at() == 101


def test_a_failure_is_tried_again_after_one_second_doubling_to_fifteen():
    rotation, now, waits = Rotation(), 0.0, []
    rotation.want("a", Urgency.NOW, now)
    for _ in range(7):
        assert rotation.due(now) == ["a"]
        rotation.failed("a", "no CA", now)
        rotation.want("a", Urgency.NOW, now)  # impatience changes nothing
        waits.append(rotation.wake_at() - now)
        now = rotation.wake_at()
    assert waits == [1, 2, 4, 8, 15, 15, 15]
    assert rotation.troubles() == {"a": "no CA"}


def test_after_a_change_of_configuration_the_refused_are_tried_again_soon():
    rotation = Rotation()
    for name in ("refused", "fine"):
        rotation.want(name, Urgency.PREFETCH, 0)
    rotation.due(0)
    rotation.failed("refused", "no such workload", 0)
    rotation.issued("fine", 0, HOUR, now=0, chance=0)
    rotation.hurry(0.5)
    assert rotation.wake_at() == 0.7
    rotation.hurry(0.6)
    assert rotation.wake_at() == 0.7


def test_waiting_connections_go_first_then_prefetches_then_renewals():
    rotation = Rotation(concurrency=1)
    rotation.want("old", Urgency.NOW, 0)
    rotation.due(0)
    rotation.issued("old", 0, 10, now=0, chance=0)
    rotation.want("soon", Urgency.PREFETCH, 6)
    rotation.want("now", Urgency.NOW, 7)
    order = []
    for _ in range(3):
        (name,) = rotation.due(8)
        order.append(name)
        rotation.issued(name, 8, 8 + HOUR, now=8, chance=0)
    assert order == ["now", "soon", "old"]


def test_not_more_than_eight_are_asked_for_at_once():
    rotation = Rotation()
    for number in range(10):
        rotation.want(f"id-{number}", Urgency.PREFETCH, 0)
    first = rotation.due(0)
    assert len(first) == 8
    assert rotation.wake_at() is None
    rotation.failed(first[0], "no", 0)
    assert len(rotation.due(0)) == 1


def test_what_is_no_longer_used_is_neither_renewed_nor_kept():
    rotation = Rotation()
    rotation.want("a", Urgency.NOW, 0)
    rotation.due(0)
    rotation.unused("a")
    assert not rotation.issued("a", 0, HOUR, now=0, chance=0)
    assert not rotation.failed("a", "late", 0)
    assert (rotation.wake_at(), rotation.expiries()) == (None, {})


steps = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["now", "prefetch", "ok", "fail", "unused"])))


@given(steps)
def test_whatever_happens_nothing_wanted_is_ever_forgotten(story):
    rotation, now, wanted, asking = Rotation(concurrency=2), 0.0, set(), set()
    for name, step in story:
        now += 1
        if step in ("now", "prefetch"):
            rotation.want(name, Urgency[step.upper()], now)
            wanted.add(name)
        elif step == "unused":
            rotation.unused(name)
            wanted.discard(name)
            asking.discard(name)
        elif name in asking:
            asking.discard(name)
            if step == "ok":
                rotation.issued(name, now, now + HOUR, now, 0)
            else:
                rotation.failed(name, "no", now)
        asking |= set(rotation.due(now))
        assert asking <= wanted
        assert wanted == asking or rotation.wake_at() is not None or len(asking) >= 2
