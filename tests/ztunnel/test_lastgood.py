"""What is kept of the configuration: packed, and yet each resource's newest state and nothing else."""

import asyncio
import zlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, Batch
from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
from tests.ztunnel.conftest import kept, resources
from ztunnel.lastgood import LastGood, Pile, pack

names = st.sampled_from("abcdefgh")
states = st.tuples(st.text(max_size=3), st.binary(max_size=20))
steps = st.lists(st.one_of(st.dictionaries(names, states, min_size=1), names), max_size=20)


def content(pile):
    found = [(each.name, (each.version, each.resource.value)) for part in pile.bundles() for each in resources(part)]
    assert len(found) == len(dict(found)), "nothing is in two bundles"
    return dict(found)


def restored(directory):
    """A tunnel's second life, as far as this file goes."""
    store = LastGood(directory)
    bundles = store.load()
    store.adopt(bundles, [([e.name for e in resources(b)], [e.version for e in resources(b)]) for _, b in bundles])
    return store


@settings(deadline=None)
@given(steps)
def test_a_pile_holds_what_a_mapping_would(steps):
    pile, plain = Pile(ADDRESS_TYPE), {}
    for step in steps:
        if isinstance(step, dict):
            pile.put((name, *state) for name, state in step.items())
            plain.update(step)
        else:
            pile.drop(step)
            plain.pop(step, None)
    assert content(pile) == plain
    assert pile.where.keys() == plain.keys()


def test_a_response_that_is_kept_as_it_came_is_kept_like_its_parts():
    pile = Pile(ADDRESS_TYPE)
    pile.put([("a", "1", b"old"), ("b", "1", b"")])
    response = DeltaDiscoveryResponse(nonce="7", removed_resources=["gone"])
    for name, version, data in (("a", "2", b"new"), ("c", "1", b"")):
        resource = response.resources.add(name=name, version=version).resource
        resource.type_url, resource.value = ADDRESS_TYPE, data
    pile.put_whole(pack(response.SerializeToString()), ["a", "c"])
    assert content(pile) == {"a": ("2", b"new"), "b": ("1", b""), "c": ("1", b"")}


def test_what_was_taken_is_kept_also_where_a_library_would_not_read_it():
    """Its alias is no text, which nobody asks."""
    inner = DeltaDiscoveryResponse()
    inner.resources.add(name="a", version="1").resource.type_url = ADDRESS_TYPE
    resource = inner.resources[0].SerializeToString() + b"\x22\x01\xff"
    response = b"\x12" + bytes([len(resource)]) + resource
    with pytest.raises(DecodeError):
        DeltaDiscoveryResponse.FromString(response)
    pile = Pile(ADDRESS_TYPE)
    pile.put_whole(pack(response), ["a"])
    assert content(pile) == {"a": ("1", b"")}


def test_a_response_packed_in_turns_is_the_response():
    response = bytes(range(256)) * 1000
    assert zlib.decompress(pack(response, rests=True)) == response


def test_what_is_put_while_a_pile_is_written_is_not_mixed_in():
    pile = Pile(ADDRESS_TYPE)
    pile.put([("a", "1", b"old")])
    parts = pile.bundles()
    pile.put([("a", "2", b"new"), ("b", "1", b"")])
    assert [each.version for part in parts for each in resources(part)] == ["1"]


def test_a_thousand_changes_of_a_thousand_resources_do_not_pile_up():
    pile = Pile(ADDRESS_TYPE)
    pile.put((f"kept-{n}", "1", b"x" * 400) for n in range(1000))
    for version in range(300):
        pile.put((f"n-{n}", str(version), b"x" * 400) for n in range(100))
        pile.put([("kept-0", str(version), b"x" * 400)])
    assert len(content(pile)) == 1100
    assert pile.size < 40_000


def test_ten_thousand_resources_are_read_back(tmp_path):
    items = [(f"n-{n}", "1", b"x" * 400) for n in range(10_000)]

    async def written():
        store = LastGood(tmp_path)
        await store.record(Batch(ADDRESS_TYPE, "1", items, []), [])
        await store.record(Batch(ADDRESS_TYPE, "2", [("n-0", "2", b"y")], ["n-1"]), [])
        store.changed()
        await store.flush()

    async def written_again():
        store = restored(tmp_path)
        await store.record(Batch(ADDRESS_TYPE, "3", [("n-2", "3", b"z")], []), [])
        store.changed()
        await store.flush()

    asyncio.run(written())
    asyncio.run(written_again())
    found = kept(tmp_path)[ADDRESS_TYPE]
    assert len(found) == 9_999
    assert (found["n-0"], found["n-2"]) == (("2", b"y"), ("3", b"z"))


def test_bundles_are_written_as_they_are_and_few(tmp_path):
    pile = Pile(ADDRESS_TYPE)
    pile.put((f"n-{n}", "1", b"") for n in range(9000))
    whole = list(pile.bundles())
    for n in range(0, 1000, 10):
        pile.put([(f"n-{n}", "2", b"")])
    now = list(pile.bundles())
    assert len(now) == 3, "what is outdated in a bundle, and all small ones, are packed anew"
    assert now[:2] == whole[1:]


def test_what_an_older_tunnel_kept_is_read_too(tmp_path):
    old = DeltaDiscoveryResponse()
    for name, url in [("web", ADDRESS_TYPE), ("deny", AUTHORIZATION_TYPE), ("api", ADDRESS_TYPE)]:
        entry = old.resources.add(name=name, version="7")
        entry.resource.type_url, entry.resource.value = url, name.encode()
    (tmp_path / "ztunnel-resources.binpb").write_bytes(old.SerializeToString())
    assert kept(tmp_path) == {
        ADDRESS_TYPE: {"web": ("7", b"web"), "api": ("7", b"api")},
        AUTHORIZATION_TYPE: {"deny": ("7", b"deny")},
    }
