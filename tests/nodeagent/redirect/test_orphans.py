"""What is asked of the kernel when a direct connection is to end."""

import struct
from ipaddress import ip_address

import pytest

from nodeagent.redirect.bpf_records import pack_address
from nodeagent.redirect.orphans import KEY_BYTES, RECORD_BYTES, Orphan


@pytest.mark.parametrize(("own", "peer", "family"), [("10.0.0.1", "10.0.0.2", 2), ("fd00::1", "fd00::2", 10)])
def test_a_noted_connection_is_named_by_both_ends_and_its_sockets_cookie(own, peer, family):
    key = struct.pack("=QQ", 0x1_0000_0007, 5)
    ends = pack_address(ip_address(own)) + pack_address(ip_address(peer)) + struct.pack("=HHI", 40000, 80, 0)
    record = struct.pack("=Q", 77) + ends + struct.pack("=QQQQQII", 1, 2, 33, 0, 0, 2, 0)
    assert (len(key), len(record)) == (KEY_BYTES, RECORD_BYTES)
    orphan = Orphan.read(key, record)
    asked = orphan.request()
    assert orphan.netns == 33
    assert struct.unpack_from("=IHH", asked) == (len(asked), 21, 5)
    assert len(asked) == 16 + 56
    assert asked[16] == family
    assert struct.unpack_from("!HH", asked, 24) == (40000, 80)
    assert asked[28:].startswith(ip_address(own).packed)
    assert asked[44:].startswith(ip_address(peer).packed)
    assert struct.unpack_from("=II", asked, 64) == (7, 1)
