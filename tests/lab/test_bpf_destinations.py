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
from tests.bpf import layouts
from tests.lab import scripts, ways_out

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("by_bpf")]

SOON_S = 60.0
PORT, FROM = 9010, 20777
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
ASKED = f"""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
{SAY}
print("holds", flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    print("peer", connection.getpeername()[0], flush=True)
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


class Filed:
    """What connections filed under their tuples: at their places, or underway where those are others'."""

    def __init__(self, places, underway):
        self.places, self.underway = places, underway

    def of(self, netns):
        """Tuples at places, and those underway."""
        return [held for held in self.held() if held.startswith(netns)], self.underway.having(netns)

    def held(self):
        return [self.place(number)[1] for number in range(layouts.PLACES)]

    def place(self, number):
        return layouts.PLACE.unpack(self.places.get(struct.pack("=I", number)))

    def hold(self, number, key, destination=bytes(layouts.DESTINATION.size)):
        self.places[struct.pack("=I", number)] = layouts.PLACE.pack(0, key, destination)

    def put(self, where, key, destination):
        if where == "place":
            self.hold(layouts.place_number(key), key, destination)
        else:
            self.underway[key] = destination

    def replace(self, before, after):
        for number, held in enumerate(self.held()):
            if held.startswith(before):
                self.hold(number, after)


FREE = bytes(8)
NOBODYS = bytes(layouts.TUPLE.size)
SOMEBODYS = layouts.TUPLE.pack(layouts.SOMEBODY, bytes(16), bytes(16), 0, 0, 0)


@pytest.fixture
def filed(mesh):
    """Nothing of web-1, whose tunnel other tests killed before it asked."""
    netns = of(mesh, mesh.pods["web-1"])
    with (
        opened(mesh, "mesh_places", 4, layouts.PLACE.size) as places,
        opened(mesh, "mesh_underway", layouts.TUPLE.size, layouts.DESTINATION.size) as underway,
    ):
        found = Filed(places, underway)
        for key in underway.having(netns):
            underway.discard(key)
        found.replace(netns, NOBODYS)
        yield found


@pytest.fixture(params=["free", "held"])
def room(request, filed):
    """What a connection finds its place to be; held: by another one."""
    if request.param == "held":
        filed.replace(FREE, SOMEBODYS)
    yield request.param
    filed.replace(SOMEBODYS[:8], NOBODYS)


def netns(mesh, pod):
    told = next(each for each in mesh.ask(f"nodeagent-{pod.node}", "/pods") if each["name"] == pod.name)
    return int(told["netns_identity"].removeprefix("cookie:"))


def of(mesh, pod):
    return struct.pack("=Q", netns(mesh, pod))


def tuple_of(mesh, pod, version, port):
    own = records.pack_address(ip_address(pod.address(version)))
    return layouts.TUPLE.pack(netns(mesh, pod), own, own, port, OUTBOUND_PORT, 0)


def stale(mesh, filed, version, where):
    """As if an earlier connection of web-1 from FROM had left its entry, which names nobody."""
    key = tuple_of(mesh, mesh.pods["web-1"], version, FROM)
    nobody = records.pack_address(ip_address("198.51.100.9"))
    filed.put(where, key, layouts.DESTINATION.pack(nobody, struct.pack("!H", 9), layouts.FILED))
    return key


def alike(mesh, pods, version):
    """A tuple of each that has the same place."""
    one, other = (tuple_of(mesh, pod, version, FROM) for pod in pods)
    apart = layouts.place_number(one) - layouts.place_number(other)
    ports = ((port, (port + apart) % layouts.PLACES) for port in range(20000, layouts.PLACES))
    chosen = next(pair for pair in ports if pair[1] >= 20000)
    return [tuple_of(mesh, pod, version, port) for pod, port in zip(pods, chosen, strict=True)]


def has_said(mesh, name, words):
    wait_until(f"{name} says {words}", lambda: words in mesh.layout.log(name).read_text(), SOON_S)


def nothing(filed, netns):
    return filed.of(netns) == ([], [])


def test_an_entry_lasts_as_long_as_the_clients_socket(mesh, filed, room, server, version):
    client, name = mesh.pods["web-1"], f"holder{version}{room}"
    whose = of(mesh, client)
    hold = f"{SAY}\nprint('holds', flush=True)\nimport signal; signal.pause()"
    process = mesh.start_in(client, name, scripts.client(server.address(version), PORT, hold))
    wait_until("it holds", lambda: "holds" in mesh.layout.log(name).read_text(), SOON_S)
    at_places, underway = filed.of(whose)
    assert (len(at_places), len(underway)) == ((0, 1) if room == "held" else (1, 0))
    assert mesh.layout.log(name).read_text().split() == [
        client.address(version), "said", "hello", server.address(version), "holds"
    ]  # fmt: skip
    process.kill()
    wait_until("nothing is filed", lambda: nothing(filed, whose), SOON_S)


@pytest.mark.parametrize("farewell", ["", ABORT], ids=["in order", "broken off"])
def test_a_client_that_left_before_the_tunnel_asked_leaves_nothing(mesh, filed, room, server, version, farewell):
    """And what it sent arrives, if it left in order. Until then it holds no place."""
    client, tunnel = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"]
    whose = of(mesh, client)
    word = f"farewell {version} {len(farewell)} {room}"
    say = f"connection.sendall(b'{word}\\n'){farewell}\nconnection.close()"
    tunnel.signal(signal.SIGSTOP)
    try:
        assert mesh.exec(client, scripts.client(server.address(version), PORT, say)).returncode == 0
        left = (0, 0 if farewell else 1)  # once its FIN is acknowledged, for which the kernel may wait a little
        wait_until("that is what it left", lambda: tuple(map(len, filed.of(whose))) == left, SOON_S)
    finally:
        tunnel.signal(signal.SIGCONT)
    if not farewell:
        wait_until("it is read", lambda: word in mesh.layout.log("listener").read_text(), SOON_S)
    wait_until("nothing is filed", lambda: nothing(filed, whose), SOON_S)


@pytest.mark.parametrize("where", ["place", "underway"])
def test_who_comes_from_a_port_that_was_left_filed_gets_where_it_wants(mesh, filed, server, version, where):
    """As after a tunnel that was killed before it asked, and a pod that was not hooked when its socket closed."""
    client = mesh.pods["web-1"]
    stale(mesh, filed, version, where)
    code = FROM_PORT.format(ip=server.address(version), port=PORT, source=FROM) + SAY
    said = mesh.exec(client, scripts.python(code)).stdout.split()
    assert said == [client.address(version), "said", "hello", server.address(version)]


@pytest.mark.parametrize("where", ["place", "underway"])
def test_who_goes_to_the_tunnel_by_himself_is_not_taken_for_who_was_there_before(mesh, filed, version, where):
    """The tunnel would refuse it, and the socket have no peer any more: it stands still."""
    client, tunnel = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"]
    stale(mesh, filed, version, where)
    code = FROM_PORT.format(ip=client.address(version), port=OUTBOUND_PORT, source=FROM)
    tunnel.signal(signal.SIGSTOP)
    try:
        said = mesh.exec(client, scripts.python(f"{code}print(connection.getpeername()[0])")).stdout
    finally:
        tunnel.signal(signal.SIGCONT)
    assert said.split() == [client.address(version)]
    assert nothing(filed, of(mesh, client))


def test_nobody_is_found_behind_a_connection_that_was_broken_off(mesh, filed, server, version):
    """A version without places left something under its tuple; the tunnel asks for a child of what is gone."""
    client, tunnel = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"]
    key = stale(mesh, filed, version, "underway")
    code = FROM_PORT.format(ip=server.address(version), port=PORT, source=FROM)
    tunnel.signal(signal.SIGSTOP)
    try:
        mesh.exec(client, scripts.python(f"import struct{code}{ABORT}\nconnection.close()"))
        assert filed.underway.get(key) is None
        assert nothing(filed, of(mesh, client))
    finally:
        tunnel.signal(signal.SIGCONT)


def test_of_two_connections_with_one_place_each_knows_its_peer(mesh, filed, server, version):
    """The earlier one has it, the later one is found underway; both leave nothing."""
    pods, ip = (mesh.pods["web-1"], mesh.pods["web-3"]), server.address(version)
    keys = alike(mesh, pods, version)
    holders = []
    for number, (pod, key) in enumerate(zip(pods, keys, strict=True)):
        name = f"neighbour{number}{version}"
        code = FROM_PORT.format(ip=ip, port=PORT, source=layouts.TUPLE.unpack(key)[3])
        holders.append((name, mesh.start_in(pod, name, scripts.python(f"{code}{ASKED}"))))
        has_said(mesh, name, "holds")
    place = layouts.place_number(keys[0])
    assert filed.place(place)[1] == keys[0]
    assert filed.underway.get(keys[1])
    for name, process in holders:
        process.signal(signal.SIGUSR1)
        has_said(mesh, name, f"peer {ip}")
    for _, process in holders:
        process.kill()
    netns = [of(mesh, pod) for pod in pods]
    wait_until("nothing is filed", lambda: all(nothing(filed, each) for each in netns), SOON_S)


def test_what_was_said_before_it_was_broken_off_goes_nowhere_else(mesh, room, server, version):
    """Two from one port, before the tunnel asks for either: what is filed under their tuple is the second's."""
    client, tunnel, ip = mesh.pods["web-1"], mesh.daemons["ztunnel-node1"], server.address(version)
    astray = f"{FROM_PORT.format(ip=ip, port=PORT + 1, source=FROM)}connection.sendall(b'astray\\n')\n{scripts.RESET}\n"
    kept = f"{FROM_PORT.format(ip=ip, port=PORT, source=FROM)}print('both', flush=True){SAY}"
    name = f"both{version}{room}"
    tunnel.signal(signal.SIGSTOP)
    try:
        mesh.start_in(client, name, scripts.python(f"import struct{astray}{kept}"))
        wait_until("both are filed", lambda: "both" in mesh.layout.log(name).read_text(), SOON_S)
    finally:
        tunnel.signal(signal.SIGCONT)
    wait_until("the second is answered", lambda: "said hello" in mesh.layout.log(name).read_text(), SOON_S)
    assert "astray" not in mesh.layout.log("listener").read_text()


@pytest.mark.parametrize("way", ["taken", "free"])
def test_connections_find_their_way_whether_or_not_a_place_is_anothers(mesh, room, server, version, way):
    client, ip = mesh.pods["web-1"].address(version), server.address(version)
    script = str(needs.REPOSITORY / "tests/lab/ways_out.py")
    with opened(mesh, "mesh_handovers", 4, layouts.HANDOVER.size) as places:
        fill(places, layouts.SOMEBODY if way == "taken" else 0)
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
    for place in range(layouts.HANDOVERS):
        places[struct.pack("=I", place)] = layouts.HANDOVER.pack(holder, bytes(20))


def holders(places):
    return [layouts.HANDOVER.unpack(places.get(struct.pack("=I", place)))[0] for place in range(layouts.HANDOVERS)]
