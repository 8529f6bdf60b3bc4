"""Trust bundles as texts: SPIFFE's JSON document, PEM, concatenated DER. Pure; what they are used for is its readers'.

Source: SPIFFE Trust Domain and Bundle §4 and §5; X509-SVID §6.2.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
from dataclasses import dataclass
from typing import Any, Final

MAX_BYTES: Final = 1024 * 1024
_SCHEME: Final = "spiffe://"


@dataclass(frozen=True, slots=True)
class Bundle:
    """`sequence` None: the document has none. Without certificates everybody of the trust domain is refused."""

    pem: str
    sequence: int | None = None


def read_bundle(content: bytes, name: str) -> Bundle:
    """By the file's ending: `.json` or `.pem`. Raises ValueError with the reason."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES} bytes")
    return _from_json(content) if name.endswith(".json") else Bundle(_checked_pem(content))


def pem_of_der(der: bytes) -> str:
    """Of certificates one after the other, as the Workload API sends them. Raises ValueError."""
    found: list[str] = []
    while der:
        length = _der_length(der)
        found.append(_pem(der[:length]))
        der = der[length:]
    return "".join(found)


def trust_domain_of(key: str) -> str:
    """The Workload API names a trust domain by its SPIFFE ID. Raises ValueError."""
    domain = key.removeprefix(_SCHEME)
    if not key.startswith(_SCHEME) or not domain or "/" in domain:
        raise ValueError(f"{key!r} is not the SPIFFE ID of a trust domain")
    return domain


def _der_length(der: bytes) -> int:
    """Of the first value, header included. X.690 §8.1.3."""
    if len(der) < 2 or der[0] != 0x30 or der[1] == 0x80:
        raise ValueError("is not a sequence of DER certificates")
    if der[1] < 0x80:
        return 2 + der[1]
    digits = der[1] & 0x7F
    return 2 + digits + int.from_bytes(der[2 : 2 + digits])


def _pem(der: bytes) -> str:
    _parse(der)
    return ssl.DER_cert_to_PEM_cert(der)


def _parse(certificates: bytes | str) -> None:
    """DER or PEM. By OpenSSL, which is here in any case: the core parses strictly. Raises ValueError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except ssl.SSLError as error:
        raise ValueError(f"is not a certificate: {error.reason}") from None


def _checked_pem(content: bytes) -> str:
    try:
        text = content.decode("ascii")
        if text.strip():
            _parse(text)
    except ValueError:
        raise ValueError("is not a list of certificates in PEM") from None
    return text


def _from_json(content: bytes) -> Bundle:
    try:
        document = json.loads(content, object_pairs_hook=_without_duplicates)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("is not a SPIFFE bundle: it has no list `keys`")
    sequence = document.get("spiffe_sequence")
    if sequence is not None and (not isinstance(sequence, int) or isinstance(sequence, bool) or sequence < 0):
        raise ValueError("`spiffe_sequence` is not a whole number")
    return Bundle("".join(pem for entry in document["keys"] if (pem := _certificate(entry))), sequence)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _certificate(entry: object) -> str:
    """What is not for X.509, or has no certificate, is left out, as the specification wants; nonsense is refused."""
    if not isinstance(entry, dict) or entry.get("use") != "x509-svid" or entry.get("kty") not in ("EC", "RSA", "OKP"):
        return ""
    chain = entry.get("x5c")
    if not isinstance(chain, list) or not chain:
        return ""
    try:
        der = base64.b64decode(chain[0], validate=True)
        return _pem(der)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("an `x5c` is not a certificate: base64 of DER is expected") from None
