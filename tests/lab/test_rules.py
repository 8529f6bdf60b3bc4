"""The rules in a real kernel: what they capture, what they let pass, and that they come and go as a whole."""

from pathlib import Path

import pytest

from nodeagent.redirect import canary, routes
from nodeagent.redirect.plan import PROBE_SOURCES
from tests.lab.captures import WAYS, Capture
from tests.lab.pairs import NEIGHBOUR, POD, original_destination, pair

pytestmark = pytest.mark.lab

GOLDEN = Path(__file__).parents[1] / "nodeagent/redirect/golden"
BOTH = pytest.mark.parametrize("version", [4, 6])
TUNNEL_MARK = 0x539


@pytest.fixture(scope="module", params=WAYS)
def places(request):
    """The pod, its neighbour, what captures the pod."""
    with pair() as (pod, neighbour):
        yield pod, neighbour, Capture(request.param, pod)


@pytest.fixture
def capture(places):
    yield places[2]
    places[2].take_out()


@pytest.fixture
def pod(places, capture):
    """Captured by the default plan."""
    capture.put()
    return places[0]


@pytest.fixture
def neighbour(places):
    return places[1]


def accepted(listener):
    sock, peer = listener.accept()
    return sock, peer[0]


@BOTH
def test_what_the_pod_sends_comes_to_15001_with_its_destination(pod, neighbour, version):
    with pod.listening(15001, version) as tunnel, pod.connected(NEIGHBOUR[version], 80):
        sock, _ = accepted(tunnel)
        with sock:
            assert original_destination(sock) == (NEIGHBOUR[version], 80)


@BOTH
def test_without_a_tunnel_the_pod_is_refused_not_exposed(pod, neighbour, version):
    with neighbour.listening(80, version), pytest.raises(ConnectionRefusedError), pod.connected(NEIGHBOUR[version], 80):
        pass


@BOTH
def test_the_tunnels_own_sockets_go_out(pod, neighbour, version):
    with neighbour.listening(80, version) as server, pod.connected(NEIGHBOUR[version], 80, mark=TUNNEL_MARK):
        sock, peer = accepted(server)
        with sock:
            assert peer == POD[version]


@BOTH
@pytest.mark.parametrize("port", [80, 15001, 15006])
def test_what_comes_in_comes_to_15006_with_its_destination(pod, neighbour, version, port):
    with pod.listening(15006, version) as tunnel, neighbour.connected(POD[version], port):
        sock, peer = accepted(tunnel)
        with sock:
            assert peer == NEIGHBOUR[version]
            if port != 15006:
                assert original_destination(sock) == (POD[version], port)


@BOTH
def test_what_the_pod_asks_on_port_53_comes_to_15053_and_the_answer_looks_like_the_servers(pod, version):
    loopback = {4: "127.0.0.1", 6: "::1"}[version]
    with pod.datagrams(version, loopback, 15053) as tunnel, pod.datagrams(version) as client:
        client.sendto(b"question", (NEIGHBOUR[version], 53))
        question, peer = tunnel.recvfrom(100)
        tunnel.sendto(question.upper(), peer)
        assert (peer[0], client.recvfrom(100)) == (POD[version], (b"QUESTION", server_address(version)))
    with pod.listening(15053, version) as tunnel, pod.connected(NEIGHBOUR[version], 53):
        sock, _ = accepted(tunnel)
        with sock:
            assert original_destination(sock) == (NEIGHBOUR[version], 53)


def server_address(version):
    return (NEIGHBOUR[version], 53) if version == 4 else (NEIGHBOUR[version], 53, 0, 0)


@BOTH
def test_the_tunnels_question_goes_out_even_from_the_port_that_the_pod_asked_from(pod, neighbour, version):
    """Else conntrack would take it for the pod's and send it back to the tunnel."""
    loopback = {4: "127.0.0.1", 6: "::1"}[version]
    with neighbour.datagrams(version, "", 53) as server, pod.datagrams(version, loopback, 15053) as tunnel:
        with pod.datagrams(version, "", 5353) as client:
            client.sendto(b"question", (NEIGHBOUR[version], 53))
            tunnel.recvfrom(100)
        with pod.datagrams(version, "", 5353, mark=TUNNEL_MARK) as query:
            query.sendto(b"onward", (NEIGHBOUR[version], 53))
            question, peer = server.recvfrom(100)
            server.sendto(b"answer", peer)
            assert (question, peer[0], query.recvfrom(100)[0]) == (b"onward", POD[version], b"answer")


@BOTH
def test_without_capture_of_dns_questions_reach_their_server(pod, neighbour, capture, version):
    capture.put(dns_capture=False)
    with neighbour.datagrams(version, "", 53) as server, pod.datagrams(version) as client:
        client.sendto(b"question", (NEIGHBOUR[version], 53))
        assert server.recvfrom(100)[1][0] == POD[version]


@BOTH
def test_without_a_tunnel_a_question_fails_at_once(pod, neighbour, version):
    with neighbour.datagrams(version, "", 53), pod.datagrams(version) as client:
        client.connect((NEIGHBOUR[version], 53))
        client.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


@BOTH
def test_a_name_server_on_the_pods_own_addresses_is_left_alone(pod, version):
    for address in ({4: "127.0.0.1", 6: "::1"}[version], POD[version]):
        with pod.datagrams(version, address, 53) as server, pod.datagrams(version) as client:
            client.sendto(b"question", (address, 53))
            question, peer = server.recvfrom(100)
            server.sendto(question, peer)
            assert client.recvfrom(100)[0] == b"question"


@BOTH
def test_hbone_that_comes_in_is_not_redirected(pod, neighbour, version):
    with pod.listening(15008, version) as tunnel, neighbour.connected(POD[version], 15008):
        accepted(tunnel)[0].close()


@BOTH
@pytest.mark.parametrize("target", ["loopback", "own address"])
def test_the_pod_reaches_itself_without_the_tunnel(pod, version, target):
    address = POD[version] if target == "own address" else {4: "127.0.0.1", 6: "::1"}[version]
    with pod.listening(80, version) as server, pod.connected(address, 80):
        accepted(server)[0].close()


@BOTH
def test_the_application_sees_the_client_and_its_answer_comes_back_to_the_tunnel(pod, version):
    """The tunnel connects with the client's address; the packets of the answer must not leave by the wire."""
    how = {"mark": TUNNEL_MARK, "source": NEIGHBOUR[version]}
    with pod.listening(80, version) as server, pod.connected(POD[version], 80, **how) as tunnel:
        sock, peer = accepted(server)
        with sock:
            assert peer == NEIGHBOUR[version]
            sock.sendall(b"answer")
        assert tunnel.recv(100) == b"answer"


@BOTH
def test_in_ingress_mode_plaintext_reaches_the_application(pod, neighbour, capture, version):
    capture.put(ingress_mode=True)
    with pod.listening(80, version) as server, neighbour.connected(POD[version], 80):
        accepted(server)[0].close()


@BOTH
def test_what_the_node_sends_as_a_probe_passes_by_and_nothing_else_does(pod, neighbour, capture, version):
    """PROBE_SOURCES is where the kubelet's probes come from."""
    capture.put(exempt_probes=True)
    probe = PROBE_SOURCES[0 if version == 4 else 1]
    neighbour.command("ip", "addr", "add", probe, "dev", "eth0", *(["nodad"] if version == 6 else []))
    try:
        with pod.listening(80, version) as server, pod.listening(15006, version) as tunnel:
            for source, listener in ((probe, server), (NEIGHBOUR[version], tunnel)):
                with neighbour.connected(POD[version], 80, source=source):
                    sock, peer = accepted(listener)
                    sock.close()
                    assert peer == source
    finally:
        neighbour.command("ip", "addr", "del", f"{probe}/{32 if version == 4 else 128}", "dev", "eth0")


@BOTH
def test_a_connection_under_way_outlives_the_rules_being_replaced(pod, neighbour, capture, version):
    with pod.listening(15001, version) as tunnel, pod.connected(NEIGHBOUR[version], 80) as client:
        sock, _ = accepted(tunnel)
        capture.put()
        with sock:
            client.sendall(b"still here")
            assert sock.recv(100) == b"still here"
            assert original_destination(sock) == (NEIGHBOUR[version], 80)


@pytest.mark.parametrize("name", ["default", "no-dns", "ingress-mode", "probes", "ingress-mode-probes", "removal"])
def test_every_golden_file_is_taken_by_nft(places, name):
    places[0].command("nft", "-f", str(GOLDEN / f"{name}.nft"))
    places[0].command("nft", "-f", str(GOLDEN / "removal.nft"))


@BOTH
def test_excluded_ports_and_ranges_pass_by_and_nothing_else_does(pod, neighbour, capture, version):
    """Both directions: what the pod connects to, and what it serves."""
    capture.put(excluded_outbound_ports=(81,), excluded_inbound_ports=(82,))
    with neighbour.listening(81, version) as server, pod.connected(NEIGHBOUR[version], 81):
        accepted(server)[0].close()
    with pod.listening(82, version) as server, neighbour.connected(POD[version], 82):
        accepted(server)[0].close()
    with pod.listening(15001, version) as tunnel, pod.connected(NEIGHBOUR[version], 82):
        accepted(tunnel)[0].close()
    with pod.listening(15006, version) as tunnel, neighbour.connected(POD[version], 81):
        accepted(tunnel)[0].close()
    capture.put(excluded_outbound_ranges=(f"{NEIGHBOUR[version]}/{24 if version == 4 else 64}",))
    with neighbour.listening(83, version) as server, pod.connected(NEIGHBOUR[version], 83):
        accepted(server)[0].close()


@BOTH
def test_what_comes_in_from_a_virtual_interface_is_outbound(pod, neighbour, capture, version):
    capture.put(virtual_interfaces=("eth0",))
    with pod.listening(15001, version) as tunnel, neighbour.connected(POD[version], 80):
        accepted(tunnel)[0].close()


def test_every_variant_is_read_back_as_it_was_written(capture):
    ranges = ("10.1.0.0/16", "10.2.3.4", "fd01::/64", "fd02::1")
    variants = (
        {},
        {"dns_capture": False, "ingress_mode": True},
        {"exempt_probes": True, "virtual_interfaces": ("virt0", "virt1")},
        {"excluded_inbound_ports": (9090,), "excluded_outbound_ports": (25, 53), "excluded_outbound_ranges": ranges},
    )
    for options in variants:
        capture.put(**options)
        assert capture.compare(**options) == []


def test_a_pod_with_ipv6_switched_off_is_captured_all_the_same(places, capture):
    pod = places[0]
    pod.command("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    try:
        capture.put()
        assert capture.compare() == []
        assert pod.run(routes.observe)[0] == {"IPv4"}
        with pod.listening(15001) as tunnel, pod.connected(NEIGHBOUR[4], 80):
            accepted(tunnel)[0].close()
        capture.take_out()
    finally:
        pod.command("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")


def test_the_canary_is_content_only_when_both_families_arrive(pod):
    ips = [POD[4], f"{POD[6]}/64", "fe80::1"]
    with pod.listening(15001, 6):  # takes IPv4 as well
        pod.run(lambda: canary.prove(ips))
    with pytest.raises(canary.NotCaptured, match=r"192\.0\.2\.127 failed: Connection refused"):
        pod.run(lambda: canary.prove(ips))
    with pod.listening(15001, 4), pytest.raises(canary.NotCaptured, match="2001:db8::7f failed: Connection refused"):
        pod.run(lambda: canary.prove(ips))


def test_the_canary_without_capture_gets_no_answer(places):
    pod = places[0]
    with pytest.raises(canary.NotCaptured, match=r"no route|no answer|failed"):
        pod.run(lambda: canary.prove([POD[4]]))
