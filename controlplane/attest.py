"""Who is calling, a node or a proxy: join tokens, issued by the operator, of which only the hash is kept.

Owns STATE/tokens: one file per caller, mode 0600, written atomically. A token proves the caller; what it may then have
is the CA's decision. Expiry and revocation take effect at the next call.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from controlplane.private_files import private_directory, write_private
from mesh.errors import OperatorError, PeerError

TOKEN_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 512
BEARER: Final = "Bearer "
# A waypoint or gateway, as it is called here: no node's name has an at sign.
_PROXY: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?@[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NODE: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`expires`: Unix seconds."""

    node: str
    sha256: str
    expires: float


class Callers(Protocol):
    """Whoever can say who calls."""

    async def caller(self, authorization: str | bytes | None, address: str = "") -> str:
        """The node (or proxy) that a call's `authorization` proves. Raises PeerError with the sentence to answer.
        `address`: where it comes from, so that it can be told to wait."""


class Tokens:
    """Raises OperatorError where the state directory is not ours or not private."""

    def __init__(self, state: Path, now: Callable[[], float] = time.time) -> None:
        self._directory = state / "tokens"
        self._now = now

    def create(self, node: str, ttl_s: float) -> str:
        """A fresh 256-bit token for the node (or proxy); replaces its old one. The text is not kept."""
        _require_name(node)
        private_directory(self._directory)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        content = {"node": node, "sha256": _digest(token), "expires": self._now() + ttl_s}
        write_private(self._directory / node, json.dumps(content).encode(), replace=True)
        return token

    def revoke(self, node: str) -> None:
        _require_name(node)
        try:
            (self._directory / node).unlink()
        except FileNotFoundError:
            raise OperatorError(f"{described(node)} has no join token") from None

    def all(self) -> Iterator[JoinToken]:
        """Every readable one, expired ones included, by caller."""
        if not self._directory.exists():
            return
        private_directory(self._directory)
        for name in sorted(os.listdir(self._directory)):
            if _NODE.fullmatch(name) or _PROXY.fullmatch(name):
                yield _load(self._directory / name)

    async def caller(self, authorization: str | bytes | None, address: str = "") -> str:
        """As `Callers` has it. Nobody is asked, so nobody has to wait."""
        return self.node_of(authorization)

    def node_of(self, authorization: str | bytes | None) -> str:
        """The node (or proxy) that a call's `authorization` proves. Raises PeerError with the sentence to answer.

        Compares in constant time with every token. One file read per node and call: calls are rare, revocation is not
        allowed to wait for a cache.
        """
        text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
        if not text or not text.startswith(BEARER) or len(text) > MAX_TOKEN_CHARS:
            raise PeerError("a join token is required: authorization: Bearer TOKEN")
        digest = _digest(text.removeprefix(BEARER).strip())
        found = None
        for token in self.all():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            raise PeerError("the join token is not known here; create one with: controlplane token create --node NAME")
        if found.expires <= self._now():
            raise PeerError(f"the join token of {described(found.node)} has expired")
        return found.node


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("latin-1", "replace")).hexdigest()


def proxy_caller(key: str) -> str:
    """What a proxy (`namespace/name`) is called here. Raises OperatorError: it is no such name."""
    caller = key.replace("/", "@", 1)
    if not _PROXY.fullmatch(caller):
        raise OperatorError(f"{key!r} is not NAMESPACE/NAME of a waypoint or gateway")
    return caller


def proxy_key(caller: str) -> str:
    """`namespace/name` of a proxy; "" for a node."""
    return caller.replace("@", "/", 1) if "@" in caller else ""


def described(caller: str) -> str:
    return f"proxy {proxy_key(caller)}" if "@" in caller else f"node {caller}"


def _require_name(node: str) -> None:
    if not _NODE.fullmatch(node) and not _PROXY.fullmatch(node):
        raise OperatorError(f"{node!r} is not a node's name: lower-case letters, digits, '-' and '.', at most 253")


def _load(path: Path) -> JoinToken:
    try:
        content = json.loads(path.read_bytes())
        return JoinToken(path.name, str(content["sha256"]), float(content["expires"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise OperatorError("is not a join token written by `controlplane token create`", where=str(path)) from None
