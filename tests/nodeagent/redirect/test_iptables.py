"""The plan's text for iptables-restore against golden files; what iptables-save lists for it is read back."""

from pathlib import Path

import pytest

from nodeagent.redirect import iptables
from nodeagent.redirect.plan import Options, make_plan
from tests.nodeagent.redirect.test_plan import VARIANTS

HERE = Path(__file__).parent / "golden"
DEFAULT = make_plan(Options())
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def listing(text):
    """What iptables-save would print after `text` went in: an insertion becomes the first rule of its chain."""
    return text.replace("-I PREROUTING 1", "-A PREROUTING").replace("-I OUTPUT 1", "-A OUTPUT")


@VERSIONS
def test_the_rendered_text_is_the_golden_one(version):
    assert iptables.render(DEFAULT, version) == (HERE / f"default.ip{version}").read_text()


@VERSIONS
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_went_in_is_read_back_to_the_same_plan(variant, version):
    plan = make_plan(VARIANTS[variant])
    assert iptables.differences(plan, version, iptables.read(listing(iptables.render(plan, version)), version)) == []


@VERSIONS
def test_every_rule_stands_in_one_family_or_in_both(version):
    there = iptables.read(listing(iptables.render(DEFAULT, version)), version)
    addresses = {4: {"127.0.0.0/8"}, 6: {"::1"}}[version]
    named = {m.value for rules in there.rules.values() for r in rules for m in r.when if "ADDR" in m.field.name}
    assert named <= addresses
    assert sum(map(len, there.rules.values())) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("-j REDIRECT --to-ports 15001", "-j REDIRECT --to-ports 15002"), "lacks 1 of its 5 rules"),
        (("! --mark 0x539/0xfff -j REDIRECT --to-ports 15001", "-j REDIRECT --to-ports 15001"), "lacks 1 of its 5"),
        (("-A OUTPUT -j NODEMESH_OUTPUT", "-A OUTPUT -j ACCEPT\n-A OUTPUT -j NODEMESH_OUTPUT"), "does not begin with"),
        (("-A NODEMESH_PRERT", "-A NODEMESH_PRERT -m owner --uid-owner 0 -j ACCEPT\n-A NODEMESH_PRERT"), "foreign"),
        (("-o lo ! -d", "-o eth0 ! -d"), "lacks 1 of its 5 rules"),
    ],
)
def test_what_differs_is_named(change, said):
    text = listing(iptables.render(DEFAULT, 4))
    assert change[0] in text
    found = iptables.differences(DEFAULT, 4, iptables.read(text.replace(*change), 4))
    assert any(said in phrase for phrase in found)


def test_jumps_that_are_there_are_taken_away_before_one_goes_in():
    seen = iptables.read(
        "*nat\n:NODEMESH_OUTPUT - [0:0]\n-A OUTPUT -j NODEMESH_OUTPUT\n-A OUTPUT -j NODEMESH_OUTPUT\n", 4
    )
    assert iptables.render(DEFAULT, 4, seen).count("-D OUTPUT -j NODEMESH_OUTPUT") == 2
    lines = ["*nat", *["-D OUTPUT -j NODEMESH_OUTPUT"] * 2, "-F NODEMESH_OUTPUT", "-X NODEMESH_OUTPUT", "COMMIT", ""]
    assert iptables.removal(seen) == "\n".join(lines)


def test_where_nothing_is_nothing_has_to_be_taken_out():
    assert iptables.removal(iptables.read("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n", 4)) == ""
