"""rtnetlink by hand: what the kernel is told, and what is read of what it says."""

import socket
from ipaddress import ip_address

from nodeagent.redirect import rtnetlink

LO = 1


def ifaddrmsg(family, index, **attributes):
    """As in linux/if_addr.h; `address` and `local` by their numbers there, and one that nobody asks for before them."""
    head = bytes([family, 24, 0, 0]) + index.to_bytes(4, "little")
    numbers = {"label": 3, "address": 1, "local": 2}
    values = {"label": b"eth0\0\0\0"} | {name: ip_address(text).packed for name, text in attributes.items()}
    for name, value in values.items():
        packed = (4 + len(value)).to_bytes(2, "little") + numbers[name].to_bytes(2, "little") + value
        head += packed + bytes(-len(packed) % 4)
    return head


def test_an_address_is_read_with_its_interface():
    assert rtnetlink.read_address(ifaddrmsg(socket.AF_INET, 7, address="10.0.0.1")) == [(7, "10.0.0.1")]
    assert rtnetlink.read_address(ifaddrmsg(socket.AF_INET6, 7, address="fd00::1")) == [(7, "fd00::1")]


def test_of_a_pair_of_addresses_the_own_one_counts():
    assert rtnetlink.read_address(ifaddrmsg(socket.AF_INET, 7, address="10.0.0.2", local="10.0.0.1")) == [
        (7, "10.0.0.1")
    ]


def test_what_has_no_address_is_none():
    assert rtnetlink.read_address(ifaddrmsg(socket.AF_INET, 7)) == []


def test_a_rule_and_a_route_are_as_the_kernel_lays_them_out():
    _, flags, rule = rtnetlink.rule(
        rtnetlink.NEW_RULE, rtnetlink.ONLY_NEW, socket.AF_INET, priority=32764, mark=0x111, mask=0xFFF, table=100
    )
    assert flags == 0x600
    assert rule[:12].hex() == "020000006400000100000000"
    assert rule[12:].hex() == "08000600fc7f000008000a001101000008001000ff0f000008000f0064000000"
    _, _, route = rtnetlink.route(
        rtnetlink.NEW_ROUTE, rtnetlink.REPLACE, socket.AF_INET, kind=2, scope=254, table=100, device=LO
    )
    assert route.hex() == "020000006404fe0200000000080004000100000008000f0064000000"
