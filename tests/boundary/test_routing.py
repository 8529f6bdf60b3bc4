"""Which endpoint a connection ends at: choices, failed ones, and what is refused."""

import pytest

from mesh.delta import ADDRESS_TYPE
from mesh.gen.authorization_pb2 import Match
from mesh.gen.workload_pb2 import Address, Port, PortList, Service
from tests.boundary.apps import Echo, exchange
from tests.boundary.node import packed, record, uid
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
            assert app.seen.get(timeout=5) == b.ip


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
