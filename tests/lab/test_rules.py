"""The rules in a real kernel: what they capture, what they let pass, and that they come and go as a whole."""

import asyncio
from pathlib import Path

import pytest

from nodeagent.redirect import canary, kernel
from nodeagent.redirect.backend import Sandbox
from nodeagent.redirect.nftables import Nft
from nodeagent.redirect.plan import PROBE_SOURCES, Options, make_plan
from tests.lab.pairs import NEIGHBOUR, POD, original_destination, pair

pytestmark = pytest.mark.lab

GOLDEN = Path(__file__).parents[1] / "nodeagent/redirect/golden"
BOTH = pytest.mark.parametrize("version", [4, 6])
TUNNEL_MARK = 0x539


@pytest.fixture(scope="module")
def places():
    with pair() as made:
        yield made


@pytest.fixture
def pod(places):
    """Captured by the default plan."""
    pod, _ = places
    put(pod, Options())
    yield pod
    pod.run(lambda: kernel.take_out(kernel.find_nft()))


@pytest.fixture
def neighbour(places):
    return places[1]


def put(pod, options):
    pod.run(lambda: kernel.put(kernel.find_nft(), make_plan(options)))


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
def test_without_capture_of_dns_questions_reach_their_server(places, version):
    pod, neighbour = places
    put(pod, Options(dns_capture=False))
    with neighbour.datagrams(version, "", 53) as server, pod.datagrams(version) as client:
        client.sendto(b"question", (NEIGHBOUR[version], 53))
        assert server.recvfrom(100)[1][0] == POD[version]
    pod.run(lambda: kernel.take_out(kernel.find_nft()))


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
def test_in_ingress_mode_plaintext_reaches_the_application(places, version):
    pod, neighbour = places
    put(pod, Options(ingress_mode=True))
    with pod.listening(80, version) as server, neighbour.connected(POD[version], 80):
        accepted(server)[0].close()
    pod.run(lambda: kernel.take_out(kernel.find_nft()))


@BOTH
def test_what_the_node_sends_as_a_probe_passes_by_and_nothing_else_does(places, version):
    """PROBE_SOURCES is what a node translates the kubelet's address into."""
    pod, neighbour = places
    put(pod, Options(exempt_probes=True))
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
        pod.run(lambda: kernel.take_out(kernel.find_nft()))


@BOTH
def test_a_connection_under_way_outlives_the_rules_being_replaced(pod, neighbour, version):
    with pod.listening(15001, version) as tunnel, pod.connected(NEIGHBOUR[version], 80) as client:
        sock, _ = accepted(tunnel)
        put(pod, Options())
        with sock:
            client.sendall(b"still here")
            assert sock.recv(100) == b"still here"
            assert original_destination(sock) == (NEIGHBOUR[version], 80)


@pytest.mark.parametrize("name", ["default", "no-dns", "ingress-mode", "probes", "ingress-mode-probes", "removal"])
def test_every_golden_file_is_taken_by_nft(places, name):
    pod, _ = places
    pod.command("nft", "-f", str(GOLDEN / f"{name}.nft"))
    pod.run(lambda: kernel.take_out(kernel.find_nft()))


def state_of(pod):
    words = ("nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
    return [pod.command(*word.split()) for word in words]


def test_the_rules_come_and_go_without_a_trace_however_often(places):
    pod, _ = places
    nft, sandbox = Nft(), Sandbox("pod", pod.namespace, None, Options())

    async def story():
        assert len(await nft.compare(sandbox)) == 11
        for _ in range(2):
            await nft.put(sandbox)
            assert await nft.compare(sandbox) == []
        for _ in range(2):
            await nft.take_out(sandbox)

    before = state_of(pod)
    asyncio.run(story())
    assert state_of(pod) == before


DRIFTS = {
    "nft flush chain inet nodemesh nat-output": ["chain nat-output lacks 9 of its 9 rules"],
    "nft delete table inet nodemesh": [
        "the chains of table inet nodemesh are not ours",
        "chain raw-prerouting lacks 1 of its 1 rules",
        "chain raw-output lacks 1 of its 1 rules",
        "chain mangle-prerouting lacks 1 of its 1 rules",
        "chain mangle-output lacks 1 of its 1 rules",
        "chain nat-prerouting lacks 2 of its 2 rules",
        "chain nat-output lacks 9 of its 9 rules",
    ],
    "nft insert rule inet nodemesh nat-output accept": ["chain nat-output has foreign rules or another order"],
    "ip -6 rule del pref 32764": ["the IPv6 rule 32764 for mark 0x111 is missing"],
    "ip route flush table 100": ["the IPv4 route of table 100 is missing"],
}


@pytest.mark.parametrize("change", DRIFTS)
def test_what_somebody_changed_is_named_and_repaired(pod, change):
    nft, sandbox = Nft(), Sandbox("pod", pod.namespace, None, Options())
    pod.command(*change.split())

    async def story():
        assert await nft.compare(sandbox) == DRIFTS[change]
        await nft.put(sandbox)
        assert await nft.compare(sandbox) == []

    asyncio.run(story())


def test_a_pod_with_ipv6_switched_off_is_captured_all_the_same(places):
    pod, _ = places
    pod.command("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    try:
        put(pod, Options())
        seen = pod.run(lambda: kernel.observe(kernel.find_nft()))
        assert seen.families == seen.local_routes == {"IPv4"}
        with pod.listening(15001) as tunnel, pod.connected(NEIGHBOUR[4], 80):
            accepted(tunnel)[0].close()
        pod.run(lambda: kernel.take_out(kernel.find_nft()))
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
    pod, _ = places
    with pytest.raises(canary.NotCaptured, match=r"no route|no answer|failed"):
        pod.run(lambda: canary.prove([POD[4]]))
