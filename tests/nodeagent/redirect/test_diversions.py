"""Which rules of legacy tables take TCP from a capture beside them, and which are none of our business."""

import pytest

from nodeagent.redirect import diversions, iptables
from nodeagent.redirect.plan import Options, make_plan

ELSEWHERE = "sends TCP elsewhere"
UNTRACKED = "takes TCP out of connection tracking, without which nothing is captured"
MARKS = "changes marks under 0xfff, by which capture tells the tunnel"


def found(table, *rules, version=4, backend="nft"):
    lines = [f"*{table}", *rules, "COMMIT", ""]
    return diversions.find("\n".join(lines), version, backend)


@pytest.mark.parametrize(
    ("table", "rule", "effect"),
    [
        ("nat", "-A OUTPUT -p tcp -j REDIRECT --to-ports 9999", ELSEWHERE),
        ("nat", "-A OUTPUT -j DNAT --to-destination 10.0.0.1", ELSEWHERE),
        ("nat", "-A PREROUTING ! -p udp -j NETMAP --to 10.0.0.0/8", ELSEWHERE),
        ("nat", "-A OUTPUT -d 127.0.0.0/8 -p tcp -j REDIRECT --to-ports 9999", ELSEWHERE),
        ("mangle", "-A PREROUTING -p tcp -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1", ELSEWHERE),
        ("raw", "-A OUTPUT -p tcp -j NOTRACK", UNTRACKED),
        ("raw", "-A PREROUTING -j CT --notrack", UNTRACKED),
        ("mangle", "-A OUTPUT -m owner --uid-owner 7 -j MARK --set-xmark 0x539/0xfff", MARKS),
        ("mangle", "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", MARKS),
    ],
)
def test_what_takes_tcp_is_named_with_its_rule(table, rule, effect):
    assert found(table, rule) == [f"IPv4 legacy table {table} {effect}: {rule}"]


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("nat", "-A OUTPUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 53"),
        ("nat", "-A OUTPUT ! -p tcp -j DNAT --to-destination 10.0.0.1"),
        ("nat", "-A POSTROUTING -p tcp -j MASQUERADE"),
        ("nat", "-A OUTPUT -d 127.0.0.11/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.11:40001"),
        ("nat", "-A OUTPUT -p tcp -j ACCEPT"),
        ("mangle", "-A OUTPUT -j MARK --set-xmark 0x4000/0x4000"),
        ("mangle", "-A OUTPUT -p tcp -j TOS --set-tos 0x10/0x3f"),
        ("raw", "-A OUTPUT -j CT --zone 5"),
        ("nat", "-A NOBODY-JUMPS-HERE -p tcp -j REDIRECT --to-ports 9999"),
    ],
)
def test_what_takes_no_tcp_is_not_mentioned(table, rule):
    assert found(table, rule) == []


def test_chains_are_followed_by_jump_and_goto_also_round_and_round():
    rules = ("-A OUTPUT -j A", "-A A -g B", "-A B -j A", "-A B -p tcp -j REDIRECT --to-ports 1")
    assert found("nat", *rules, version=6) == [f"IPv6 legacy table nat {ELSEWHERE}: {rules[3]}"]


def test_marks_and_tracking_are_nothing_to_bpf():
    rules = ("-A OUTPUT -p tcp -j NOTRACK", "-A OUTPUT -j MARK --set-xmark 0x539/0xfff")
    assert [found(table, rule, backend="bpf") for table, rule in zip(("raw", "mangle"), rules, strict=True)] == [[], []]
    assert found("nat", "-A OUTPUT -p tcp -j REDIRECT --to-ports 1", backend="bpf") != []


def test_our_own_legacy_rules_are_foreign_only_where_something_else_captures():
    text = iptables.render(make_plan(Options()), 4).replace("-I OUTPUT 1", "-A OUTPUT")
    assert diversions.find(text, 4, "iptables") == []
    assert any("REDIRECT --to-ports 15001" in phrase for phrase in diversions.find(text, 4, "nft"))
