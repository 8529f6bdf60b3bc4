"""The names that a captured pod asks for: the mesh's own from the core, all others from whom it asked."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
from typing import Any

import pytest

from mesh.delta import ADDRESS_TYPE
from mesh.gen.workload_pb2 import Address, NetworkAddress, Port, Service
from tests import dnswire
from tests.boundary.node import PATIENCE_S, packed
from tests.boundary.wire import Pod

pytestmark = pytest.mark.lab
BOTH = pytest.mark.parametrize("version", [4, 6])


def service(hostname: str, *vips: str, namespace: str = "shop") -> tuple[str, bytes]:
    addresses = [NetworkAddress(address=packed(vip)) for vip in vips]
    message = Service(
        name=hostname.split(".")[0],
        namespace=namespace,
        hostname=hostname,
        addresses=addresses,
        ports=[Port(service_port=80, target_port=80)],
    )
    return f"{namespace}/{hostname}", Address(service=message).SerializeToString()


def address(pod: Pod, version: int) -> str:
    return pod.ip if version == 4 else pod.ip6


def datagrams(pod: Pod, version: int = 4, at: tuple[str, int] | None = None) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def make() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        if at:
            sock.bind(at)
        return sock

    return pod.inside(make)


class NameServer:
    """On port 53 of a pod outside the mesh. `seen`: (name, client's address and port, id) of each question."""

    def __init__(self, pod: Pod, version: int, rcode: int = 0, flags: int = 0) -> None:
        self.seen: queue.Queue[tuple[str, Any, int]] = queue.Queue()
        self._rcode, self._flags = rcode, flags
        self._udp = datagrams(pod, version, ("", 53))
        self._tcp = pod.listen(53, "" if version == 4 else "::")
        self._udp.settimeout(None)
        self._threads = [threading.Thread(target=self._datagrams), threading.Thread(target=self._streams)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def _answer(self, data: bytes, client: Any, flags: int) -> bytes:
        message = dnswire.Message(data)
        self.seen.put((message.name, client, message.ident))
        return dnswire.reply(data, ["198.51.100.7", "2001:db8:51::7"], self._rcode, flags)

    def _datagrams(self) -> None:
        while True:
            data, client = self._udp.recvfrom(65535)
            if not data:
                return
            self._udp.sendto(self._answer(data, client, self._flags), client)

    def _streams(self) -> None:
        while True:
            try:
                connection, client = self._tcp.accept()
            except OSError:
                return
            with connection:
                answer = self._answer(dnswire.read_framed(connection), client, 0)
                connection.sendall(struct.pack("!H", len(answer)) + answer)


@pytest.fixture
def node(start_node):
    return start_node(log_level="info")


@pytest.fixture
def named(mesh, wire) -> tuple[Any, Pod, Pod]:
    """(core, captured pod, pod outside): the mesh knows `web` and `db.example.com`."""
    known = [
        service("web.shop.svc.cluster.local", "10.96.0.10", "fd00::10"),
        service("db.example.com", "240.240.0.7", "2001:2::7"),
    ]
    assert mesh.core.apply(ADDRESS_TYPE, known, []) == []
    return mesh, wire.pods[0], wire.pods[2]


@BOTH
@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_a_name_of_the_mesh_is_answered_although_no_server_is_there(named, version, way):
    _, pod, outside = named
    rtype, answer = {4: ("A", "10.96.0.10"), 6: ("AAAA", "fd00::10")}[version]
    if way == "udp":
        with datagrams(pod, version) as sock:
            said = dnswire.ask_datagram(sock, address(outside, version), "WEB.shop.svc.cluster.local", rtype)
    else:
        with pod.connect(address(outside, version), 53, PATIENCE_S) as sock:
            assert dnswire.ask_stream(sock, "nobody.web", "HTTPS").rcode != "NOERROR", "several on one stream"
            said = dnswire.ask_stream(sock, "web.shop.svc.cluster.local", rtype)
    assert (said.rcode, said.texts) == ("NOERROR", [answer])


@BOTH
@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_another_name_is_asked_of_the_server_that_the_pod_asked_with_the_pods_own_address(named, version, way):
    core, pod, outside = named
    rtype, answer = {4: ("A", "198.51.100.7"), 6: ("AAAA", "2001:db8:51::7")}[version]
    with NameServer(outside, version) as server:
        for _ in range(2):
            if way == "udp":
                with datagrams(pod, version) as sock:
                    said = dnswire.ask_datagram(sock, address(outside, version), "example.org", rtype)
            else:
                with pod.connect(address(outside, version), 53, PATIENCE_S) as sock:
                    said = dnswire.ask_stream(sock, "example.org", rtype)
            assert (said.ident, said.rcode, said.texts) == (0x4242, "NOERROR", [answer])
        seen = [server.seen.get(timeout=PATIENCE_S) for _ in range(2)]
    assert {name for name, _, _ in seen} == {"example.org"}
    assert {client[0] for _, client, _ in seen} == {address(pod, version)}
    assert len({client[1] for _, client, _ in seen}) == 2, "each question from a port of its own"
    labels = {"request_query_type": rtype, "request_protocol": way}
    assert core.sample("istio_dns_requests_total", **labels) == 2
    assert core.sample("istio_dns_upstream_requests_total", source_canonical_service="a", **labels) == 2
    assert core.sample("istio_dns_upstream_failures_total", **labels) == 0


def test_ids_are_not_the_clients(named):
    _, pod, outside = named
    with NameServer(outside, 4) as server, datagrams(pod) as sock:
        for n in range(4):
            dnswire.ask_datagram(sock, outside.ip, f"n{n}.example.org")
        idents = {server.seen.get(timeout=PATIENCE_S)[2] for _ in range(4)}
    assert idents != {0x4242}


@pytest.mark.parametrize(("rcode", "text"), [(3, "NXDOMAIN"), (5, "REFUSED")])
def test_what_a_server_says_is_passed_on_as_it_is(named, rcode, text):
    _, pod, outside = named
    with NameServer(outside, 4, rcode) as _, datagrams(pod) as sock:
        assert dnswire.ask_datagram(sock, outside.ip, "example.org").rcode == text
    with NameServer(outside, 4, flags=dnswire.TRUNCATED) as _, datagrams(pod) as sock:
        assert dnswire.ask_datagram(sock, outside.ip, "example.org").truncated


def test_a_dead_server_fails_other_names_and_leaves_the_meshs_alone(named):
    core, pod, outside = named
    with datagrams(pod) as sock:
        assert dnswire.ask_datagram(sock, outside.ip, "example.org").rcode == "SERVFAIL", "refused: told at once"
    silent = "10.77.0.99"
    with datagrams(pod) as waiting, datagrams(pod) as sock:
        for n in range(300):
            waiting.sendto(dnswire.question(f"n{n}.example.org", ident=n), (silent, 53))
            if n % 50 == 49:  # a question that is answered when those before it were read
                assert dnswire.ask_datagram(sock, silent, "web").texts == ["10.96.0.10"]
        assert dnswire.ask_datagram(sock, silent, "db.example.com.shop.svc.cluster.local").rcode == "NOERROR"
        failed = [dnswire.Message(waiting.recv(512)).rcode for _ in range(300)]
    assert set(failed) == {"SERVFAIL"}
    state = dump_of(core, pod)["dns"]
    assert (state["answered"], state["failed"]) == (7, 301)
    assert "10.77.0.99:53 did not answer" in state["lastFailure"] or "unreachable" in state["lastFailure"]
    assert core.sample("istio_dns_upstream_failures_total") == state["forwarded"]


def dump_of(core: Any, pod: Pod) -> Any:
    return json.loads(core.core.dump())["workloadState"][f"uid-{pod.name}"]


def test_nobody_but_the_pod_is_served(named):
    _, pod, outside = named
    with datagrams(outside) as sock:
        sock.connect((pod.ip, 15053))
        sock.send(dnswire.question("web"))
        with pytest.raises(ConnectionRefusedError):
            sock.recv(512)
    with pytest.raises(ConnectionError), outside.connect(pod.ip, 15053) as sock:
        dnswire.ask_stream(sock, "web")


def test_what_is_no_question_does_not_stop_the_service(named):
    _, pod, outside = named
    with datagrams(pod) as sock:
        for junk in (b"", b"x", b"\0" * 12, b"\xff" * 700, dnswire.question("web")[:-3]):
            sock.sendto(junk, (outside.ip, 53))
        sock.sendto(dnswire.reply(dnswire.question("web")), (outside.ip, 53))
        sock.sendto(dnswire.question("web", ident=7), (outside.ip, 53))
        while struct.unpack("!H", (data := sock.recv(512))[:2])[0] != 7:
            pass
    assert dnswire.Message(data).texts == ["10.96.0.10"]
    with pod.connect(outside.ip, 53, PATIENCE_S) as sock:
        sock.sendall(b"\xff\xff")
        assert sock.recv(10) == b"", "too long to be a question"


def test_a_pod_that_is_not_known_yet_gets_no_wrong_answer(node, wire):
    """Names of the mesh must not be asked of somebody else only because the control plane has not spoken."""
    pod, _, outside = wire.pods
    wire.capture(pod)
    node.enrol(pod)
    with datagrams(pod) as sock, NameServer(outside, 4) as server:
        sock.sendto(dnswire.question("web"), (outside.ip, 53))
        node.tell(pod)
        assert node.core.apply(ADDRESS_TYPE, [service("other.shop.svc.cluster.local", "10.96.0.11")], []) == []
        assert dnswire.Message(sock.recv(512)).texts == ["198.51.100.7"], "answered once the pod is known"
        assert server.seen.get(timeout=PATIENCE_S)[0] == "web"


def test_a_pod_that_leaves_frees_the_port(named):
    core, pod, _ = named
    core.withdraw(pod)
    for version, loopback in ((4, "127.0.0.1"), (6, "::1")):
        pod.listen(15053, loopback).close()
        datagrams(pod, version, (loopback, 15053)).close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_the_pod_holds_refuses_it(node, wire, protocol):
    from ztunnel._core import AddressTaken

    pod = wire.pods[0]
    holder = pod.listen(15053) if protocol == "tcp" else datagrams(pod, 4, ("", 15053))
    with holder, pytest.raises(AddressTaken, match="15053"):
        node.enrol(pod)
    assert node.core.pods() == []
    node.enrol(pod)
