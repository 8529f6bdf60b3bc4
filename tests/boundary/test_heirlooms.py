"""Listening sockets outlive a tunnel: what one leaves, the next serves; what arrives in between waits, not refused."""

import os
import socket

import pytest

from tests.boundary.apps import Echo, exchange
from tests.boundary.node import identity, uid

pytestmark = pytest.mark.lab
PORT = 8080


def enrol(node, pod, inherited):
    fd = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        node.core.enrol(f"uid-{pod.name}", pod.name, "shop", pod.name, fd, inherited=inherited)
    finally:
        os.close(fd)


class Keeper:
    """Stands for the node agent between two tunnels."""

    def __init__(self, node, *pods):
        self.kept = {pod.name: node.core.listeners(f"uid-{pod.name}") for pod in pods}

    def give(self, node, pod):
        enrol(node, pod, self.kept[pod.name])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fds in self.kept.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def tunnels(start_node, wire):
    """Two tunnels that share an authority; `a` and `b` are captured and served by the first."""
    first = start_node(same_node_tls=True)
    second = start_node(same_node_tls=True, authority=first.authority)
    for pod in wire.pods[:2]:
        wire.capture(pod)
        enrol(first, pod, [])
    for node in (first, second):
        node.tell(*wire.pods[:2])
    return first, second


def asks(pod, name="nobody.invalid"):
    """A datagram to the pod's DNS door."""
    asker = pod.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    asker.settimeout(60)
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    asker.sendto(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x10\0\x01", ("127.0.0.1", 15053))
    return asker


def test_what_arrives_between_two_tunnels_waits_and_is_served_by_the_second(tunnels, wire):
    first, second = tunnels
    a, b, _ = wire.pods
    with Echo(b, PORT), Echo(b, PORT, "::"), Keeper(first, a, b) as keeper:
        first.core.drain(0)
        first.event("drained")
        with a.connect(b.ip, PORT) as waiting, a.connect(b.ip6, PORT) as waiting6, asks(a) as asker:
            keeper.give(second, a)
            keeper.give(second, b)
            assert exchange(waiting, b"was not refused") == b"was not refused"
            assert exchange(waiting6, b"nor this") == b"nor this"
            assert asker.recv(512)[:2] == b"\x12\x34"
    line = second.line(lambda line: line["direction"] == "outbound")
    assert line["dst.identity"] == identity(b)


def test_while_two_tunnels_serve_a_pod_each_connection_is_served_by_one_and_none_is_lost(tunnels, wire):
    first, second = tunnels
    a, b, _ = wire.pods
    with Echo(b, PORT), Keeper(first, a, b) as keeper:
        keeper.give(second, a)
        keeper.give(second, b)
        for n in range(20):
            if n == 10:
                first.core.drain(3600)
            assert exchange(a.connect(b.ip, PORT), b"%d" % n) == b"%d" % n
        first.event("drained")
    served = [node.sample("istio_tcp_connections_opened_total", reporter="source") for node in tunnels]
    assert sum(served) == 20
    assert served[1] >= 10


def test_ports_are_free_when_nobody_holds_their_sockets_any_longer(tunnels, wire):
    first, second = tunnels
    a = wire.pods[0]
    with Keeper(first, a) as keeper:
        keeper.give(second, a)
        first.withdraw(a)
        second.withdraw(a)
        with pytest.raises(OSError, match="in use"):
            a.listen(15001)
    for port in (15001, 15006, 15008, 15053):
        a.listen(port, "127.0.0.1").close()


def test_sockets_of_another_pod_are_not_served_as_this_ones(tunnels, wire):
    """It would lend the other one's connections this identity."""
    first, second = tunnels
    a, b, c = wire.pods
    with Keeper(first, a, b) as keeper:
        enrol(second, c, keeper.kept["b"])
        with Keeper(second, c) as own:
            theirs = {os.fstat(fd).st_ino for fd in keeper.kept["b"]}
            assert len(own.kept["c"]) == 7
            assert theirs.isdisjoint(os.fstat(fd).st_ino for fd in own.kept["c"])


def test_what_is_missing_is_bound_anew(tunnels, wire):
    first, second = tunnels
    a = wire.pods[0]
    with Keeper(first, a) as keeper:
        listeners = keeper.kept["a"]
        first.withdraw(a)
        os.close(listeners.pop(0))
        keeper.give(second, a)
        with Keeper(second, a) as own:
            assert len(own.kept["a"]) == 7
    assert second.core.pods() == ["uid-a"]
    assert uid(a) in str(second.core.dump())


def test_nobody_keeps_sockets_that_nobody_asked_for(mesh, wire):
    assert mesh.core.listeners("uid-a") == []
