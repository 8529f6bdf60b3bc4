"""Keys and trust in front of real pods: what a restart keeps, what leaves with a pod, whom a change of trust cuts."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.boundary.apps import Echo, exchange, read_all
from tests.boundary.node import identity
from tests.ztunnel.authority import pem

pytestmark = pytest.mark.lab
PORT = 8080


@pytest.fixture
def key_dir():
    """In memory on every Linux."""
    path = Path(f"/dev/shm/nodemesh-boundary-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def open_for_business(node, wire):
    for pod in wire.pods[:2]:
        wire.capture(pod)
        node.enrol(pod)
    node.tell(*wire.pods[:2])


@pytest.mark.parametrize("same_node_tls", [True, False], ids=("tunnel", "handed-over"))
def test_a_restarted_tunnel_serves_without_any_ca(start_node, wire, key_dir, same_node_tls):
    a, b, _ = wire.pods
    first = start_node(same_node_tls=same_node_tls, key_dir=str(key_dir))
    with Echo(b, PORT):
        open_for_business(first, wire)
        assert exchange(a.connect(b.ip, PORT), b"before") == b"before"
        first.deafen()
        first.core.close()
        second = start_node(same_node_tls=same_node_tls, key_dir=str(key_dir))
        second.answers = False
        for pod in (a, b):
            second.enrol(pod)
        second.tell(a, b)
        assert exchange(a.connect(b.ip, PORT), b"after") == b"after"
    assert {second.event("certificate_restored")[1] for _ in range(2)} == {identity(a), identity(b)}
    assert second.core.keys() == (sorted([identity(a), identity(b)]), 0)


def test_a_key_leaves_memory_and_directory_with_the_last_pod_that_has_it(start_node, wire, key_dir):
    a, b, _ = wire.pods
    node = start_node(key_dir=str(key_dir))
    with Echo(b, PORT):
        open_for_business(node, wire)
        assert exchange(a.connect(b.ip, PORT), b"x") == b"x"
    assert len(list(key_dir.iterdir())) == 2
    node.withdraw(a)
    assert node.core.keys() == ([identity(b)], 1)
    assert len(list(key_dir.iterdir())) == 1
    with pytest.raises(ValueError, match="no pod on this node has the identity"):
        node.core.new_key(identity(a))


def test_a_directory_on_a_disk_takes_no_keys(start_node, tmp_path):
    with pytest.raises(OSError, match=r"key_dir .*: is not on tmpfs|mode 0700"):
        start_node(key_dir="/proc/self")


def test_whoever_is_no_longer_believed_is_cut_and_the_reason_told(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        root = pem(mesh.authority.root)
        mesh.core.set_trust(json.dumps({"bundles": {"cluster.local": root}}).encode())
        connection.sendall(b"2")
        assert connection.recv(1) == b"2"
        mesh.core.set_trust(json.dumps({"crls_unusable": "the list is out of date"}).encode())
        with contextlib.suppress(ConnectionResetError):
            read_all(connection)
        line = mesh.line(lambda line: "the list is out of date" in line.get("error", ""))
        assert line["src.identity"] == identity(a)
    with pytest.raises(ConnectionResetError):
        exchange(a.connect(b.ip, PORT), b"3")
