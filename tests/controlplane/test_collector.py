"""What is in force is left out by the garbage collector, again only when much has come."""

import gc

import pytest

from controlplane.collector import Frozen


@pytest.fixture(autouse=True)
def thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("sizes", "frozen_again"), [((100, 110), False), ((100, 130), True), ((100, 90), False)])
def test_it_is_frozen_again_only_when_much_has_come(sizes, frozen_again):
    frozen, kept = Frozen(), []
    counts = []
    for size in sizes:
        kept += [[number] for number in range(1000)]  # lists are what the collector looks at
        frozen.look(size)
        counts.append(gc.get_freeze_count())
    assert (counts[1] >= counts[0] + 1000) is frozen_again
