"""The built extension in front of real pods. Without it, or without root, these tests say so and are skipped."""

import os

import pytest

from tests.boundary.node import Node
from tests.boundary.wire import Wire


@pytest.fixture
def wire():
    """`a` and `b` can be enrolled and captured, `c` stays outside the mesh."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    with Wire("a", "b", "c") as made:
        yield made


@pytest.fixture
def start_node(tmp_path):
    """Starts a node with the given configuration; every one is closed in the end."""
    nodes = []

    def start(**config):
        nodes.append(Node(tmp_path / f"access-{len(nodes)}", **config))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


@pytest.fixture(params=(True, False), ids=("tunnel", "handed-over"))
def node(start_node, request):
    """Both pods are on it: what is true through a tunnel is true without one."""
    return start_node(same_node_tls=request.param)


@pytest.fixture
def mesh(node, wire):
    """`a` and `b` captured, enrolled and known."""
    for pod in wire.pods[:2]:
        wire.capture(pod)
        node.enrol(pod)
    node.tell(*wire.pods[:2])
    return node
