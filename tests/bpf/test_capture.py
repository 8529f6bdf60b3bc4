"""bpf/capture.h, compiled for this machine: what is captured, what is refused, and that Python writes what C reads."""

import ctypes
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from nodeagent.redirect import bpf_records as records
from nodeagent.redirect import plan
from nodeagent.redirect.bpf_records import Direction, Flag, Kind
from tests.bpf.layouts import PLACES, TUPLE, place_number

HERE = Path(__file__).parent
TCP, UDP, MPTCP, SCTP = 6, 17, 262, 132
CAPTURED, DNS, NOT_ENROLLED, NO_ADDRESS, NOT_TCP, LOOPBACK, OWN, EXCLUDED = range(8)
PASS, TO_TUNNEL, ASK = range(3)
SECOND = 10**9
POD = records.pod(plan.Options(), ["10.244.1.7", "fd00::7", "fe80::1"])


@pytest.fixture(scope="module")
def c(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("clang")
    library = tmp_path_factory.mktemp("bpf") / "capture.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", library, HERE / "capture_host.c"], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.connection_mark.restype = loaded.direct_mark.restype = ctypes.c_uint32
    loaded.sent.restype = loaded.received.restype = ctypes.c_uint64
    return loaded


def address(text):
    return records.pack_address(ip_address(text))


def with_flags(flags, addresses=("10.244.1.7", "fd00::7")):
    made = records.pod(plan.Options(dns_capture=False), addresses)
    return records.Workload(made.listen, made.flags | flags).pack()


@pytest.mark.parametrize(
    ("to", "port", "protocol", "why"),
    [
        ("10.96.0.1", 443, TCP, CAPTURED),
        ("fd00:1::1", 443, TCP, CAPTURED),
        ("10.96.0.1", 443, MPTCP, CAPTURED),
        ("169.254.169.254", 80, TCP, CAPTURED),
        ("10.96.0.10", 53, TCP, DNS),
        ("10.96.0.10", 53, UDP, DNS),
        ("fd00:1::a", 53, UDP, DNS),
        ("10.96.0.10", 54, UDP, NOT_TCP),
        ("10.96.0.1", 443, SCTP, NOT_TCP),
        ("127.0.0.1", 443, TCP, LOOPBACK),
        ("127.3.2.1", 53, UDP, LOOPBACK),
        ("::1", 443, TCP, LOOPBACK),
        ("0.0.0.0", 443, TCP, LOOPBACK),
        ("::", 443, TCP, LOOPBACK),
        ("128.0.0.1", 443, TCP, CAPTURED),
        ("::2", 443, TCP, CAPTURED),
    ],
)
def test_everything_that_is_tcp_or_a_question_is_captured_but_what_stays_in_the_pod(c, to, port, protocol, why):
    assert c.outbound(POD.pack(), protocol, address(to), port, 0, 0) == why


def test_who_is_hooked_and_unknown_speaks_to_nobody_but_itself(c):
    assert c.outbound(None, TCP, address("10.96.0.1"), 443, 0, 0) == NOT_ENROLLED
    assert c.outbound(None, TCP, address("127.0.0.1"), 443, 0, 0) == LOOPBACK
    assert c.outbound(None, UDP, address("10.96.0.10"), 53, 0, 0) == NOT_TCP
    assert [why for why in range(c.outcomes()) if c.refused(why)] == [NOT_ENROLLED, NO_ADDRESS]


def test_a_family_in_which_the_pod_has_no_address_is_refused_at_once(c):
    only_six = records.pod(plan.Options(), ["fd00::7"]).pack()
    assert c.outbound(only_six, TCP, address("10.96.0.1"), 443, 0, 0) == NO_ADDRESS
    assert c.outbound(only_six, TCP, address("fd00:1::1"), 443, 0, 0) == CAPTURED


def test_without_dns_capture_only_what_is_tcp_is_captured(c):
    assert c.outbound(with_flags(Flag(0)), UDP, address("10.96.0.10"), 53, 0, 0) == NOT_TCP
    assert c.outbound(with_flags(Flag(0)), TCP, address("10.96.0.10"), 53, 0, 0) == CAPTURED


def test_the_pods_own_addresses_and_what_its_owner_excludes_are_left_alone(c):
    for port in (53, 443):
        assert c.outbound(POD.pack(), TCP, address("10.244.1.7"), port, 1, 0) == OWN
        assert c.outbound(POD.pack(), TCP, address("10.96.0.1"), port, 0, 1) == EXCLUDED


@pytest.mark.parametrize(
    ("to", "port", "sender", "way"),
    [
        ("10.244.1.7", 8080, "10.244.2.9", ASK),
        ("fd00::7", 8080, "fd00::9", ASK),
        ("10.244.1.7", 15006, "10.244.2.9", ASK),
        ("10.244.1.7", 15008, "10.244.2.9", PASS),
        ("10.244.1.7", 8080, "10.244.1.7", PASS),
        ("127.0.0.1", 8080, "127.0.0.1", PASS),
        ("::1", 8080, "::1", PASS),
    ],
)
def test_what_arrives_asks_unless_it_is_a_tunnel_or_the_pod_itself(c, to, port, sender, way):
    assert c.inbound(POD.pack(), TCP, address(sender), address(to), port) == way


def test_arrivals_at_an_unknown_pod_go_to_the_tunnel_and_in_ingress_mode_to_the_application(c):
    parties = (address("10.244.2.9"), address("10.244.1.7"))
    assert c.inbound(None, TCP, *parties, 8080) == TO_TUNNEL
    assert c.inbound(with_flags(Flag.INGRESS_MODE), TCP, *parties, 8080) == PASS
    assert c.inbound(POD.pack(), UDP, *parties, 8080) == PASS


def test_only_the_translated_kubelet_is_a_probe_and_only_where_the_node_translates_it(c):
    for source in plan.PROBE_SOURCES:
        assert c.probe(with_flags(Flag.EXEMPT_PROBES), address(source))
        assert not c.probe(POD.pack(), address(source))
    assert not c.probe(with_flags(Flag.EXEMPT_PROBES), address("169.254.7.126"))


def test_no_pod_may_take_a_port_of_the_tunnels(c):
    ports = (plan.OUTBOUND_PORT, plan.INBOUND_PLAIN_PORT, plan.HBONE_PORT, plan.DNS_CAPTURE_PORT)
    assert [port for port in range(65536) if not c.may_bind(TCP, port)] == sorted(ports)
    assert [port for port in range(65536) if not c.may_bind(UDP, port)] == [plan.DNS_CAPTURE_PORT]


def test_marks_keep_other_users_bits_and_agree_with_the_rules_of_the_other_backends(c):
    assert c.connection_mark(plan.TUNNEL_MARK) == plan.CONNECTION_MARK
    assert c.connection_mark(0xABC00000 | plan.TUNNEL_MARK) == 0xABC00000 | plan.CONNECTION_MARK
    assert c.has_connection_mark(0xABC00000 | plan.CONNECTION_MARK)
    assert not c.has_connection_mark(plan.TUNNEL_MARK)


def test_python_writes_what_c_reads(c):
    assert c.schema() == records.SCHEMA
    assert c.outcomes() == len(records.OUTCOMES)
    who = records.pack_id(Kind.NETNS, 7)
    written = (
        who,
        POD.pack(),
        records.pack_own(who, ip_address("10.0.0.1")),
        records.pack_port(who, Direction.IN, 22),
        records.pack_range(who, Direction.OUT, ip_network("10.0.0.0/8")),
        records.pack_listener(7, plan.INBOUND_PLAIN_PORT),
    )
    assert [len(each) for each in written] == [c.sizes(which) for which in range(len(written))]
    assert [c.offsets(which) for which in range(6)] == [64, 68, 72, 8, 24, 16]


def filed(netns, address_text, port):
    own = address(address_text)
    return TUPLE.pack(netns, own, own, port, plan.OUTBOUND_PORT, 0)


def test_two_ports_of_a_workload_never_have_the_same_place(c):
    for own in ("10.244.1.7", "fd00::7"):
        assert len({c.place_number(filed(7, own, port)) for port in range(65536)}) == PLACES


def test_workloads_begin_at_places_of_their_own(c):
    """A thousand dice with 65,536 sides show 992 different numbers."""
    alike = [filed(7000 + n, "10.244.1.7", 40000) for n in range(1000)]
    neighbours = [filed(7, f"10.244.{n // 250}.{n % 250}", 40000) for n in range(1000)]
    neighbours6 = [filed(7, f"fd00::{n:x}", 40000) for n in range(1000)]
    for group in (alike, neighbours, neighbours6):
        assert len({c.place_number(each) for each in group}) > 950
        assert all(c.place_number(each) == place_number(each) for each in group)


def test_the_direct_paths_structs_are_those_that_the_tunnel_asserts_at_its_build(c):
    """ztunnel/crates/net/src/direct/maps.rs."""
    assert [c.sizes(which) for which in range(6, 11)] == [32, 64, 16, 16, 96]
    assert [c.offsets(which) for which in range(6, 10)] == [40, 56, 48, 88]


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ({}, True),
        ({"now_epoch": 8}, False),
        ({"now_epoch": 6}, False),
        ({"until_ns": SECOND}, False),
        ({"seen_ns": 0, "now": SECOND}, False),
        ({"seen_ns": 1, "now": SECOND}, True),
        ({"seen_ns": 2 * SECOND}, True),
    ],
)
def test_a_pass_is_good_in_its_epoch_for_its_time_and_while_its_tunnel_lives(c, said, good):
    """The last row: the tunnel wrote on another processor, a moment after the clock was read here."""
    case = {"epoch": 7, "until_ns": 3 * SECOND, "now_epoch": 7, "seen_ns": SECOND, "now": SECOND + 1} | said
    assert bool(c.good(*(ctypes.c_uint64(value) for value in case.values()))) == good


def test_the_direct_mark_is_no_other_and_leaves_others_bits_alone(c):
    assert c.direct_mark(0xABC00539) == 0xABC00000 | plan.DIRECT_MARK
    assert [bool(c.has_direct_mark(mark)) for mark in (0x222, 0xFF222, 0x223, 0x111, 0x539)] == [True, True] + [
        False
    ] * 3


@pytest.mark.parametrize(
    ("state", "acknowledged", "sent"),
    [("established", 1, 0), ("established", 11, 10), ("fin-wait-2", 12, 10), ("last-ack", 12, 10), ("syn-sent", 0, 0)],
)
def test_syn_and_fin_are_acknowledged_and_no_bytes(c, state, acknowledged, sent):
    states = {"established": 1, "syn-sent": 2, "fin-wait-2": 5, "last-ack": 9}
    assert c.sent(ctypes.c_uint64(acknowledged), states[state]) == sent


@pytest.mark.parametrize(
    ("state", "counted", "received"), [(1, 10, 10), (4, 10, 10), (5, 11, 10), (9, 11, 10), (8, 0, 0)]
)
def test_the_peers_fin_is_no_byte(c, state, counted, received):
    assert c.received(ctypes.c_uint64(counted), state) == received


def test_what_this_end_closed_by_a_fin_may_still_be_asked_for(c):
    """And what was broken off, or never opened, may not: FIN_WAIT1 and 2, TIME_WAIT, LAST_ACK, CLOSING."""
    assert [state for state in range(1, 13) if c.orderly(state)] == [4, 5, 6, 9, 11]


def test_tcp_meets_the_tunnel_at_two_ports(c):
    assert [port for port in range(65536) if c.met_at(port)] == [plan.OUTBOUND_PORT, plan.DNS_CAPTURE_PORT]


@pytest.mark.parametrize("now", [0, 1, 2**63])
def test_a_workloads_ticket_is_told_from_the_tunnels(c, now):
    assert c.is_direct_ticket(ctypes.c_uint64(now))


@pytest.mark.parametrize(
    ("addresses", "one"),
    [
        (["10.244.1.7"], True),
        (["10.244.1.7", "fd00::7", "fe80::1"], True),
        (["10.244.1.7", "10.1.0.7"], False),
        (["10.244.1.7", "169.254.3.4"], False),
        (["fd00::7"], False),
    ],
)
def test_a_pod_with_one_ipv4_address_says_so(addresses, one):
    assert bool(records.pod(plan.Options(), addresses).flags & Flag.ONE_IPV4) == one


def test_a_pod_is_met_at_its_own_addresses_and_a_missing_family_at_loopback(c):
    assert [str(each) for each in POD.listen] == ["10.244.1.7", "fd00::7"]
    assert [str(each) for each in records.pod(plan.Options(), ["10.244.1.7"]).listen] == ["10.244.1.7", "::1"]
    assert [c.side(address(to)) for to in ("10.0.0.1", "fd00::1")] == [0, 1]
