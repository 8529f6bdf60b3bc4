"""Workloads that are control groups of a host: what documents make one, and the rules of several side by side."""

import asyncio
from ipaddress import ip_address

import pytest

from mesh.directory import Directory
from nodeagent.host_documents import HostDocuments, HostWorkload
from nodeagent.redirect.guard import Group
from nodeagent.redirect.host_rules import Captured, render

WEB = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web
  namespace: shop
  annotations: {{nodemesh/node: {node}, nodemesh/cgroup: {group}, nodemesh/addresses: "{more}"}}
spec: {{address: {address}, serviceAccount: web}}
"""


def read(tmp_path, **change):
    given = {"node": "node1", "group": "web.slice", "more": "fd00::1", "address": "10.0.0.101"} | change
    (tmp_path / "web.yaml").write_text(WEB.format(**given))
    return asyncio.run(HostDocuments(Directory(tmp_path), "Kubernetes", "node1").read())


def workload(name, *addresses):
    uid = f"Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}"
    return HostWorkload(uid, "shop", name, name, f"{name}.slice", tuple(map(ip_address, addresses)))


def test_a_document_with_a_group_and_addresses_is_a_workload(tmp_path):
    assert read(tmp_path) == [workload("web", "10.0.0.101", "fd00::1")]


def test_another_nodes_is_none_of_ours(tmp_path):
    assert read(tmp_path, node="node2") == []


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("web.slice", "web.slice"),
        ("web-api.slice", "web.slice/web-api.slice"),
        ("/system.slice/db.service", "system.slice/db.service"),
    ],
)
def test_a_slices_name_says_where_it_is(tmp_path, given, path):
    assert read(tmp_path, group=given)[0].cgroup == path


@pytest.mark.parametrize("change", [{"group": "../up"}, {"more": "10.0.0.102"}, {"address": "x"}])
def test_what_cannot_be_meant_is_left_out(tmp_path, change):
    assert read(tmp_path, **change) == []


def test_a_file_that_became_unreadable_keeps_what_it_said(tmp_path):
    documents = HostDocuments(Directory(tmp_path), "Kubernetes", "node1")
    path = tmp_path / "web.yaml"
    path.write_text(WEB.format(node="node1", group="web.slice", more="", address="10.0.0.101"))
    before = asyncio.run(documents.read())
    path.write_text("a: [")
    assert asyncio.run(documents.read()) == before != []


def test_a_round_in_which_no_file_changed_reads_none(tmp_path):
    documents = HostDocuments(Directory(tmp_path), "Kubernetes", "node1")
    (tmp_path / "web.yaml").write_text(WEB.format(node="node1", group="web.slice", more="", address="10.0.0.101"))
    assert asyncio.run(documents.read()) is asyncio.run(documents.read())


# Rules ---------------------------------------------------------------------------------------------------------------

TUNNEL = Group("system.slice/ztunnel.service", 2, 7)
OUTER = Captured(Group("web.slice", 1, 8), (ip_address("10.0.0.101"), ip_address("fd00::1")))
INNER = Captured(Group("web.slice/web-api.slice", 2, 9), (ip_address("10.0.0.102"),))


def rules(text, chain):
    return [line.strip() for line in text.split(f"chain {chain} {{\n")[1].split("\t}\n")[0].splitlines()[1:]]


def test_the_innermost_of_nested_groups_counts():
    captured = [rule for rule in rules(render([OUTER, INNER], [TUNNEL]), "nat-output") if "15001" in rule]
    assert [rule.split('"')[1] for rule in captured] == ["web.slice/web-api.slice", "web.slice", "web.slice"]


def test_each_goes_to_the_listener_on_its_own_address():
    captured = rules(render([OUTER, INNER], [TUNNEL]), "nat-output")
    assert (
        'socket cgroupv2 level 1 "web.slice" meta nfproto ipv6 meta l4proto tcp dnat ip6 to [fd00::1]:15001' in captured
    )
    assert "ip daddr 10.0.0.102 tcp dport != 15008 dnat ip to 10.0.0.102:15006" in captured


def test_the_tunnel_goes_first_by_its_group_or_else_by_its_mark():
    assert rules(render([OUTER], [TUNNEL]), "nat-output")[0] == (
        'socket cgroupv2 level 2 "system.slice/ztunnel.service" accept'
    )
    assert rules(render([OUTER], []), "nat-output")[0] == "meta mark & 0xfff == 0x539 accept"


def test_a_family_without_an_address_is_refused_not_let_out():
    refused = [rule for rule in rules(render([INNER], [TUNNEL]), "judge") if "reject" in rule]
    assert refused == [
        'oifname != "lo" meta l4proto tcp socket cgroupv2 level 2 "web.slice/web-api.slice" meta nfproto ipv6 '
        "reject with tcp reset"
    ]
    assert rules(render([INNER], []), "leave") == ['oifname != "lo" meta mark & 0xfff == 0x222 counter drop']


def test_what_listens_everywhere_is_met_at_its_own_addresses_from_this_host_and_nowhere_else():
    assert rules(render([OUTER, INNER], [TUNNEL]), "meet") == [
        "meta l4proto != tcp accept",
        "tcp flags & (fin | syn | rst | ack) != syn accept",
        'iifname "lo" ip daddr 127.0.0.0/8 accept',
        'iifname "lo" ip6 daddr ::1 accept',
        'iifname "lo" ip daddr 10.0.0.102 socket cgroupv2 level 2 "web.slice/web-api.slice" accept',
        'socket cgroupv2 level 2 "web.slice/web-api.slice" counter reject with tcp reset',
        'iifname "lo" ip daddr 10.0.0.101 socket cgroupv2 level 1 "web.slice" accept',
        'iifname "lo" ip6 daddr fd00::1 socket cgroupv2 level 1 "web.slice" accept',
        'socket cgroupv2 level 1 "web.slice" counter reject with tcp reset',
    ]
