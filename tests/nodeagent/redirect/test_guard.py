"""What stands behind capture, as text and read back."""

from nodeagent.redirect.guard import REMOVAL, REMOVAL_WITHOUT_FRAMES, Group, Guard, differences, render, render_first
from nodeagent.redirect.plan import Options

ROOT = Group("unified", 0, 1)
TUNNEL = Group("unified/system.slice/ztunnel.service", 2, 77)
GUARD = Guard(ROOT, (TUNNEL,), ("eth0", "net1"))


def rules(text, chain):
    inside = text.split(f"chain {chain} {{\n")[1].split("\t}\n")[0]
    return [line.strip() for line in inside.splitlines()[1:]]


def listed(guard):
    """As nft lists what was rendered: one rule object per line, comments apart."""
    text, found = render(guard), []
    for chain in ["whole", "judge", "leave", *(f"egress{n}" for n in range(len(guard.devices)))]:
        for rule in rules(text, chain):
            comment = {"comment": rule.split('comment "')[1].rstrip('"')} if "comment" in rule else {}
            found.append({"rule": {"table": "nodemesh-guard", "chain": chain, **comment}})
    return found


def test_the_tunnel_is_known_by_its_control_group_and_nobody_else_keeps_its_mark():
    away = 'oifname != "lo" meta l4proto tcp'
    mine = 'socket cgroupv2 level 2 "unified/system.slice/ztunnel.service"'
    pod = 'socket cgroupv2 level 1 != "unified"'
    assert rules(render(GUARD), "judge") == [
        f'oif "lo" accept comment "{GUARD.fingerprint}"',
        f"{away} {mine} meta mark set meta mark & 0xfffff000 | 0x539 accept",
        f"{away} {pod} meta mark & 0xfff {{ 0x111, 0x539 }} meta mark set meta mark & 0xfffff000",
        f"{away} {pod} accept",
        f"{away} meta mark set meta mark & 0xfffff000 | 0x539",
    ]


def test_a_direct_sockets_mark_lets_out_and_a_packets_mark_does_not():
    """The kernel takes a socket's mark from nobody in the pod; what comes over lo with one is not to be inherited."""
    text = render(Guard(ROOT, (TUNNEL,), options=Options(direct=True)))
    is_direct = (
        'oifname != "lo" meta l4proto tcp socket cgroupv2 level 1 != "unified" socket mark & 0xfff == 0x222 '
        "meta mark set meta mark & 0xfffff000 | 0x539 accept"
    )
    assert rules(text, "judge")[2] == is_direct
    assert rules(text, "arrive")[0].startswith("meta mark & 0xfff == 0x222 meta mark set meta mark & 0xfffff000")
    assert "0x222" not in render(GUARD)


def test_only_what_bears_the_tunnels_mark_leaves():
    assert rules(render(GUARD), "leave")[1:] == [
        'oifname != "lo" meta l4proto tcp meta mark & 0xfff == 0x539 accept',
        'oifname != "lo" meta l4proto tcp counter drop',
    ]


def test_a_gateways_pod_may_answer_what_came_in_plain():
    last = rules(render(Guard(ROOT, (TUNNEL,), replies=True)), "leave")[-2]
    assert last == 'oifname != "lo" meta l4proto tcp tcp sport != 15008 ct direction reply ct state established accept'


def test_probes_are_answered_and_not_called_and_no_connection_is_tracked_for_it():
    text = render(Guard(ROOT, (TUNNEL,), options=Options(exempt_probes=True)))
    away, answers = 'oifname != "lo" meta l4proto tcp', "tcp flags & (syn | ack) != syn"
    assert rules(text, "leave")[2:] == [
        f"{away} ip daddr 169.254.7.127 ip hdrlength 5 {answers} accept",
        f"{away} ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff exthdr rt missing {answers} accept",
        f"{away} counter drop",
    ]
    assert " ct " not in text


def test_what_somebody_took_apart_himself_does_not_leave():
    """Before packets are put together (-400): from then on it is nobody's."""
    text = render(GUARD)
    assert "chain whole {\n\t\ttype filter hook output priority -450;" in text
    assert rules(text, "whole")[1:] == [
        'oifname != "lo" ip frag-off & 0x3fff != 0 counter drop',
        'oifname != "lo" exthdr frag exists counter drop',
    ]


def test_rules_of_another_version_are_a_difference(monkeypatch):
    before = listed(GUARD)
    monkeypatch.setattr("nodeagent.redirect.guard._HERE", 'oifname "lo" accept')
    assert differences(GUARD, before) == ["table nodemesh-guard is of another tunnel, device or version"]


def test_every_device_has_its_frames_watched():
    text = render(GUARD)
    assert 'hook egress device "eth0"' in text
    assert 'hook egress device "net1"' in text
    assert rules(text, "egress1")[-1] == "counter drop"


def test_a_kernel_without_egress_hooks_gets_the_rest():
    text = render(Guard(ROOT, (TUNNEL,)))
    assert "netdev" not in text
    assert text.startswith(REMOVAL_WITHOUT_FRAMES)
    assert render(GUARD).startswith(REMOVAL)


def test_where_nothing_is_yet_nothing_is_deleted():
    """Whoever deletes rules waits for every processor; and what is there already refuses to be made again."""
    tables = "create table inet nodemesh-guard\ncreate table netdev nodemesh-guard\n"
    assert tables + render(GUARD).removeprefix(REMOVAL) == render_first(GUARD)
    alone = Guard(ROOT, (TUNNEL,))
    assert render_first(alone) == tables.splitlines(True)[0] + render(alone).removeprefix(REMOVAL_WITHOUT_FRAMES)


def test_what_was_written_is_no_difference():
    assert differences(GUARD, listed(GUARD)) == []


def test_the_same_name_made_again_is_another_group():
    again = Guard(ROOT, (Group(TUNNEL.path, TUNNEL.level, 78),), GUARD.devices)
    assert differences(again, listed(GUARD)) == ["table nodemesh-guard is of another tunnel, device or version"]


def test_rules_that_came_or_went_are_a_difference():
    for seen in (listed(GUARD)[1:], [*listed(GUARD), listed(GUARD)[-1]], []):
        assert differences(GUARD, seen) == ["the rules of table nodemesh-guard are not ours"]
