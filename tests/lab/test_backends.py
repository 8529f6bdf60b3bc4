"""The core of the lab again, captured by nft and by iptables: so `make test` has all three backends at work.

The rest of the lab is captured by what its agents choose, which is BPF where the kernel has it. The whole of it under
another backend: `pytest --mesh-capture nft tests/lab`.
"""

import os

import pytest

from lab import documents
from lab.cluster import Cluster
from lab.documents import PodSpec
from lab.layout import Layout
from lab.watchdog import guarded
from tests.lab.damage import captured_by
from tests.lab.test_flows import (
    test_a_deleted_pod_leaves_its_node,
    test_a_killed_agent_comes_back_without_touching_running_pods,
    test_a_pod_does_not_start_when_its_port_is_occupied,
    test_a_request_between_nodes_arrives_with_the_clients_own_address,
    test_a_request_on_one_node_arrives_with_the_clients_own_address,
    test_a_tunnel_told_to_end_lets_connections_finish_and_ends,
    test_both_sides_log_both_identities,
    test_check_fails_when_a_rule_is_gone,
    test_check_finds_everything_as_add_left_it,
    test_into_the_mesh_plaintext_is_passed_on_unless_a_policy_forbids,
    test_only_tunnels_are_on_the_wire,
    test_out_of_the_mesh_the_way_is_plain,
)
from tests.lab.test_live import (
    newcomer,
    test_rules_that_somebody_took_away_are_back_within_seconds_and_it_is_told,
    test_what_joined_is_captured_and_what_left_has_no_trace,
)
from tests.lab.test_no_bypass import (
    test_a_guard_that_is_gone_is_put_in_again,
    test_nobody_takes_a_port_while_the_tunnel_is_away,
)

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=["nft,iptables", "iptables,nft"], ids=["nft", "iptables"])
def mesh(request):
    """As the lab's, but that node1, whose pods are most tests' subject, captures by one and node2 by the other."""
    with guarded(Layout(f"b{os.getpid()}")) as layout:
        made = Cluster.up(layout.name, nodes=2, pods=4, capture=request.param)
        for number in (1, 2):
            made.add_pod(PodSpec(f"plain-{number}", f"node{number}", labels=documents.OUT_OF_MESH))
        yield made


def test_each_node_captures_as_it_was_told(mesh, pods):
    ways = [captured_by(mesh, pods[name]) for name in ("web-1", "web-2", "web-3", "web-4")]
    assert ",".join(ways[:2]) == ",".join(ways[2:]) == mesh.capture
