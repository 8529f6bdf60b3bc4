"""The lab's parts that need no namespace: names, documents, captures, log lines, comparisons."""

import re
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from lab import access, demo_waypoint, documents, leftovers, wire
from lab.documents import PodSpec
from lab.layout import Layout, pod_range, service_address, underlay_address
from lab.report import Report
from lab.status import aligned


@pytest.mark.parametrize("name", ["nm-fabric", "nm-control", "nm-node1", "nm-node12", "nm-pod-shop-web-1"])
def test_a_lab_knows_its_own_namespaces(name):
    assert Layout("nm").owns_netns(name)


@pytest.mark.parametrize("name", ["nm", "nm-nodes", "nm-other", "nm2-fabric", "xnm-fabric", "nm-pod-", "cni-123"])
def test_a_lab_leaves_everybody_elses_namespaces_alone(name):
    assert not Layout("nm").owns_netns(name)


def test_addresses_follow_from_numbers():
    assert (underlay_address(0), underlay_address(2)) == ("172.30.0.10", "172.30.0.12")
    assert (underlay_address(0, 6), underlay_address(2, 6)) == ("fd00:172:30::a", "fd00:172:30::c")
    assert [str(pod_range(2, version)) for version in (4, 6)] == ["10.244.2.0/24", "fd00:10:244:2::/64"]
    assert [service_address(0, version) for version in (4, 6)] == ["10.96.0.10", "fd00:10:96::a"]


def test_a_document_is_replaced_whole_and_leaves_no_other_file(tmp_path):
    path = documents.write(tmp_path, "shop", documents.namespace("shop", documents.AMBIENT))
    documents.write(tmp_path, "shop", "kind: [broken")
    assert path.read_text() == "kind: [broken"
    assert [entry.name for entry in tmp_path.iterdir()] == ["shop.yaml"]
    documents.remove(tmp_path, "shop")
    documents.remove(tmp_path, "shop")
    assert list(tmp_path.iterdir()) == []


def test_a_pod_is_bound_first_and_running_later():
    bound = documents.pod(PodSpec("web-1", "node1", app="web"), "u-1")
    assert "status" not in bound
    assert bound["spec"]["serviceAccountName"] == "web-1"
    assert bound["metadata"]["labels"] == {"app": "web"}
    status = documents.running(bound, ["10.244.1.2", "fd00::2"], ["172.30.0.11"])["status"]
    assert (status["phase"], status["podIP"]) == ("Running", "10.244.1.2")
    assert status["podIPs"] == [{"ip": "10.244.1.2"}, {"ip": "fd00::2"}]
    assert yaml.safe_load(yaml.safe_dump(bound)) == bound


def frame(flags, *, payload=b"", protocol=6, ethertype=b"\x08\x00", dport=15008):
    tcp = struct.pack(">HHIIBBHHH", 40000, dport, 1, 0, 5 << 4, flags, 65535, 0, 0) + payload
    addresses = bytes([10, 244, 1, 2, 10, 244, 2, 2])
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, protocol, 0) + addresses
    return b"\0" * 12 + ethertype + ip + tcp


def frame6(flags, *, payload=b"", protocol=6):
    tcp = frame(flags, payload=payload)[34:]
    addresses = b"".join(ip_address(text).packed for text in ("fd00:10:244:1::2", "fd00:10:244:2::2"))
    return b"\0" * 12 + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(tcp), protocol, 64) + addresses + tcp


@pytest.mark.parametrize(
    ("make", "ends"), [(frame, ("10.244.1.2", "10.244.2.2")), (frame6, ("fd00:10:244:1::2", "fd00:10:244:2::2"))]
)
def test_a_captured_packet_is_read_by_hand(make, ends):
    packet = wire.parse(make(0x18, payload=b"secret"))
    assert (str(packet.src), str(packet.dst)) == ends
    assert (packet.sport, packet.dport) == (40000, 15008)
    assert packet.payload == b"secret"
    assert packet.between_pods
    assert not packet.opens


@pytest.mark.parametrize(("flags", "opens"), [(0x02, True), (0xC2, True), (0x12, False), (0x10, False)])
def test_only_a_syn_without_ack_opens(flags, opens):
    assert wire.parse(frame(flags)).opens is opens


@pytest.mark.parametrize(
    "other", [frame(2, protocol=17), frame6(2, protocol=17), frame(2, ethertype=b"\x08\x06"), b"", b"\0" * 20]
)
def test_what_is_not_tcp_is_left_out(other):
    assert wire.parse(other) is None


def test_a_capture_cut_short_ends_with_its_last_whole_packet(tmp_path):
    whole = frame(2)
    record = struct.pack("<IIII", 0, 0, len(whole), len(whole)) + whole
    (tmp_path / "x.pcap").write_bytes(b"\0" * 24 + record + record[:30])
    assert [packet.dport for packet in wire.read(tmp_path / "x.pcap") if packet.opens] == [15008]


@pytest.mark.parametrize(
    "line",
    [
        '12:00Z\tinfo\taccess\tconnection complete\tsrc.addr=10.244.1.2:4 direction="inbound" error="a b=c"',
        '{"message": "connection complete", "src.addr": "10.244.1.2:4", "direction": "inbound", "error": "a b=c"}',
    ],
)
def test_an_access_log_line_is_read_in_both_formats(line):
    fields = access.parse(line)
    assert (fields["src.addr"], fields["direction"], fields["error"]) == ("10.244.1.2:4", "inbound", "a b=c")


def test_the_comparison_names_what_came_and_what_went():
    before = {"routes": {"default", "a"}, "files": {"/run/x"}}
    assert leftovers.difference(before, before) == []
    assert leftovers.difference(before, {"routes": {"default"}, "files": {"/run/x", "/run/y"}}) == [
        "routes: gone: a",
        "files: left behind: /run/y",
    ]


def test_columns_are_aligned_and_never_cut():
    assert aligned([("A", "B"), ("x" * 100, "y")]) == ["A" + " " * 102 + "B", "x" * 100 + "   y"]


def test_a_check_that_fails_shows_what_was_expected_and_seen(capsys):
    report = Report()
    report.equal("the answer", 41, 42)
    report.equal("the question", "?", "?")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["FAIL", "the", "answer", "41"]
    assert lines[1] == ["expected", "42"]
    assert report.summary() == 1
    assert "2 checks" in capsys.readouterr().out


def test_the_service_graph_tells_applications_from_the_waypoint_and_many_statuses_in_short():
    labels = 'source_workload="a",destination_service_name="web",destination_version="{}",response_code="{}"'
    line = f"istio_requests_total{{{{{labels}}}}} {{}}"
    text = "\n".join([line.format("v1", 200, 7), *(line.format("unknown", 400 + n, 2) for n in range(12))])
    edges = demo_waypoint.edges_of(text)
    assert {key: demo_waypoint.said(codes) for key, codes in edges.items()} == {
        ("a", "web", "v1"): "200 7",
        ("a", "web", ""): "400 to 411 24",
    }


def test_every_test_that_the_table_of_scenarios_names_exists():
    here = Path(__file__).parent
    named = re.findall(r"`([\w./]+\.(?:py|rs))::(\w+)`", (here / "README.md").read_text())
    assert len(named) > 40
    missing = [
        f"{file}::{name}" for file, name in named if not re.search(rf"\b(def|fn) {name}\(", (here / file).read_text())
    ]
    assert missing == []
