"""An HBONE client that is not ours and says what it likes: Python's `ssl` and `h2`, certified by the test's CA."""

from __future__ import annotations

import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.boundary.node import Node, identity
from tests.boundary.wire import Pod
from tests.ztunnel.authority import key_pem

RESET = -1
"""Instead of a status: the stream was reset."""


class Hbone:
    """One tunnel from `client` to `address`:15008; each request is a stream of its own."""

    def __init__(self, node: Node, client: Pod, address: str, place: Path) -> None:
        self._tls = _context(node, client, place).wrap_socket(client.connect(address, 15008))
        self._tls.settimeout(60)  # only how long a broken tunnel keeps a test waiting
        config = h2.config.H2Configuration(
            client_side=True,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            header_encoding="utf-8",
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()

    def __enter__(self) -> Hbone:
        return self

    def __exit__(self, *_: object) -> None:
        self._tls.close()

    def ask(self, authority: str, *more: tuple[str, str], method: str = "CONNECT", payload: bytes = b"") -> int:
        """The status of the answer, or RESET. `payload` must come back before the stream is ended."""
        stream = self._h2.get_next_available_stream_id()
        pseudo = [pair for pair in more if pair[0].startswith(":")]
        fields = [pair for pair in more if not pair[0].startswith(":")]
        head = [(":method", method), (":authority", authority), *pseudo, *fields]
        self._h2.send_headers(stream, head)
        status = self._wait(stream, h2.events.ResponseReceived)
        if status == 200 and payload:
            self._h2.send_data(stream, payload)
            assert self._wait(stream, h2.events.DataReceived) != RESET
        if status == 200:
            self._h2.reset_stream(stream, 8)
            self._tls.sendall(self._h2.data_to_send())
        return status

    def give_up(self, authority: str, times: int = 1) -> None:
        """Requests that are reset at once. Does not wait for anything."""
        for _ in range(times):
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [(":method", "CONNECT"), (":authority", authority)])
            self._h2.reset_stream(stream, 8)
        self._tls.sendall(self._h2.data_to_send())

    def _wait(self, stream: int, kind: type) -> int:
        while True:
            self._tls.sendall(self._h2.data_to_send())
            received = self._tls.recv(65536)
            assert received, "the tunnel was closed"
            for event in self._h2.receive_data(received):
                assert not isinstance(event, h2.events.ConnectionTerminated), event
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.StreamReset):
                    return RESET
                if isinstance(event, kind):
                    return int(dict(getattr(event, "headers", ())).get(":status", 0))


def _context(node: Node, client: Pod, place: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    file = place / "client.pem"
    file.write_text("".join(node.authority.chain(identity(client), pem)) + key_pem(key).decode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who serves is another test's question
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(file)
    return context
