"""Whether Envoy can read a JSON Web Key Set (RFC 7517): one that it cannot would hold up every other issuer's, since
all of a proxy's are in one filter. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


def problem(text: str) -> str:
    """ "": it can be used; else what is wrong, as the rest of a sentence about it."""
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not all(isinstance(each, dict) and each.get("kty") for each in keys):
        return 'is not a JSON Web Key Set, as {"keys": [{"kty": …}]}'
    if not keys:
        return "has no keys: no token could be checked"
    for number, each in enumerate(keys):
        try:
            _read(each)
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            return f"key {number + 1} ({each['kty']}) cannot be read: {why}"
    return ""


def _read(key: dict[str, Any]) -> None:
    """Raises ValueError and its like."""
    match key["kty"]:
        case "RSA":
            rsa.RSAPublicNumbers(_number(key["e"]), _number(key["n"])).public_key()
        case "EC":
            curve = _CURVES.get(key["crv"])
            if curve is None:
                raise ValueError(f"its curve is none of {', '.join(_CURVES)}")
            ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), curve).public_key()
        case "OKP":
            if key["crv"] != "Ed25519":
                raise ValueError("its curve is not Ed25519")
            ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key["x"]))
        case "oct":
            _bytes(key["k"])
        case _:
            raise ValueError("its kind is none of RSA, EC, OKP, oct")


def _bytes(text: str) -> bytes:
    found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if not found:
        raise ValueError("a part of it is empty")
    return found


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")
