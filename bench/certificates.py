"""A CA and leaves with SPIFFE IDs, for the tunnels of others; ours come from the control plane."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write(directory: Path, identities: dict[str, str]) -> None:
    """A CA and a P-256 leaf per name: `ca.pem`, NAME.pem, NAME.key. The directory must not exist."""
    directory.mkdir(mode=0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, [x509.BasicConstraints(ca=True, path_length=None)])
    _write(directory / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    for name, uri in identities.items():
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        leaf = _certificate(x509.Name([]), ca_name, key, ca_key, [san])
        _write(directory / f"{name}.pem", leaf.public_bytes(serialization.Encoding.PEM))
        private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(directory / f"{name}.key", key.private_bytes(*private))


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extensions: list[x509.ExtensionType],
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(minutes=2)).not_valid_after(now + timedelta(days=1))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256())


def _write(path: Path, data: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(data)
