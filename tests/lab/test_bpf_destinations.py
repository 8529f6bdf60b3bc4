"""Where a connection wanted to go, between connect() and the tunnel: nothing is left, nobody is told another's."""

import json
import os
import signal
import struct
import sys
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from lab import needs
from lab.processes import wait_until
from nodeagent import libbpf
from nodeagent.redirect import bpf_records as records
from nodeagent.redirect.plan import OUTBOUND_PORT
from tests.lab import scripts, ways_out

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("by_bpf")]

SOON_S = 60.0
PORT, FROM = 9010, 20777
TUPLE, DESTINATION, HANDOVER = struct.Struct("=Q16s16sHHI"), struct.Struct("=16s2s2x"), struct.Struct("=8xQ20s4x")
"""struct mesh_tuple, mesh_destination, mesh_handover."""
PLACES, SOMEBODY = 4096, 1 << 60
REPEATER = """
connection.settimeout(30)
words = connection.recv(100)
print(words.decode().strip(), flush=True)
connection.sendall(peer[0].removeprefix("::ffff:").encode() + b" said " + words)
connection.close()
"""
SAY = """
connection.sendall(b"hello\\n")
print(connection.makefile("rb").readline().decode().strip(), connection.getpeername()[0])
"""
FROM_PORT = """
import socket
connection = socket.socket(socket.AF_INET6 if ":" in {ip!r} else socket.AF_INET)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
connection.settimeout(30)
connection.bind(("", {source}))
connection.connect(({ip!r}, {port}))
"""
ABORT = """
connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""


@pytest.fixture(scope="module")
def server(mesh):
    """In web-2, on the other node; says what it read."""
    mesh.start_in(mesh.pods["web-2"], "listener", scripts.server(PORT, REPEATER))
    wait_until("it listens", lambda: "listening" in mesh.layout.log("listener").read_text(), SOON_S)
    return mesh.pods["web-2"]


@contextmanager
def opened(mesh, name, key, value):
    fd = libbpf.open_pin(mesh.layout.bpf_dir("node1") / f"v{records.SCHEMA}/maps" / name)
    try:
        yield libbpf.Map(fd, key, value)
    finally:
        os.close(fd)


@pytest.fixture
def filed(mesh):
    """What connections filed under their tuples; nothing of web-1, whose tunnel other tests killed before it asked."""
    with opened(mesh, "mesh_underway", TUPLE.size, DESTINATION.size) as found:
        for key in found.having(of(mesh, mesh.pods["web-1"])):
            found.discard(key)
        yield found


def netns(mesh, pod):
    told = next(each for each in mesh.ask(f"nodeagent-{pod.node}", "/pods") if each["name"] == pod.name)
    return int(told["netns_identity"].removeprefix("cookie:"))


def of(mesh, pod):
    return struct.pack("=Q", netns(mesh, pod))


def stale(mesh, filed, version):
    """As if an earlier connection of web-1 from FROM had left its entry, which names nobody."""
    pod = mesh.pods["web-1"]
    own, nobody = (records.pack_address(ip_address(a)) for a in (pod.address(version), "198.51.100.9"))
    key = TUPLE.pack(netns(mesh, pod), own, own, FROM, OUTBOUND_PORT, 0)
    filed[key] = DESTINATION.pack(nobody, struct.pack("!H", 9))
    return key


def test_an_entry_lasts_as_long_as_the_clients_socket(mesh, filed, server, version):
    client = mesh.pods["web-1"]
    hold = f"{SAY}\nprint('holds', flush=True)\nimport signal; signal.pause()"
    process = mesh.start_in(client, f"holder{version}", scripts.client(server.address(version), PORT, hold))
    wait_until("it holds", lambda: "holds" in mesh.layout.log(f"holder{version}").read_text(), SOON_S)
    assert len(filed.having(of(mesh, client))) >= 1
    process.kill()
    wait_until("nothing is filed", lambda: not filed.having(of(mesh, client)), SOON_S)


@pytest.mark.parametrize("farewell", ["", ABORT], ids=["in order", "broken off"])
def test_a_client_that_left_before_the_tunnel_asked_leaves_nothing(mesh, filed, server, version, farewell):
    """And what it sent arrives, if it left in order."""
    client, tunnel = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"]
    word = f"farewell {version} {len(farewell)}"
    say = f"connection.sendall(b'{word}\\n'){farewell}\nconnection.close()"
    tunnel.signal(signal.SIGSTOP)
    try:
        assert mesh.exec(client, scripts.client(server.address(version), PORT, say)).returncode == 0
        assert len(filed.having(of(mesh, client))) == (0 if farewell else 1)
    finally:
        tunnel.signal(signal.SIGCONT)
    if not farewell:
        wait_until("it is read", lambda: word in mesh.layout.log("listener").read_text(), SOON_S)
    wait_until("nothing is filed", lambda: not filed.having(of(mesh, client)), SOON_S)


def test_who_comes_from_a_port_that_was_left_filed_gets_where_it_wants(mesh, filed, server, version):
    """As after a tunnel that was killed before it asked, and a pod that was not hooked when its socket closed."""
    client = mesh.pods["web-1"]
    stale(mesh, filed, version)
    code = FROM_PORT.format(ip=server.address(version), port=PORT, source=FROM) + SAY
    said = mesh.exec(client, scripts.python(code)).stdout.split()
    assert said == [client.address(version), "said", "hello", server.address(version)]


def test_who_goes_to_the_tunnel_by_himself_is_not_taken_for_who_was_there_before(mesh, filed, version):
    """The tunnel would refuse it, and the socket have no peer any more: it stands still."""
    client, tunnel = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"]
    key = stale(mesh, filed, version)
    code = FROM_PORT.format(ip=client.address(version), port=OUTBOUND_PORT, source=FROM)
    tunnel.signal(signal.SIGSTOP)
    try:
        said = mesh.exec(client, scripts.python(f"{code}print(connection.getpeername()[0])")).stdout
    finally:
        tunnel.signal(signal.SIGCONT)
    assert said.split() == [client.address(version)]
    assert filed.get(key) is None


def test_what_was_said_before_it_was_broken_off_goes_nowhere_else(mesh, server, version):
    """Two from one port, before the tunnel asks for either: what is filed under their tuple is the second's."""
    client, tunnel, ip = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"], server.address(version)
    astray = f"{FROM_PORT.format(ip=ip, port=PORT + 1, source=FROM)}connection.sendall(b'astray\\n')\n{scripts.RESET}\n"
    kept = f"{FROM_PORT.format(ip=ip, port=PORT, source=FROM)}print('both', flush=True){SAY}"
    name = f"both{version}"
    tunnel.signal(signal.SIGSTOP)
    try:
        mesh.start_in(client, name, scripts.python(f"import struct{astray}{kept}"))
        wait_until("both are filed", lambda: "both" in mesh.layout.log(name).read_text(), SOON_S)
    finally:
        tunnel.signal(signal.SIGCONT)
    wait_until("the second is answered", lambda: "said hello" in mesh.layout.log(name).read_text(), SOON_S)
    assert "astray" not in mesh.layout.log("listener").read_text()


@pytest.mark.parametrize("way", ["taken", "free"])
def test_connections_find_their_way_whether_or_not_their_place_is_anothers(mesh, server, version, way):
    client, ip = mesh.pods["web-1"].address(version), server.address(version)
    script = str(needs.REPOSITORY / "tests/lab/ways_out.py")
    with opened(mesh, "mesh_handovers", 4, HANDOVER.size) as places:
        fill(places, SOMEBODY if way == "taken" else 0)
        try:
            said = mesh.exec(mesh.pods["web-1"], [sys.executable, "-I", "-S", script, ip, str(PORT)]).stdout
            told = [json.loads(line) for line in said.splitlines()]
            fine = {"said": f"{client} said hello", "peer": ip, "own": client}
            assert told == [{"way": each.__name__, **fine} for each in ways_out.WAYS]
            if way == "free":
                wait_until("no place is held", lambda: not any(holders(places)), SOON_S)
        finally:
            fill(places, 0)


def fill(places, holder):
    for place in range(PLACES):
        places[struct.pack("=I", place)] = HANDOVER.pack(holder, bytes(20))


def holders(places):
    return [HANDOVER.unpack(places.get(struct.pack("=I", place)))[0] for place in range(PLACES)]
