"""The mesh's certificate authority: its root on disk, what it signs, and whether a node may have an identity.

Owns STATE/ca. Certificates follow the SPIFFE X.509-SVID specification and SPIFFE's advice on lifetimes. Does not know
gRPC; who is calling is `attest.py`.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.l7.model import L7
from controlplane.private_files import private_directory, require_private, write_private
from mesh.errors import OperatorError, PeerError
from mesh.ids import SpiffeId
from mesh.model import World

ROOT_KEY, ROOT = "root-key.pem", "root-cert.pem"
NEXT_KEY, NEXT = "next-key.pem", "next-cert.pem"
PREVIOUS: Final = "previous-cert.pem"
BACKDATED: Final = timedelta(minutes=2)
ROOT_LIFETIME: Final = timedelta(days=3650)
SHORTEST, LONGEST = timedelta(hours=1), timedelta(hours=24)
SERVER_LIFETIME: Final = timedelta(hours=24)
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
MAX_CSR_CHARS: Final = 16 * 1024
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def _utcnow() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, eq=False)
class KeyPair:
    """PEM, for a TLS server."""

    key: bytes
    chain: bytes
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """What STATE/ca says at one moment. `others`: roots that are trusted and do not sign: the next, the previous."""

    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    others: tuple[x509.Certificate, ...]
    stamp: tuple[tuple[str, int, int], ...]


class Authority:
    """Made by `load_authority`. A rotation (`rotation.py`) takes effect with the next call, without a restart."""

    def __init__(self, directory: Path, load: Callable[[], Held], now: Callable[[], datetime]) -> None:
        self._directory = directory
        self._load = load
        self._held = load()
        self.now = now
        self.trouble = ""
        """Why the files of now are not in force, if they are not."""

    @property
    def root_pem(self) -> bytes:
        """Of the root that signs."""
        return self._held.root.public_bytes(serialization.Encoding.PEM)

    @property
    def trusted(self) -> list[x509.Certificate]:
        """Every root to believe in at this moment, the one that signs first."""
        return [self._held.root, *self._held.others]

    def refresh(self) -> None:
        """Reads the files again if they have changed; what cannot be used leaves the last state in force."""
        if _stamp(self._directory) == self._held.stamp:
            return
        try:
            self._held, self.trouble = self._load(), ""
        except OperatorError as error:
            self.trouble = str(error)

    def issue(self, csr_pem: str, identity: SpiffeId, ttl: timedelta | None = None) -> list[str]:
        """The chain for this identity, PEM: leaf, then the root. Raises PeerError: the request is not acceptable.

        `ttl` None or zero: 24 hours; otherwise clamped to 1 to 24 hours.
        """
        self.refresh()
        request = _load_csr(csr_pem)
        public = _checked_key(request)
        if _requested(request) != [str(identity)]:
            raise PeerError(f"the certificate request must carry exactly one URI name, {identity}")
        lifetime = min(max(ttl, SHORTEST), LONGEST) if ttl else LONGEST
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        leaf = self._leaf(public, x509.Name([]), san, lifetime)
        roots = "".join(root.public_bytes(serialization.Encoding.PEM).decode() for root in self.trusted)
        return [leaf.public_bytes(serialization.Encoding.PEM).decode(), roots]

    def server_certificate(self, names: Iterable[str]) -> KeyPair:
        """For our own door; the key never touches the disk."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controlplane")])
        leaf = self._leaf(key.public_key(), subject, san, SERVER_LIFETIME)
        pem = leaf.public_bytes(serialization.Encoding.PEM) + self.root_pem
        return KeyPair(_key_pem(key), pem, leaf.not_valid_after_utc)

    def _leaf(
        self, public: PublicKey, subject: x509.Name, san: x509.SubjectAlternativeName, lifetime: timedelta
    ) -> x509.Certificate:
        now, issuer = self.now(), self._held
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        return (
            _builder(subject, issuer.root.subject, public)
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + lifetime, issuer.root.not_valid_after_utc))
            .add_extension(san, critical=not list(subject))  # RFC 5280, 4.2.1.6
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(both, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(issuer.key, hashes.SHA256())
        )


def load_authority(state: Path, trust_domain: str, now: Callable[[], datetime] = _utcnow) -> Authority:
    """The root of STATE/ca; made at the first start. Raises OperatorError: it cannot be trusted or used."""
    directory = state / "ca"
    private_directory(directory)
    return Authority(directory, lambda: _load(directory, trust_domain, now()), now)


def _load(directory: Path, trust_domain: str, now: datetime) -> Held:
    stamp = _stamp(directory)
    complete_activation(directory)
    key_path, root_path = directory / ROOT_KEY, directory / ROOT
    if not key_path.exists() and not root_path.exists():
        write_private(key_path, _key_pem(ec.generate_private_key(ec.SECP256R1())), replace=False)
    key = _load_key(key_path)
    if not root_path.exists():
        # Whoever comes second reads what the first one wrote: two starts at once agree on one root.
        write_private(root_path, _self_signed(key, trust_domain, now), replace=False, mode=0o644)
    others = (directory / NEXT, directory / PREVIOUS)
    trusted = tuple(_load_trusted(path, trust_domain) for path in others if path.exists())
    return Held(key, _load_root(root_path, key, trust_domain, now), trusted, stamp)


def new_root(directory: Path, trust_domain: str, now: datetime) -> None:
    """The next root beside the one that signs: its key first, so that a certificate without its key is never there."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(directory / NEXT_KEY, _key_pem(key), replace=True)
    write_private(directory / NEXT, _self_signed(key, trust_domain, now), replace=True, mode=0o644)


def complete_activation(directory: Path) -> None:
    """Key and certificate change places one after the other; who died in between is helped over it."""
    if not (directory / NEXT).exists() or (directory / NEXT_KEY).exists() or not (directory / PREVIOUS).exists():
        return
    with suppress(FileNotFoundError):  # a running control plane and the command line: one of them was first
        (directory / NEXT).replace(directory / ROOT)


def _stamp(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever one of the files does."""
    found: list[tuple[str, int, int]] = []
    for name in (ROOT_KEY, ROOT, NEXT_KEY, NEXT, PREVIOUS):
        with suppress(FileNotFoundError):
            status = (directory / name).stat()
            found.append((name, status.st_ino, status.st_mtime_ns))
    return tuple(found)


def _load_trusted(path: Path, trust_domain: str) -> x509.Certificate:
    try:
        root = x509.load_pem_x509_certificate(path.read_bytes())
        names = _uris(root)
    except OSError as error:
        raise OperatorError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError:
        raise OperatorError("is not the certificate of an authority in PEM", where=str(path)) from None
    if names not in ([], [f"spiffe://{trust_domain}"]):
        raise OperatorError(f"is not for the trust domain {trust_domain}", where=str(path))
    return root


def entitlement(world: World, node: str, identity: SpiffeId, trust_domain: str) -> None:
    """Raises PeerError unless a workload with this identity is on this node and its tunnel serves it.

    O(workloads). Finished pods are not in the world; a pod that is being created is, before it has an address.
    """
    wanted = (identity.namespace, identity.service_account)
    if identity.trust_domain == trust_domain:
        for workload in world.workloads.values():
            here = workload.node == node and (workload.namespace, workload.service_account) == wanted
            if here and workload.hbone and not workload.native_tunnel:
                return
        if (node, *wanted) in world.joining:
            return
    raise PeerError(f"no workload in the mesh on node {node} has the identity {identity}")


def proxy_identity(l7: L7, proxy: str, trust_domain: str) -> SpiffeId:
    """Of the waypoint or gateway (`namespace/name`). Raises PeerError: there is none."""
    found = l7.proxies.get(proxy)
    if found is None:
        raise PeerError(f"there is no waypoint or gateway {proxy}")
    return SpiffeId.for_workload(trust_domain, found.namespace, found.service_account)


def proxy_entitlement(l7: L7, proxy: str, identity: SpiffeId, trust_domain: str) -> None:
    """Raises PeerError unless this is the identity of the waypoint or gateway (`namespace/name`)."""
    own = proxy_identity(l7, proxy, trust_domain)
    if identity != own:
        raise PeerError(f"the identity of {proxy} is {own}, not {identity}")


def _load_csr(pem: str) -> x509.CertificateSigningRequest:
    if len(pem) > MAX_CSR_CHARS:
        raise PeerError(f"the certificate request is longer than {MAX_CSR_CHARS} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        if not request.is_signature_valid:
            raise PeerError("the certificate request is not signed with its own key")
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise PeerError("the certificate request is not a valid PKCS #10 request in PEM") from None
    return request


def _checked_key(request: x509.CertificateSigningRequest) -> PublicKey:
    """Raises PeerError: too weak, or of a kind that peers do not verify."""
    try:
        public, algorithm = request.public_key(), request.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        raise PeerError("the certificate request's key is of a kind not supported") from None
    if not isinstance(algorithm, _HASHES):
        raise PeerError("the certificate request must be signed with SHA-256, SHA-384 or SHA-512")
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, (ec.SECP256R1, ec.SECP384R1)):
        return public
    if isinstance(public, rsa.RSAPublicKey) and MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
        return public
    raise PeerError("the key must be ECDSA P-256 or P-384, or RSA of 2048 to 8192 bits")


def _requested(request: x509.CertificateSigningRequest) -> list[str]:
    try:
        return _uris(request)
    except ValueError as error:
        raise PeerError(f"the certificate request's names cannot be used: {error}") from None


def _uris(holder: x509.CertificateSigningRequest | x509.Certificate) -> list[str]:
    """Raises ValueError: a name of another type, or extensions that cannot be read."""
    try:
        names = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except x509.DuplicateExtension:
        raise ValueError("an extension is given twice") from None
    if any(not isinstance(name, x509.UniformResourceIdentifier) for name in names):
        raise ValueError("it names something else than a URI")
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _builder(subject: x509.Name, issuer: x509.Name, public: PublicKey) -> x509.CertificateBuilder:
    """RFC 5280 wants the serial positive and at most 20 bytes; 128 random bits, of which the highest one is set."""
    serial = secrets.randbits(127) | 1 << 127
    return x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public).serial_number(serial)


def _usage(*, digital_signature: bool = False, sign_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _self_signed(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> bytes:
    """X.509-SVID, section 3: a signing certificate's SPIFFE ID has no path."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    public = key.public_key()
    certificate = (
        _builder(name, name, public)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_trust_domain_name(trust_domain), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _trust_domain_name(trust_domain: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        require_private(path, "0600")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise OperatorError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise OperatorError("is not an unencrypted private key in PEM", where=str(path)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise OperatorError("is not an ECDSA P-256 or P-384 key", where=str(path))
    return key


def _load_root(path: Path, key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    where = str(path)
    try:
        root = x509.load_pem_x509_certificate(path.read_bytes())
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = _uris(root)
    except OSError as error:
        raise OperatorError(f"cannot be read: {error.strerror}", where=where) from None
    except (ValueError, x509.ExtensionNotFound):
        raise OperatorError("is not the certificate of an authority in PEM", where=where) from None
    if root.public_key() != key.public_key():
        raise OperatorError("does not belong to root-key.pem beside it", where=where)
    if not constraints.ca:
        raise OperatorError("is not the certificate of an authority", where=where)
    if names not in ([], [f"spiffe://{trust_domain}"]):
        raise OperatorError(f"is not for the trust domain {trust_domain}", where=where)
    if root.not_valid_after_utc <= now:
        raise OperatorError(f"has expired at {root.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", where=where)
    if root.not_valid_before_utc > now:
        raise OperatorError("is not valid yet: is the clock right?", where=where)
    return root


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
