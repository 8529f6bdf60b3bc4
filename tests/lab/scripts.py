"""Programs that the tests run inside pods: plain sockets, nothing of a mesh. Each prints what it saw."""

import sys

_SERVER = """
import socket, struct, sys
listener = socket.create_server(({host!r}, {port}), family=socket.AF_INET6 if ":" in {host!r} else socket.AF_INET,
                                dualstack_ipv6={host!r} == "::")
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
{body}
"""
_CLIENT = """
import socket, struct
connection = socket.create_connection(({ip!r}, {port}), 30)
{body}
"""
_MULTIPATH_CLIENT = """
import socket
connection = socket.socket(socket.AF_INET6 if ":" in {ip!r} else socket.AF_INET, socket.SOCK_STREAM, 262)
connection.settimeout(30)
connection.connect(({ip!r}, {port}))
{body}
"""
RESET = 'connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); connection.close()'


def python(code):
    return [sys.executable, "-I", "-S", "-c", code]


def server(port, body, host="::"):
    """Every connection is served by `body`, which has `connection` and `peer`."""
    return python(_SERVER.format(host=host, port=port, body=_indented(body)))


def client(ip, port, body):
    return python(_CLIENT.format(ip=ip, port=port, body=body))


def multipath_client(ip, port, body):
    """By MPTCP."""
    return python(_MULTIPATH_CLIENT.format(ip=ip, port=port, body=body))


def _indented(body):
    return "\n".join("    " + line for line in body.strip().split("\n"))


NAME_SERVER = """
import select, socket
ways = []
for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host, 53))
    ways.append(sock)
print("listening", flush=True)
while True:
    for sock in select.select(ways, [], [])[0]:
        asked, client = sock.recvfrom(512)
        head = asked[:2] + bytes.fromhex("8180") + asked[4:6] + bytes.fromhex("000100000000")
        sock.sendto(head + asked[12:] + bytes.fromhex("c00c000100010000003c0004c000024d"), client)
"""
"""Answers every question with 192.0.2.77, over datagrams."""

ASKER = """
import json, socket
family = socket.AF_INET6 if ":" in {server!r} else socket.AF_INET
def ask(connected):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        if connected:
            sock.connect(({server!r}, 53))
            sock.send(bytes.fromhex({question!r}))
            sender = sock.getpeername()
        else:
            sock.sendto(bytes.fromhex({question!r}), ({server!r}, 53))
        answer, said = sock.recvfrom(512)
        return answer.hex(), said[:2], (sender if connected else said)[:2]
for connected in (False, True):
    print(json.dumps(ask(connected)), flush=True)
"""
