"""Proof of capture: a connection from inside the pod to an address where nobody is must be accepted by the tunnel."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from mesh.errors import MeshError

ADDRESSES: Final = {4: "192.0.2.127", 6: "2001:db8::7f"}
"""Documentation ranges (RFC 5737, RFC 3849): no router has a way there, so only capture can answer."""
PORT: Final = 1404
DEADLINE_S: Final = 1.0
START_S: Final = 10.0
"""Until a program runs on a starved node; the connection itself needs nobody's turn."""
PROGRAM: Final = Path(__file__).parent / "objects" / "canary"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class NotCaptured(MeshError):
    """The canary connection did not arrive."""


def prove(pod_ips: Sequence[str], cgroup: Path | None = None) -> None:
    """Runs on a thread inside the namespace, up to DEADLINE_S per family. Raises NotCaptured.

    `cgroup`: the pod's, where capture looks at who made the socket. A family without a way out cannot leak and is
    passed over; but one of them must be proven.
    """
    addresses = [ADDRESSES[version] for version in _versions(pod_ips)]
    numbers = [_connect(address) for address in addresses] if cgroup is None else _connect_in(cgroup, addresses)
    outcomes = [_judge(address, number) for address, number in zip(addresses, numbers, strict=True)]
    if not any(outcomes):
        raise NotCaptured("the pod has no route, so that its capture cannot be proven")


def _versions(pod_ips: Sequence[str]) -> list[int]:
    addresses = [ip_address(text.partition("/")[0]) for text in pod_ips]
    return sorted({address.version for address in addresses if not address.is_link_local} or {4})


def _judge(address: str, number: int) -> bool:
    """True: accepted. False: no route."""
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return False
    if number == errno.ETIMEDOUT:
        raise NotCaptured(f"the canary connection to {address} got no answer within {DEADLINE_S:.0f} s")
    if number:
        raise NotCaptured(f"the canary connection to {address} failed: {os.strerror(number)}")
    return True


def _connect(address: str) -> int:
    """0: accepted; else the errno."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as canary:
        canary.settimeout(DEADLINE_S)
        canary.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)  # no TIME_WAIT in the pod
        try:
            canary.connect((address, PORT))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def _connect_in(cgroup: Path, addresses: Sequence[str]) -> list[int]:
    """The same by a process of the pod's group: no thread can be in another group than its process."""
    with _group_in(cgroup) as own:
        command = [str(PROGRAM), str(own), str(int(DEADLINE_S * 1000)), str(PORT), *addresses]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=START_S + DEADLINE_S * len(addresses)
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotCaptured(f"the canary could not be run: {error}") from None
    numbers = [int(line) for line in done.stdout.split()]
    if done.returncode or len(numbers) != len(addresses):
        why = os.strerror(numbers[0]) if numbers else f"exit code {done.returncode}"
        raise NotCaptured(f"the canary could not join the pod's control group: {why}")
    return numbers


@contextmanager
def _group_in(cgroup: Path) -> Iterator[Path]:
    """A group of its own below the pod's: one that has controllers must not hold processes itself."""
    own = cgroup / "nodemesh-canary"
    try:
        own.mkdir(exist_ok=True)
        yield own
    except OSError as error:
        raise NotCaptured(f"the canary has no control group: {error.strerror}") from None
    finally:
        with suppress(OSError):
            own.rmdir()
