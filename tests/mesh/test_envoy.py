"""Envoy's resources as bytes: packed by its own schema, put together without being read again."""

import pytest

from mesh.envoy import ROUTES, VIRTUAL_HOST, joined, pack, unpack
from mesh.errors import LocalError

HOSTS = [{"name": f"host-{n}", "domains": [f"{n}.example" * 40]} for n in range(5)]


def test_a_table_put_together_is_the_table_packed_at_once():
    whole = pack(ROUTES, {"name": "all", "virtual_hosts": HOSTS})
    parts = [pack(VIRTUAL_HOST, each) for each in HOSTS]
    assert joined(pack(ROUTES, {"name": "all"}), 2, parts) == whole
    assert unpack(whole)["virtual_hosts"] == HOSTS


def test_a_field_that_envoy_does_not_have_is_our_mistake():
    with pytest.raises(LocalError, match="RouteConfiguration"):
        pack(ROUTES, {"nam": "x"})
