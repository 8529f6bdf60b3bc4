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
connection = socket.create_connection(({ip!r}, {port}), 5)
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


def _indented(body):
    return "\n".join("    " + line for line in body.strip().split("\n"))
