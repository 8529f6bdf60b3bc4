"""What is kept of the configuration: packed, and yet each resource's newest state and nothing else."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.delta import ADDRESS_TYPE, Batch
from ztunnel.lastgood import LastGood, Pile

names = st.sampled_from("abcdefgh")
states = st.tuples(st.text(max_size=3), st.binary(max_size=20))
steps = st.lists(st.one_of(st.dictionaries(names, states, min_size=1), names), max_size=20)


def content(pile):
    return {each.name: (each.version, each.resource.value) for part in pile.parts() for each in part.resources}


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


def test_what_is_put_while_a_pile_is_written_is_not_mixed_in():
    pile = Pile(ADDRESS_TYPE)
    pile.put([("a", "1", b"old")])
    parts = pile.parts()
    pile.put([("a", "2", b"new"), ("b", "1", b"")])
    assert [each.version for part in parts for each in part.resources] == ["1"]


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
        store.record(Batch(ADDRESS_TYPE, "1", items, []), [])
        store.record(Batch(ADDRESS_TYPE, "2", [("n-0", "2", b"y")], ["n-1"]), [])
        store.changed()
        await store.flush()

    async def written_again():
        store = LastGood(tmp_path)
        store.load()
        store.record(Batch(ADDRESS_TYPE, "3", [("n-2", "3", b"z")], []), [])
        store.changed()
        await store.flush()

    asyncio.run(written())
    asyncio.run(written_again())
    found = LastGood(tmp_path).load()[ADDRESS_TYPE]
    assert found["n-2"].version == "3"
    assert len(found) == 9_999
    assert (found["n-0"].version, found["n-0"].data) == ("2", b"y")
