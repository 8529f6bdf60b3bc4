"""What somebody else did to a pod's capture: every backend names it, and putting it in again mends it."""

import fcntl

import pytest

from nodeagent.redirect.backend import RedirectError
from tests.lab.captures import WAYS, Capture
from tests.lab.pairs import pair

pytestmark = pytest.mark.lab

OUT, IN = "NODEMESH_OUTPUT", "NODEMESH_PRERT"


@pytest.fixture(scope="module", params=WAYS)
def places(request):
    with pair() as (pod, _):
        yield pod, Capture(request.param, pod)


@pytest.fixture
def capture(places):
    yield places[1]
    places[1].take_out()


@pytest.fixture
def pod(places):
    return places[0]


def test_the_rules_come_and_go_without_a_trace_however_often(capture):
    capture.put()
    capture.take_out()
    before = capture.left()
    assert len(capture.compare()) > 8
    for _ in range(2):
        capture.put()
        assert capture.compare() == []
    for _ in range(2):
        capture.take_out()
    assert capture.left() == before


NFT = {
    "nft flush chain inet nodemesh nat-output": ["chain nat-output lacks 9 of its 9 rules"],
    "nft delete table inet nodemesh": [
        "the chains of table inet nodemesh are not ours",
        "chain raw-prerouting lacks 1 of its 1 rules",
        "chain raw-output lacks 1 of its 1 rules",
        "chain mangle-prerouting lacks 1 of its 1 rules",
        "chain mangle-output lacks 1 of its 1 rules",
        "chain nat-prerouting lacks 2 of its 2 rules",
        "chain nat-output lacks 9 of its 9 rules",
    ],
    "nft insert rule inet nodemesh nat-output accept": ["chain nat-output has foreign rules or another order"],
}
IPTABLES = {
    f"iptables -t nat -F {OUT}": [f"chain {OUT} of IPv4 table nat lacks 5 of its 5 rules"],
    f"ip6tables -t nat -D {OUT} 1": [f"chain {OUT} of IPv6 table nat lacks 1 of its 5 rules"],
    f"iptables -t nat -I {OUT} 1 -j ACCEPT": [f"chain {OUT} of IPv4 table nat has foreign rules or another order"],
    "iptables -t nat -I OUTPUT 1 -p tcp -j ACCEPT": [f"OUTPUT of IPv4 table nat does not begin with the jump to {OUT}"],
    "ip6tables -t mangle -F PREROUTING": [f"PREROUTING of IPv6 table mangle does not begin with the jump to {IN}"],
    f"iptables -t raw -A OUTPUT -j {OUT}": [f"OUTPUT of IPv4 table raw does not begin with the jump to {OUT}"],
}
ANY = {
    "ip -6 rule del pref 32764": ["the IPv6 rule 32764 for mark 0x111 is missing"],
    "ip route flush table 100": ["the IPv4 route of table 100 is missing"],
}


def drifts(way):
    if way == "nft":
        return NFT | ANY
    kind = way.removeprefix("iptables-")
    return {change.replace("tables ", f"tables-{kind} "): said for change, said in IPTABLES.items()} | ANY


def test_what_somebody_changed_is_named_and_repaired(pod, capture):
    capture.put()
    for change, said in drifts(capture.name).items():
        pod.command(*change.split())
        assert capture.compare() == said, change
        capture.put()
        assert capture.compare() == [], change


def test_a_foreign_holder_of_the_xtables_lock_delays_nobody(pod, capture, tmp_path):
    """The kernel's lock file of the node: a flock that never ends."""
    with open("/run/xtables.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        capture.put()
        assert capture.compare() == []
        capture.take_out()


@pytest.mark.parametrize("places", [way for way in WAYS if way != "nft"], indirect=True)
def test_one_family_that_cannot_be_captured_leaves_the_other_untouched(places, capture, tmp_path, monkeypatch):
    """Half a capture would send every other connection in the clear. nft has one transaction for both."""
    kind = capture.name.removeprefix("iptables-")
    capture.put()
    capture.take_out()
    before = capture.left()
    broken = tmp_path / f"ip6tables-{kind}-restore"
    broken.write_text("#!/bin/sh\necho 'no such table' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("nodeagent.redirect.xtables.PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(RedirectError, match=f"ip6tables-{kind}-restore refused: no such table"):
        capture.put()
    assert capture.left() == before
