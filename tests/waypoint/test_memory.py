"""What an Envoy may take: said, or by the tightest of its control groups."""

import pytest

from waypoint import memory

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path):
    """`a/b/c`, of which `b` may have 2 GiB and `c` 3."""
    root = tmp_path / "root"
    (root / "a/b/c").mkdir(parents=True)
    for path, limit in (("a", "max"), ("a/b", 2 * GIB), ("a/b/c", 3 * GIB)):
        (root / path / "memory.max").write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("own", "limit"),
    [("0::/a/b/c", 2 * GIB), ("1:cpu:/x\n0::/a/b", 2 * GIB), ("0::/a", memory.NONE), ("0::/", memory.NONE)],
)
def test_the_tightest_group_counts(tmp_path, groups, own, limit):
    said = tmp_path / "own"
    said.write_text(f"{own}\n")
    assert memory.group_limit(said, groups) == limit


def test_a_group_that_is_not_in_view_has_no_limit(tmp_path, groups):
    said = tmp_path / "own"
    said.write_text("0::/../elsewhere\n")
    assert memory.group_limit(said, groups) == memory.NONE


def test_what_is_said_counts():
    assert memory.heap(512) == 512 << 20
    assert 0 < memory.heap(0) < memory.NONE
