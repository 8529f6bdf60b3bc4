"""Another network: its gateway ends the outer tunnel and passes on what it cannot read; behind it the inner one ends.

`farside.py GATEWAY-PEM ENDPOINT-PEM`, in a pod of the lab; each with the certificate that it is given. What both are
asked for is told in a line.
"""

import socket
import sys
import threading

from tests.lab import impostor

BEHIND = 15108


class Endpoint(impostor.Tunnel):
    who = "endpoint"


class Gateway(impostor.Tunnel):
    """Each stream becomes a connection to the endpoint's port."""

    who = "gateway"

    def _serve(self, secure):
        self.lock, self.behind = threading.Lock(), {}
        super()._serve(secure)

    def taken(self, connection, secure, stream):
        self.behind[stream] = socket.create_connection(("::1", BEHIND))
        threading.Thread(target=self._back, args=(connection, secure, stream), daemon=True).start()

    def given(self, connection, event):
        self.behind[event.stream_id].sendall(event.data)

    def _back(self, connection, secure, stream):
        while data := self.behind[stream].recv(8192):
            with self.lock:
                connection.send_data(stream, data)
                secure.sendall(connection.data_to_send())


if __name__ == "__main__":
    outer, inner = sys.argv[1:]
    with impostor.Server(inner, BEHIND, Endpoint) as end, impostor.Server(outer, impostor.PORT, Gateway) as gateway:
        threading.Thread(target=end.serve_forever, daemon=True).start()
        print("listening", flush=True)
        gateway.serve_forever()
