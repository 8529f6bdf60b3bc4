"""A certificate authority for tests: a root, server certificates, and SVIDs from requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BORN = datetime.now(UTC) - timedelta(minutes=1)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


class Authority:
    """`names_instead`: certifies these URIs instead of the one asked for. `says`: raised by `sign`."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        self.root = self._build(name, self.key.public_key(), x509.BasicConstraints(True, None), None, name)
        self.names_instead: list[str] | None = None
        self.says: Exception | None = None
        self.asked: list[str] = []

    def server(self, dns_name: str) -> tuple[bytes, bytes]:
        """Key and certificate, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(dns_name)])
        leaf = self._build(x509.Name([]), key.public_key(), x509.BasicConstraints(False, None), names)
        return key_pem(key), pem(leaf).encode()

    async def sign(self, identity: str, request_pem: str) -> list[str]:
        self.asked.append(identity)
        if self.says:
            raise self.says
        return self.chain(identity, request_pem)

    def chain(self, identity: str, request_pem: str) -> list[str]:
        request = x509.load_pem_x509_csr(request_pem.encode())
        uris = [identity] if self.names_instead is None else self.names_instead
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        leaf = self._build(x509.Name([]), request.public_key(), x509.BasicConstraints(False, None), names)
        return [pem(leaf), pem(self.root)]

    def _build(self, subject, public_key, constraints, names, issuer=None) -> x509.Certificate:
        builder = x509.CertificateBuilder(issuer or self.root.subject, subject, public_key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(BORN).not_valid_after(BORN + timedelta(hours=24))
        builder = builder.add_extension(constraints, critical=True)
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        ca = constraints.ca
        usage |= {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca}
        builder = builder.add_extension(x509.KeyUsage(**usage, encipher_only=False, decipher_only=False), critical=True)
        if names:
            builder = builder.add_extension(names, critical=True)
            both = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return builder.sign(self.key, hashes.SHA256())
