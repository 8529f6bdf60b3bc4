"""An HBONE client that shares nothing with ours: Python's `ssl` and `h2`, run in a namespace of the lab.

`byhand.py certificate` asks the CA, `byhand.py connect` makes one attempt; both read a JSON object and print one. A
process of its own, because a process has one network namespace.
"""

import json
import socket
import ssl
import sys
import tempfile

import h2.config
import h2.connection
import h2.errors
import h2.events

TIMEOUT_S = 30.0


def certificate(ca, root, token, identity, key):
    """A chain (PEM) from CreateCertificate for `identity`, whose request is signed with `key` (PEM)."""
    import grpc
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    from mesh.gen import ca_pb2, ca_pb2_grpc

    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    private = serialization.load_pem_private_key(key.encode(), None)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    csr = request.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    message = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=3600)
    message.metadata["ImpersonatedIdentity"] = identity
    with grpc.secure_channel(ca, grpc.ssl_channel_credentials(root.encode())) as channel:
        headers = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        try:
            answer = ca_pb2_grpc.IstioCertificateServiceStub(channel).CreateCertificate(
                message, metadata=headers, timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return {"refused": error.code().name, "why": error.details()}
    return {"chain": list(answer.cert_chain)}


def connect(ip, method="CONNECT", authority="", chain=None, key="", tls="1.3", send="", path="", ends=True):
    """One tunnel, one stream. {"status", "echo", "peer"} or {"failed": why}. `ends`: nothing follows what is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the identity is checked by hand below
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, f"TLSv{tls.replace('.', '_')}")
    context.set_alpn_protocols(["h2"])
    if chain:
        _load(context, chain, key)
    try:
        with socket.create_connection((ip, 15008), TIMEOUT_S) as plain, context.wrap_socket(plain) as secure:
            return _stream(secure, method, authority, path, send.encode(), ends)
    except OSError as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def _load(context, chain, key):
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write("".join(chain) + key)
        file.flush()
        context.load_cert_chain(file.name)


def _stream(secure, method, authority, path, payload, ends):
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, validate_outbound_headers=False, header_encoding="utf-8")
    )
    connection.initiate_connection()
    headers = [(":method", method), (":authority", authority)]
    headers += [(":scheme", "https"), (":path", path)] if path else []
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, headers, end_stream=bool(path))
    secure.sendall(connection.data_to_send())
    seen = {"alpn": secure.selected_alpn_protocol(), "tls": secure.version(), "peer": _spiffe(secure), "echo": ""}
    while "end" not in seen:
        data = secure.recv(65536)
        if not data:
            return seen if "status" in seen else {"failed": "the tunnel was closed"}
        for event in connection.receive_data(data):
            _note(connection, event, seen, stream, payload, ends)
        secure.sendall(connection.data_to_send())
    return seen


def _note(connection, event, seen, stream, payload, ends):
    match event:
        case h2.events.ResponseReceived():
            seen["status"] = int(dict(event.headers)[":status"])
            if seen["status"] == 200 and payload:
                connection.send_data(stream, payload, end_stream=ends)
            else:
                seen["end"] = "refused" if seen["status"] != 200 else "open"
        case h2.events.DataReceived():
            seen["echo"] += event.data.decode()
            connection.acknowledge_received_data(event.flow_controlled_length, stream)
        case h2.events.StreamEnded():
            seen["end"] = "END_STREAM"
        case h2.events.StreamReset() | h2.events.ConnectionTerminated():
            seen["end"] = f"{type(event).__name__} {event.error_code}"
        case _:
            pass


def _spiffe(secure):
    from cryptography import x509

    leaf = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)[0]


if __name__ == "__main__":
    print(json.dumps({"certificate": certificate, "connect": connect}[sys.argv[1]](**json.load(sys.stdin))))
