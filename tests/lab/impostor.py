"""The end of a tunnel that is not ours: HBONE served with the certificate that it is given (Python's `ssl` and `h2`).

`impostor.py PEM`, in a pod of the lab. Every CONNECT is taken and told in a line; a request within it is answered 200.
"""

import socket
import socketserver
import ssl
import sys

import h2.config
import h2.connection
import h2.events

PORT = 15008
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True

    def __init__(self, pem, port=PORT, kind=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.load_cert_chain(pem)
        self.context.set_alpn_protocols(["h2"])
        super().__init__(("::", port), kind or Tunnel)


class Tunnel(socketserver.BaseRequestHandler):
    who = ""  # said with what it was asked for

    def handle(self):
        try:
            with self.server.context.wrap_socket(self.request, server_side=True) as secure:
                self._serve(secure)
        except OSError:
            pass  # who does not believe us hangs up

    def _serve(self, secure):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        secure.sendall(connection.data_to_send())
        while data := secure.recv(65536):
            for event in connection.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        print(f"CONNECT {dict(event.headers)[':authority']} {self.who}".strip(), flush=True)
                        connection.send_headers(event.stream_id, [(":status", "200")])
                        self.taken(connection, secure, event.stream_id)
                    case h2.events.DataReceived():
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        self.given(connection, event)
                    case _:
                        pass
            secure.sendall(connection.data_to_send())

    def taken(self, connection, secure, stream):
        """A stream begins."""

    def given(self, connection, event):
        if event.data.endswith(b"\r\n\r\n"):
            connection.send_data(event.stream_id, ANSWER)


if __name__ == "__main__":
    with Server(sys.argv[1]) as server:
        print("listening", flush=True)
        server.serve_forever()
