"""Certificate revocation lists as files and bytes: read, checked for age, put together as PEM for the core."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_END: Final = b"-----END X509 CRL-----"


class OutOfDate(ValueError):
    """A list whose successor is due."""


def read(delivered: list[bytes], path: Path | None, now: datetime) -> str:
    """PEM of those in DER and those in the file. Raises OSError, OutOfDate, ValueError."""
    lists = [x509.load_der_x509_crl(der) for der in delivered]
    if path is not None:
        lists += _read_file(path)
    for each in lists:
        if each.next_update_utc is None or each.next_update_utc <= now:
            raise OutOfDate(f"the revocation list of {each.issuer.rfc4514_string()} is out of date")
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in lists)


def _read_file(path: Path) -> list[x509.CertificateRevocationList]:
    """PEM, one or several, or one in DER."""
    content = path.read_bytes()
    if b"-----BEGIN" not in content:
        return [x509.load_der_x509_crl(content)]
    blocks = [block + _END for block in content.split(_END)[:-1]]
    if not blocks:
        raise ValueError("holds no revocation list")
    return [x509.load_pem_x509_crl(block) for block in blocks]
