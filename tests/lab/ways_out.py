"""Runs inside a pod: every way that a program has to connect, and what it is told of its peer. One JSON line each.

`python -I -S ways_out.py IP PORT`: the server says whom it sees and repeats what it reads.
"""

import ctypes
import errno
import json
import select
import socket
import struct
import sys

MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, IPPROTO_MPTCP = 0x20000000, 30, 262
NOWHERE = bytes(16)  # AF_UNSPEC
WAIT_S = 30.0
HELLO = b"hello\n"


def talk(sock, say=HELLO):
    sock.sendall(say)
    sock.settimeout(WAIT_S)
    said = sock.makefile("rb").readline().decode().strip()
    return {"said": said, "peer": sock.getpeername()[0], "own": sock.getsockname()[0]}


def made(ip, protocol=0):
    return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, protocol)


def plainly(ip, port):
    with made(ip) as sock:
        sock.connect((ip, port))
        return talk(sock)


def without_blocking(ip, port):
    with made(ip) as sock:
        sock.setblocking(False)
        sock.connect_ex((ip, port))
        assert select.select([], [sock], [], WAIT_S)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        return talk(sock)


def bound_first(ip, port):
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as asked, made(ip) as sock:
        asked.connect((ip, port))
        sock.bind((asked.getsockname()[0], 0))
        sock.connect((ip, port))
        return talk(sock)


def mapped(ip, port, protocol=0):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol) as sock:
        sock.connect((ip if ":" in ip else f"::ffff:{ip}", port))
        told = talk(sock)
        return told | {key: told[key].removeprefix("::ffff:") for key in ("peer", "own")}


def by_multipath(ip, port):
    with made(ip, IPPROTO_MPTCP) as sock:
        sock.connect((ip, port))
        return talk(sock)


def by_multipath_mapped(ip, port):
    return mapped(ip, port, IPPROTO_MPTCP)


def by_multipath_with_fast_open(ip, port):
    with made(ip, IPPROTO_MPTCP) as sock:
        sock.sendto(HELLO, MSG_FASTOPEN, (ip, port))
        return talk(sock, b"")


def by_multipath_from_elsewhere_and_back(ip, port):
    """The same socket, one after the other: its own pod first, then the peer, then its own pod again."""
    own = "::1" if ":" in ip else "127.0.0.1"
    with made(ip) as listener, made(ip, IPPROTO_MPTCP) as sock:
        listener.bind((own, 0))
        listener.listen()
        assert names_its_peer(sock, listener.getsockname())
        sock.connect((ip, port))
        told = talk(sock)
        disconnect(sock)
        assert names_its_peer(sock, listener.getsockname())
        return told


def names_its_peer(sock, there):
    """Connects, asks, and lets go again."""
    sock.connect(there)
    named = sock.getpeername()
    disconnect(sock)
    return named == there


def disconnect(sock):
    assert ctypes.CDLL(None).connect(sock.fileno(), NOWHERE, len(NOWHERE)) == 0


def fast_open(ip, port):
    with made(ip) as sock:
        sock.sendto(HELLO, MSG_FASTOPEN, (ip, port))
        return talk(sock, b"")


def fast_open_by_connect(ip, port):
    with made(ip) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect((ip, port))
        return talk(sock)


def again_after_a_refusal(ip, port):
    """The same socket first goes to its own pod, where nobody listens, and is told nothing of that later."""
    with made(ip) as sock:
        assert sock.connect_ex(("::1" if ":" in ip else "127.0.0.1", 1)) != 0
        sock.connect((ip, port))
        return talk(sock)


def again_after_its_tuple_was_taken(ip, port):
    """Was at the tunnel before, and comes from the port of another that is, who loses nothing by that."""
    with sharing(ip) as sock, sharing(ip) as first:
        first.bind(("", 0))
        sock.bind(("", first.getsockname()[1]))
        sock.connect((ip, port))
        talk(sock)
        disconnect(sock)
        first.connect((ip, port))
        assert sock.connect_ex((ip, port)) == errno.EADDRNOTAVAIL
        assert talk(first)["peer"] == ip
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        sock.connect((ip, port))
        return talk(sock)


def beside_one_by_multipath_that_finds_no_way(ip, port):
    with sharing(ip) as sock, sharing(ip, IPPROTO_MPTCP) as other:
        sock.bind(("", 0))
        sock.connect((ip, port))
        other.bind(("", sock.getsockname()[1]))
        assert other.connect_ex((ip, port)) == errno.EADDRNOTAVAIL
        return talk(sock)


def sharing(ip, protocol=0):
    """Its port, with others that do so."""
    sock = made(ip, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


WAYS = (
    plainly,
    without_blocking,
    bound_first,
    mapped,
    by_multipath,
    by_multipath_mapped,
    by_multipath_with_fast_open,
    by_multipath_from_elsewhere_and_back,
    fast_open,
    fast_open_by_connect,
    again_after_a_refusal,
    again_after_its_tuple_was_taken,
    beside_one_by_multipath_that_finds_no_way,
)


def main():
    ip, port = sys.argv[1], int(sys.argv[2])
    for way in WAYS:
        try:
            told = way(ip, port)
        except (OSError, AssertionError) as error:
            told = {"failed": repr(error)}
        print(json.dumps({"way": way.__name__, **told}), flush=True)


if __name__ == "__main__":
    main()
