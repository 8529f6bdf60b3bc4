"""Proof of capture: a connection from inside the pod to an address where nobody is must be accepted by the tunnel."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from mesh.errors import MeshError

ADDRESSES: Final = {4: "192.0.2.127", 6: "2001:db8::7f"}
"""Documentation ranges (RFC 5737, RFC 3849): no router has a way there, so only capture can answer."""
PORT: Final = 1404
DEADLINE_S: Final = 1.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class NotCaptured(MeshError):
    """The canary connection did not arrive."""


def prove(pod_ips: Sequence[str]) -> None:
    """Runs on a thread inside the namespace, up to DEADLINE_S per family. Raises NotCaptured.

    A family without a way out cannot leak and is passed over; but one of them must be proven.
    """
    outcomes = [_connect(ADDRESSES[version]) for version in _versions(pod_ips)]
    if not any(outcomes):
        raise NotCaptured("the pod has no route, so that its capture cannot be proven")


def _versions(pod_ips: Sequence[str]) -> list[int]:
    addresses = [ip_address(text.partition("/")[0]) for text in pod_ips]
    return sorted({address.version for address in addresses if not address.is_link_local} or {4})


def _connect(address: str) -> bool:
    """True: accepted. False: no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as canary:
        canary.settimeout(DEADLINE_S)
        canary.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)  # no TIME_WAIT in the pod
        try:
            canary.connect((address, PORT))
        except TimeoutError:
            raise NotCaptured(f"the canary connection to {address} got no answer within {DEADLINE_S:.0f} s") from None
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return False
            raise NotCaptured(f"the canary connection to {address} failed: {error.strerror}") from None
    return True
