"""A pod and a neighbour on one wire, without any daemon: namespaces of a lab of its own, gone with the test process."""

import asyncio
import os
import socket
import struct
from contextlib import contextmanager

from lab import netns
from lab.layout import NETNS, Layout
from lab.watchdog import Guard
from nodeagent.redirect.netns import Namespace

POD = {4: "10.77.0.2", 6: "fd77::2"}
NEIGHBOUR = {4: "10.77.0.1", 6: "fd77::1"}
WAIT_S = 30.0
SO_ORIGINAL_DST = 80
TRANSPARENT = {4: (socket.SOL_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}


class Place:
    """One namespace: its name, its descriptor, and sockets that live in it."""

    def __init__(self, name):
        self.name = name
        netns.create(name, ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"])
        self.namespace = Namespace.open(self.path)

    @property
    def path(self):
        return str(NETNS / self.name)

    def run(self, job):
        return asyncio.run(self.namespace.run(job))

    def command(self, *words):
        return netns.run(*netns.inside(self.name), *words)

    def socket(self, version):
        sock = self.run(lambda: socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET))
        sock.settimeout(WAIT_S)
        return sock

    @contextmanager
    def listening(self, port, version=4):
        with self.socket(version) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen()
            yield listener

    @contextmanager
    def datagrams(self, version=4, address="", port=0, mark=0):
        """A UDP socket."""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        with self.run(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(WAIT_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.bind((address, port))
            yield sock

    @contextmanager
    def connected(self, target, port, mark=0, source=None):
        """`source` may be anybody's address, as the tunnel does it."""
        version = 6 if ":" in target else 4
        with self.socket(version) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source:
                sock.setsockopt(*TRANSPARENT[version], 1)
                sock.bind((source, 0))
            sock.connect((target, port))
            yield sock

    def close(self):
        self.namespace.close()
        netns.delete(self.name)


@contextmanager
def pair():
    """(pod, neighbour): both families on one wire, the pod's default routes lead to the neighbour."""
    layout = Layout(f"p{os.getpid()}")
    guard = Guard(layout)
    pod, neighbour = Place(layout.pod_netns("t", "pod")), Place(layout.pod_netns("t", "neighbour"))
    try:
        netns.run(
            "ip", "-n", pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", neighbour.name
        )
        for place, addresses in ((pod, POD), (neighbour, NEIGHBOUR)):
            six = f"addr add {addresses[6]}/64 dev eth0 nodad"
            netns.batch(place.name, ["link set eth0 addrgenmode none up", f"addr add {addresses[4]}/24 dev eth0", six])
        ways = [f"route add default via {NEIGHBOUR[4]}", f"-6 route add default via {NEIGHBOUR[6]}"]
        for way in ways:
            netns.run("ip", "-n", pod.name, *way.split())
        yield pod, neighbour
    finally:
        pod.close()
        neighbour.close()
        guard.release()


def original_destination(sock):
    """Where a captured connection wanted to go: (address, port). Linux SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST."""
    if sock.family == socket.AF_INET:
        _, port, packed = struct.unpack("!HH4s8x", sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    else:
        _, port, packed = struct.unpack("!HH4x16s4x", sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
    return socket.inet_ntop(sock.family, packed), port
