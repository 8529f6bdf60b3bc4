"""Pods come and go, the node drains, descriptors run out: what the listeners and connections do then."""

import contextlib
import os
import resource
import select
import subprocess
import sys
import threading

import pytest

from tests.boundary.apps import Echo, exchange, read_all
from tests.boundary.node import identity

pytestmark = pytest.mark.lab
PORT = 8080


def test_enrolling_again_disturbs_nothing(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        mesh.enrol(a)
        mesh.enrol(b)
        connection.sendall(b"2")
        assert connection.recv(1) == b"2"
    assert mesh.core.pods() == ["uid-a", "uid-b"]
    assert mesh.sample("workload_manager_proxies_started_total") == 2


def test_withdrawing_cuts_connections_frees_the_ports_and_tells_the_identity(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        mesh.withdraw(b)
        assert mesh.core.pods() == ["uid-a"]
        for port in (15001, 15006, 15008):
            b.listen(port).close()
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert mesh.event("identity_unused")[1] == identity(b)
    mesh.withdraw(b)


def test_a_pod_in_another_namespace_replaces_the_old_one(mesh, wire):
    a, _, c = wire.pods
    mesh.core.enrol("uid-a", "a", "shop", "a", fd := os.open(c.path, os.O_RDONLY))
    os.close(fd)
    for port in (15001, 15006, 15008):
        a.listen(port).close()
        with pytest.raises(OSError, match="in use"):
            c.listen(port)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("address", ["", "::", "127.0.0.1"])
def test_a_port_that_the_pod_holds_refuses_it_and_leaves_nothing(node, wire, port, address):
    from ztunnel._core import AddressTaken

    a = wire.pods[0]
    with a.listen(port, address), pytest.raises(AddressTaken, match=str(port)):
        node.enrol(a)
    assert node.core.pods() == []
    for free in {15001, 15006, 15008} - {port}:
        a.listen(free).close()
    node.enrol(a)


def test_what_is_no_namespace_is_gone(node, tmp_path):
    from ztunnel._core import NamespaceGone

    with open(tmp_path / "file", "w") as file, pytest.raises(NamespaceGone):
        node.core.enrol("uid", "a", "shop", "a", file.fileno())
    with pytest.raises(NamespaceGone):
        node.core.enrol("uid", "a", "shop", "a", -1)
    assert node.core.pods() == []


def test_draining_lets_connections_end_and_takes_no_new_ones(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT):
        with a.connect(b.ip, PORT) as connection:
            connection.sendall(b"1")
            assert connection.recv(1) == b"1"
            mesh.core.drain(3600)
            refused(a, b)
            connection.sendall(b"2")
            assert connection.recv(1) == b"2"
        mesh.event("drained")
    with pytest.raises(OSError, match="shutting down"):
        mesh.enrol(a)
    assert mesh.core.pods() == []


def refused(client, server):
    """Captured, and nobody there: a refusal by the kernel."""
    for _ in range(1000):  # the worker closes its listeners soon after the call
        with contextlib.suppress(ConnectionResetError):
            try:
                exchange(client.connect(server.ip, PORT), b"?")
            except ConnectionRefusedError:
                return
    pytest.fail("still accepted")


def test_what_does_not_end_is_cut_at_the_deadline(mesh, wire):
    a, b, _ = wire.pods
    with Echo(b, PORT), a.connect(b.ip, PORT) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        mesh.core.drain(0)
        mesh.event("drained")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert mesh.line(lambda line: "error" in line)["error"] == "connection closed: the tunnel is shutting down"


def test_without_descriptors_accepting_pauses_and_goes_on(mesh, wire):
    a, b, _ = wire.pods
    code = "s=socket.create_connection((sys.argv[1],8080)); s.send(b'x'); print(s.recv(1))"
    command = [
        "ip",
        "netns",
        "exec",
        a.netns,
        sys.executable,
        "-c",
        f"import socket,sys; sys.stdin.read(1); {code}",
        b.ip,
    ]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Echo(b, PORT), client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            client.stdin.write(b".")
            client.stdin.flush()
            while mesh.sample("nodemesh_accept_failures_total") == 0:
                select.select([], [], [], 0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert client.stdout.read().strip() == b"b'x'"


def test_calls_from_many_threads_and_a_close_among_them_do_not_block_each_other(node, wire):
    a = wire.pods[0]
    outcomes = set()

    def busy():
        try:
            while True:
                node.enrol(a)
                node.core.metrics()
                node.core.dump()
                node.withdraw(a)
        except RuntimeError as error:
            outcomes.add(str(error))

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    node.tell(a)
    node.event("need_certificate")
    node.deafen()
    node.core.close()
    for thread in threads:
        thread.join()
    assert outcomes == {"the core is closed"}
