"""Which endpoint a connection ends at: choices, failed ones, and what is refused."""

import contextlib
import select
import socket
import threading

import pytest

from mesh.delta import ADDRESS_TYPE
from mesh.gen.authorization_pb2 import Match
from mesh.gen.workload_pb2 import Address, Port, PortList, Service
from tests.boundary.apps import Echo, exchange
from tests.boundary.node import PATIENCE_S, identity, packed, record, uid
from tests.boundary.test_paths import deny

pytestmark = pytest.mark.lab
VIP = "10.96.0.1"
PORT = 8080


def is_outbound(line):
    return line["scope"] == "access" and line["direction"] == "outbound"


def service(*extensions, vip=VIP):
    """`web.shop` on port 80, which its endpoints serve on 8080."""
    made = Service(
        name="web", namespace="shop", hostname="web.shop.svc", ports=[Port(service_port=80, target_port=PORT)]
    )
    made.addresses.add(address=packed(vip))
    for name, value in extensions:
        extend(made, name, value)
    return "shop/web.shop.svc", Address(service=made).SerializeToString()


def extend(message, name, value):
    extension = message.extensions.add(name=name)
    extension.config.type_url = "type.googleapis.com/google.protobuf.StringValue"
    extension.config.value = b"\n" + bytes([len(value)]) + value.encode()


def serving(**fields):
    return {"services": {"shop/web.shop.svc": PortList()}, **fields}


def tell(node, *resources):
    assert node.core.apply(ADDRESS_TYPE, list(resources), []) == []


@pytest.mark.parametrize("how", ["", "least-request", "client-address"])
def test_a_dead_endpoint_is_passed_over_before_the_application_notices(mesh, wire, how):
    """`c` claims to have a tunnel, but nobody listens there."""
    _, b, c = wire.pods
    a = wire.pods[0]
    tell(mesh, service(*([("nodemesh/load-balancing", how)] if how else [])))
    tell(mesh, record(b, **serving()), record(c, **serving(capacity={"value": 1000})))
    tried = []
    with Echo(b, PORT):
        for _ in range(8):
            assert exchange(a.connect(VIP, 80), b"hello") == b"hello"
            line = mesh.line(is_outbound)
            assert (line["message"], line["dst.workload"]) == ("connection complete", "b")
            tried += [line["dst.tried"]] if "dst.tried" in line else []
    assert len(tried) > 0 or how == "client-address"  # whose client may live at b
    assert all(f"tunnel to {c.ip}:15008: connect: Connection refused" in text for text in tried)


def test_when_every_endpoint_fails_the_application_sees_a_reset_and_the_log_tells_all_of_them(mesh, wire):
    a, b, c = wire.pods
    tell(mesh, service(), record(b, **serving()), record(c, **serving()))
    with pytest.raises(ConnectionResetError):
        exchange(a.connect(VIP, 80), b"hello")
    error = mesh.line(is_outbound)["error"]
    assert f"tunnel to {c.ip}:15008: connect: Connection refused" in error
    assert "before that" in error


def test_a_denial_is_not_asked_for_again_at_another_endpoint(mesh, wire):
    a, b, c = wire.pods
    mesh.put_policy(deny("port", Match(destination_ports=[PORT])))
    tell(mesh, service(), record(b, **serving()), record(c, **serving(status=1)))
    with Echo(b, PORT) as app, pytest.raises(ConnectionResetError):
        exchange(a.connect(VIP, 80), b"hello")
    assert app.seen.empty()
    assert "before that" not in mesh.line(is_outbound)["error"]


def test_a_pod_reaches_itself_by_its_services_address_and_by_its_own(mesh, wire):
    _, b, _ = wire.pods
    tell(mesh, service(), record(b, **serving()))
    with Echo(b, PORT) as app:
        for address, port in ((VIP, 80), (b.ip, PORT)):
            assert exchange(b.connect(address, port), b"myself") == b"myself"
            assert app.seen.get(timeout=60) == b.ip


def test_registry_only_lets_nobody_out_but_to_what_the_mesh_knows(start_node, wire):
    a, b, c = wire.pods
    node = start_node(outbound_policy="REGISTRY_ONLY")
    for pod in (a, b):
        wire.capture(pod)
        node.enrol(pod)
    node.tell(a, b)
    with Echo(b, PORT), Echo(c, PORT) as outside:
        assert exchange(a.connect(b.ip, PORT), b"known") == b"known"
        with pytest.raises(ConnectionResetError):
            exchange(a.connect(c.ip, PORT), b"unknown")
        assert outside.seen.empty()
    line = node.line(lambda line: "error" in line)
    assert line["error"] == (
        f"{c.ip}:{PORT} is no address of the mesh, and the outbound policy REGISTRY_ONLY allows no other"
    )
    assert node.sample("istio_tcp_connections_failed_total", response_flags="DENY", reporter="source") == 1


def test_the_control_planes_word_about_a_workload_goes_before_the_setting(start_node, wire):
    a, _, c = wire.pods
    node = start_node(outbound_policy="REGISTRY_ONLY")
    wire.capture(a)
    node.enrol(a)
    name, data = record(a)
    address = Address.FromString(data)
    extend(address.workload, "nodemesh/outbound-policy", "ALLOW_ANY")
    tell(node, (name, address.SerializeToString()))
    with Echo(c, PORT):
        assert exchange(a.connect(c.ip, PORT), b"out") == b"out"


def test_one_client_stays_with_one_endpoint(mesh, wire):
    a, b, _ = wire.pods
    tell(mesh, service(("nodemesh/load-balancing", "client-address")))
    tell(mesh, record(a, **serving()), record(b, **serving()))
    with Echo(a, PORT), Echo(b, PORT):
        for _ in range(6):
            assert exchange(a.connect(VIP, 80), b"x") == b"x"
        ends = {mesh.line(is_outbound)["dst.workload"] for _ in range(6)}
    assert len(ends) == 1


def test_the_least_loaded_endpoint_gets_the_next_connection(start_node, wire):
    """One worker: its own connections are what it counts. Of two draws at least one is the idle one, mostly."""
    a, b, _ = wire.pods
    node = start_node(workers=1)
    for pod in (a, b):
        wire.capture(pod)
        node.enrol(pod)
    tell(node, service(("nodemesh/load-balancing", "least-request")))
    tell(node, record(a, **serving()), record(b, **serving()))
    with Echo(a, PORT), Echo(b, PORT):
        held = []
        for _ in range(24):
            held.append(a.connect(VIP, 80))
            held[-1].sendall(b"1")
            assert held[-1].recv(1) == b"1"
        for connection in held:
            connection.close()
        ends = [node.line(is_outbound)["dst.workload"] for _ in held]
    assert 8 <= ends.count("a") <= 16, "random choice alone strays further in one run of twelve"


def test_a_waypoint_that_is_not_there_is_not_gone_round(mesh, wire):
    a, b, _ = wire.pods
    gateway = {"hostname": {"namespace": "shop", "hostname": "gone.shop.svc"}, "hbone_mtls_port": 15008}
    tell(mesh, record(b, waypoint=gateway))
    with Echo(b, PORT) as app, pytest.raises(ConnectionResetError):
        exchange(a.connect(b.ip, PORT), b"hello")
    assert app.seen.empty()
    assert mesh.line(is_outbound)["error"] == f"waypoint shop/gone.shop.svc of {uid(b)} is not known"


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_an_application_that_wants_a_proxy_header_gets_it_on_loopback_and_nowhere_else(mesh, wire, family):
    a, b, _ = wire.pods
    tell(mesh, record(b, application_tunnel={"protocol": 1, "port": 7070}))
    loopback, to = ("::1", b.ip6) if family == "ip6" else ("127.0.0.1", b.ip)
    with b.listen(7070, loopback) as listener, a.connect(to, PORT) as client:
        client.sendall(b"hello")
        server, peer = listener.accept()
        with server:
            assert peer[0] == loopback
            header = server.recv(16, socket.MSG_WAITALL)
            assert header[:12] == b"\r\n\r\n\0\r\nQUIT\n"
            body = server.recv(int.from_bytes(header[14:16], "big"), socket.MSG_WAITALL)
            size = len(packed(to))
            assert body[:size] == packed(getattr(a, family))
            assert body[size : 2 * size] == packed(to)
            assert int.from_bytes(body[2 * size + 2 : 2 * size + 4], "big") == PORT
            who = identity(a).encode()
            assert body[2 * size + 4 :] == b"\xd0" + len(who).to_bytes(2, "big") + who
            assert server.recv(5, socket.MSG_WAITALL) == b"hello"


class Forward:
    """What an east-west gateway does with the stream that it was addressed with: passes bytes on."""

    def __init__(self, pod, port, to):
        self._listener = pod.listen(port)
        self._listener.settimeout(PATIENCE_S)
        self._dial = lambda: pod.connect(*to)
        self.passed = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        incoming, _ = self._listener.accept()
        with (
            incoming,
            self._dial() as outgoing,
            contextlib.suppress(OSError),
        ):  # an end may be gone when told of the other's
            open_ends = {incoming: outgoing, outgoing: incoming}
            while open_ends:
                for end in select.select(list(open_ends), [], [])[0]:
                    if data := end.recv(1 << 16):
                        self.passed += data
                        open_ends[end].sendall(data)
                    else:
                        open_ends.pop(end).shutdown(socket.SHUT_WR)

    def join(self):
        self._thread.join()
        self._listener.close()


def test_a_pod_of_another_network_is_reached_through_its_gateway_which_cannot_read_along(start_node, wire):
    """Two nodes in two networks; `c` is the gateway: a pod whose application passes streams on to `b`'s tunnel."""
    a, b, c = wire.pods
    here = start_node(network="here")
    there = start_node(network="there", authority=here.authority, orig_src=False)  # `c` has no rules for it
    for node, pod in ((here, a), (there, b)):
        wire.capture(pod)
        node.enrol(pod)
    there.enrol(c)
    gateway = {"address": {"network": "there", "address": packed(c.ip)}, "hbone_mtls_port": 15008}
    far = record(b, network="there", network_gateway=gateway, **serving())
    name, data = service()
    known = Address.FromString(data)
    known.service.addresses[0].network = "here"
    known.service.subject_alt_names.append(identity(b))
    tell(here, (name, known.SerializeToString()), record(a, network="here"), far, record(c, network="there"))
    tunnel = {"port": 7777}
    tell(there, service(), record(b, network="there", **serving()))
    tell(there, record(c, network="there", application_tunnel=tunnel, **serving(capacity={"value": 0})))
    passing = Forward(c, 7777, (b.ip, 15008))
    with Echo(b, PORT):
        assert exchange(a.connect(VIP, 80), b"end to end") == b"end to end"
    passing.join()
    assert b"end to end" not in passing.passed
    line = here.line(is_outbound)
    assert (line["dst.hbone_addr"], line["dst.addr"]) == ("web.shop.svc:80", f"{c.ip}:15008")
    assert (line["dst.identity"], line["dst.workload"]) == (identity(b), "b")
    inbound = there.line(lambda line: line.get("dst.workload") == "b")
    assert inbound["src.identity"] == identity(a), "not the gateway's"


def test_a_gateway_that_answers_itself_is_not_believed(start_node, wire):
    """Its certificate is good for the outer tunnel only."""
    a, _, c = wire.pods
    here = start_node(network="here")
    there = start_node(network="there", authority=here.authority, orig_src=False)  # `c` has no rules for it
    wire.capture(a)
    here.enrol(a)
    there.enrol(c)
    gateway = {"address": {"network": "there", "address": packed(c.ip)}, "hbone_mtls_port": 15008}
    name, data = service()
    known = Address.FromString(data)
    known.service.addresses[0].network = "here"
    known.service.subject_alt_names.append("spiffe://cluster.local/ns/shop/sa/b")
    b = wire.pods[1]
    far = record(b, network="there", network_gateway=gateway, **serving())
    tell(here, (name, known.SerializeToString()), record(a, network="here"), far, record(c, network="there"))
    tell(there, service(), record(c, network="there", application_tunnel={"port": 15008}, **serving()))
    with pytest.raises(ConnectionResetError):
        exchange(a.connect(VIP, 80), b"hello")
    tell(there, record(c, network="there", application_tunnel={"port": 7777}, **serving()))
    passing = Forward(c, 7777, (c.ip, 15008))
    with pytest.raises(ConnectionResetError):
        exchange(a.connect(VIP, 80), b"hello")
    passing.join()
    lines = [here.line(is_outbound)["error"] for _ in range(2)]
    assert "the peer answered 503" in lines[0]
    assert "behind the gateway" in lines[1]
