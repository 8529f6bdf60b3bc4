"""The tunnel of a node reaches nothing but the addressed pod, whatever it is asked.

Every way in is tried in both families: CONNECT on 15008, plaintext on 15006, the outbound port, and between two pods of
one node. What must not happen is counted by the kernel: SYNs with the tunnel's mark in the pods' namespaces.
"""

import contextlib
import json
import subprocess

import pytest

from tests.boundary.apps import Echo, read_all
from tests.boundary.hbone import RESET, Hbone
from tests.boundary.node import identity
from tests.boundary.wire import run
from tests.corpus import Corpus

pytestmark = pytest.mark.lab
PORT = 8080
OWN_PORTS = (15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080)
CAPTURE_PORTS = (15001, 15006, 15008)
COUNT_SYNS = """
table inet ssrf { counter opened { }
  chain out {
    type filter hook output priority -400
    meta mark & 0xfff == 0x539 tcp flags & (syn | ack) == syn tcp dport != 15008 counter name opened
  }
}
"""


@pytest.fixture
def dialled(wire, mesh):
    """How often the tunnel has begun to connect to anything but another tunnel."""
    spaces = [pod.netns for pod in wire.pods[:2]]
    for space in spaces:
        run("ip", "netns", "exec", space, "nft", "-f", "-", stdin=COUNT_SYNS)

    def count() -> int:
        total = 0
        for space in spaces:
            command = ["ip", "netns", "exec", space, "nft", "-j", "list", "counters", "table", "inet", "ssrf"]
            listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["nftables"]
            total += sum(entry["counter"]["packets"] for entry in listed if "counter" in entry)
        return total

    return count


def bracketed(address):
    return f"[{address}]" if ":" in address else address


def number(address):
    return int.from_bytes(bytes(int(part) for part in address.split(".")), "big")


def somewhere_else(a, b, c, family):
    """Addresses that are not the one the tunnel came to: 400."""
    other_family = b.ip6 if family == "ip" else b.ip
    return [
        "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0.0.0.0", "::", "::ffff:0.0.0.0",
        a.ip, a.ip6, f"::ffff:{a.ip}", c.ip, c.ip6, other_family,
        "10.77.0.254", "fd77::ffff", "192.0.2.1", "2001:db8::1", "10.96.0.1",
        "169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "169.254.7.127", "fe80::1", "64:ff9b::a9fe:a9fe",
        "224.0.0.1", "ff02::1", "255.255.255.255", "10.77.0.255", "10.77.0.0", "240.0.0.1",
        f"::{a.ip}", "::ffff:0:127.0.0.1", "fec0::1", "100.64.0.1",
    ]  # fmt: skip


def no_authority(own, v4):
    """What is not HOST:PORT, or an address in a spelling that only some parsers know: 400."""
    whole = f"{bracketed(own)}:{PORT}"
    return [
        "", ":", own, f"{bracketed(own)}:", f":{PORT}", f"[]:{PORT}", f"[{own}", f"{own}]:{PORT}", f"[[{own}]]:{PORT}",
        *(f"{bracketed(own)}:{port}" for port in BAD_PORTS),
        f"[fe80::1%eth0]:{PORT}", f"[fe80::1%25eth0]:{PORT}", f"[::1%lo]:{PORT}", f"[v1.x]:{PORT}",
        f"0x7f.0.0.1:{PORT}", f"0177.0.0.1:{PORT}", f"127.1:{PORT}", f"2130706433:{PORT}", f"017700000001:{PORT}",
        f"{number(v4)}:{PORT}", f"127.0.0.1.:{PORT}", f"1.2.3.4.5:{PORT}", f"256.0.0.1:{PORT}",
        f"user@{whole}", f"user:pass@{whole}", f"{whole}@127.0.0.1:80", f"127.0.0.1:80@{whole}",
        f"{whole}#@127.0.0.1:80", f"http://{whole}", f"{whole}/", f"{whole}/path", f"{whole}?q", f"{whole}#f",
        f"{whole}\\@127.0.0.1", f"{whole},127.0.0.1:80", f"{bracketed(own)}:{PORT}:{PORT}", f"[{v4}]:{PORT}",
        f"１２７.0.0.1:{PORT}", f"127。0。0。1:{PORT}", f"local host:{PORT}", f"{'a' * 64}.example:{PORT}",
        f"{'a.' * 130}b:{PORT}", f"a..b:{PORT}", f".b:{PORT}", f"*.b:{PORT}", f"a%2eb:{PORT}",
    ]  # fmt: skip


BAD_PORTS = ("0", "65536", "65616", "9" * 20, "-1", "+80", "080", "8 0", "0x50", "80.0", "http")
NAMES = (
    "localhost", "localhost.localdomain", "ip6-localhost", "metadata.google.internal", "instance-data", "kubernetes",
    "kubernetes.default.svc.cluster.local", "b", "b.shop", "b.shop.svc.cluster.local", "istiod.istio-system.svc",
    "host.docker.internal", "127.0.0.1.nip.io", "xn--n3h.example",
)  # fmt: skip


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_connect_reaches_nothing_but_the_pod_that_the_tunnel_came_to(mesh, wire, dialled, tmp_path, family):
    a, b, c = wire.pods
    own = getattr(b, family)
    table = [(f"{bracketed(host)}:{PORT}", {400}) for host in somewhere_else(a, b, c, family)]
    table += [(authority, {400, RESET}) for authority in no_authority(own, b.ip)]
    table += [(f"{bracketed(own)}:{port}", {503}) for port in OWN_PORTS]
    table += [(f"{name}:{PORT}", {503}) for name in NAMES]
    app, tunnel = Echo(b, PORT, "::" if family == "ip6" else ""), Hbone(mesh, c, own, tmp_path)
    with Corpus("SSRF, CONNECT") as corpus, app, tunnel:
        for authority, wanted in table:
            with corpus.case(authority):
                assert tunnel.ask(authority) in wanted
        for method, more in FOREIGN_REQUESTS:
            with corpus.case(f"{method} {more}"):
                assert tunnel.ask(f"{bracketed(own)}:{PORT}", *more, method=method) in (400, RESET)
        with corpus.case("none of them was dialled"):
            assert (dialled(), app.seen.empty()) == (0, True)
        with corpus.case("the pod itself"):
            assert tunnel.ask(f"{bracketed(own)}:{PORT}", payload=b"x") == 200
            assert (dialled(), app.seen.get(timeout=60)) == (1, getattr(c, family))


PATH, SCHEME = (":path", "/"), (":scheme", "http")
FOREIGN_REQUESTS = [
    ("GET", (PATH, SCHEME)),
    ("POST", (PATH, SCHEME)),
    ("OPTIONS", ((":path", "*"), SCHEME)),
    ("connect", (PATH, SCHEME)),
    ("CONNECT", (PATH, SCHEME)),
    ("CONNECT", (PATH,)),
    ("CONNECT", (SCHEME,)),
    ("CONNECT", ((":protocol", "websocket"), PATH, SCHEME)),
    ("CONNECT", ((":protocol", "connect-udp"), PATH, SCHEME)),
]
SPOOFED = [
    ("baggage", "k8s.cluster.name=evil,k8s.namespace.name=evil,k8s.deployment.name=evil,service.name=evil"),
    ("baggage", "k8s.namespace.name=" + "evil" * 300),
    ("baggage", 'k8s.namespace.name=evil",evil="1'),
    ("forwarded", 'for="127.0.0.1:1";host=evil;by=evil;proto=evil'),
    ("forwarded", "host=" + "evil" * 300),
    ("x-forwarded-for", "127.0.0.1, 10.77.0.1"),
    ("x-forwarded-client-cert", "By=spiffe://cluster.local/ns/shop/sa/b;URI=spiffe://cluster.local/ns/shop/sa/evil"),
    ("x-forwarded-network", "evil"),
    ("x-istio-origin-network", "evil"),
    ("x-real-ip", "127.0.0.1"),
    ("host", "127.0.0.1:15000"),
    ("x-envoy-original-dst-host", "127.0.0.1:15000"),
    ("traceparent", "00-" + "e" * 32 + "-" + "e" * 16 + "-evil"),
]


def test_what_a_peer_says_of_itself_names_nobody(mesh, wire, tmp_path):
    _, b, c = wire.pods
    with Corpus("spoofed headers") as corpus, Echo(b, PORT) as app, Hbone(mesh, c, b.ip, tmp_path) as tunnel:
        for name, value in SPOOFED:
            with corpus.case(f"{name}: {value}"):
                assert tunnel.ask(f"{b.ip}:{PORT}", (name, value), payload=b"x") == 200
                assert app.seen.get(timeout=60) == c.ip
                line = mesh.line(lambda line: line["direction"] == "inbound")
                assert line["src.identity"] == identity(c)
                assert line["src.addr"].startswith(f"{c.ip}:")
                assert (line["dst.addr"], line["dst.hbone_addr"]) == (f"{b.ip}:15008", f"{b.ip}:{PORT}")
                assert "evil" not in json.dumps(line) + mesh.core.metrics().decode()


def closed(client, address, port):
    """Refused, reset or ended without a byte."""
    with contextlib.suppress(ConnectionError), client.connect(address, port) as connection:
        connection.sendall(b"GET /config_dump HTTP/1.0\r\n\r\n")
        assert read_all(connection) == b""


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_plaintext_and_pods_of_the_node_reach_no_door_of_the_tunnel(mesh, wire, dialled, family):
    """Also what is handed over within the node, and the tunnel's ports dialled by hand."""
    a, b, c = wire.pods
    loopback = "127.0.0.1" if family == "ip" else "::1"
    with Corpus("SSRF, plaintext and same node") as corpus, contextlib.ExitStack() as doors:
        free = [port for port in OWN_PORTS if port not in CAPTURE_PORTS]
        behind = [doors.enter_context(Echo(b, port, getattr(b, family))) for port in free]
        tries = [(client, getattr(b, family), port) for client in (a, c) for port in OWN_PORTS]
        for port in CAPTURE_PORTS:  # what else a pod calls on itself is its own affair
            tries += [(b, getattr(b, family), port), (a, loopback, port)]
        for client, address, port in tries:
            with corpus.case(f"{client.name} to {address}:{port}"):
                closed(client, address, port)
        with corpus.case("none of them was dialled"):
            assert (dialled(), [app.seen.empty() for app in behind]) == (0, [True] * len(behind))


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_a_pod_is_no_router_to_others(mesh, wire, dialled, family):
    """The client's own routing table sends packets for others to `b`, whose rules capture them."""
    a, b, c = wire.pods
    via = getattr(b, family)
    prefix, hosts = (
        (24, ("10.99.0.1", "169.254.169.254", "192.0.2.9", "100.64.0.1", "198.18.0.1", a.ip))
        if family == "ip"
        else (64, ("fd99::1", "fd00:ec2::254", "2001:db8::9", "fd98::1", "64:ff9b::1", a.ip6))
    )
    with Corpus("SSRF, routed through a pod") as corpus, Echo(a, PORT, getattr(a, family)) as app:
        for host in hosts:
            whole = 32 if prefix == 24 else 128
            run("ip", "-n", c.netns, "route", "replace", f"{host}/{whole}", "via", via)
            for port in (PORT, 80):
                with corpus.case(f"{host}:{port}"):
                    closed(c, host, port)
                    assert "is not an address of this pod" in mesh.line(lambda line: "error" in line)["error"]
        with corpus.case("none of them was dialled"):
            assert (dialled(), app.seen.empty()) == (0, True)
