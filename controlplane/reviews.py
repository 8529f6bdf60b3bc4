"""Which node, waypoint or gateway is calling, by its Kubernetes service account token: the API server reviews it.

Owns what a token proves: a tunnel (one of the trusted accounts) proves the node that its pod is bound to, a proxy's pod
the gateway that it belongs to. Join tokens go on being accepted. While the API server is away, a token that it has
vouched for is accepted until it expires, so that certificates are renewed. Nobody makes us flood the API server: what
cannot be accepted is not asked about, the same token is asked about once, strangers wait behind `AT_ONCE` of theirs
and never before a tunnel that is known, and whoever keeps bringing bad tokens is made to wait (`refusals.py`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from controlplane.attest import BEARER, Tokens, proxy_caller
from controlplane.refusals import Refusals
from kube.client import Client
from kube.errors import ApiError, Unreachable
from kube.objects import TOKEN_REVIEWS, Pod
from mesh import log
from mesh.errors import MeshError, OperatorError, PeerError

FRESH_S: Final = 30.0
MOST: Final = 50_000
MAX_TOKEN_CHARS: Final = 16 * 1024
AT_ONCE: Final = 16
"""Reviews of tokens that are not known yet."""
GATEWAY_LABEL: Final = "gateway.networking.k8s.io/gateway-name"
_PREFIX: Final = "authentication.kubernetes.io/"
_ACCOUNT: Final = "system:serviceaccount:"
_log: Final = log.get("reviews")


class Pods(Protocol):
    def pod(self, namespace: str, name: str) -> Pod | None: ...


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User | None = None
    audiences: list[str] | None = None
    error: str = ""


class _Review(msgspec.Struct):
    status: _Status


@dataclass(frozen=True, slots=True)
class _Known:
    caller: str
    reviewed: float
    expires: float


class _NotYet(PeerError):
    """The token is a good one; we have not heard of its pod."""


class Reviews:
    """`Tokens` with a second way to prove who one is."""

    def __init__(
        self,
        tokens: Tokens,
        client: Client,
        pods: Pods,
        audience: str,
        trusted: Iterable[str],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`trusted`: `namespace/account` of the tunnels."""
        self._tokens, self._client, self._pods, self._now = tokens, client, pods, now
        self._audience, self._trusted = audience, frozenset(trusted)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refusals = Refusals(now)
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}
        self._strangers = asyncio.Semaphore(AT_ONCE)

    async def caller(self, authorization: str | bytes | None, address: str = "") -> str:
        """As `Tokens.caller`. Raises PeerError."""
        text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization or ""
        token = text.removeprefix(BEARER).strip()
        if not text.startswith(BEARER) or token.count(".") != 2:
            return self._tokens.node_of(authorization)
        if len(token) > MAX_TOKEN_CHARS:
            raise PeerError("the token is too long")
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        known = self._known.get(digest)
        if known is None or self._now() - known.reviewed > FRESH_S:
            known = await self._judged(digest, token, address)
        if known.expires <= self._now():
            raise PeerError("the service account token has expired")
        return known.caller

    async def _judged(self, digest: bytes, token: str, address: str) -> _Known:
        """Raises PeerError."""
        if why := self._refusals.why(digest):
            raise PeerError(why)
        self._require_worth(token)
        if digest not in self._known and (wait_s := self._refusals.wait_s(address)):
            raise PeerError(f"too many tokens from this address were refused: it has to wait {wait_s:.0f} s")
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.ensure_future(self._ask(digest, token, address))
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(asking)

    def _asked(self, digest: bytes, done: asyncio.Task[_Known]) -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # nobody may be waiting for it any more

    def _require_worth(self, token: str) -> None:
        """What the token itself says against it. Raises PeerError."""
        claims = _claims(token)
        if _number(claims.get("exp")) <= self._now():
            raise PeerError("the service account token has expired")
        audiences = claims.get("aud")
        if self._audience not in (audiences if isinstance(audiences, list) else [audiences]):
            raise PeerError(f"the token is not for the audience {self._audience}")

    async def _ask(self, digest: bytes, token: str, address: str) -> _Known:
        known = self._known.get(digest)
        if known is not None:
            status = await self._review(token, known)
        else:
            async with self._strangers:
                status = await self._review(token, None)
        if status is None:
            assert known is not None
            return known
        try:
            made = _Known(self._caller_of(status), self._now(), _number(_claims(token).get("exp")))
        except PeerError as error:
            self._known.pop(digest, None)
            if not isinstance(error, _NotYet):
                self._refusals.add(digest, address, str(error))
            raise
        self._remember(digest, made)
        return made

    def _remember(self, digest: bytes, known: _Known) -> None:
        self._known[digest] = known
        self._known.move_to_end(digest)
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    async def _review(self, token: str, known: _Known | None) -> _Status | None:
        """None: the API server does not answer, and what it said last stands. Raises PeerError: it never said it."""
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._client.create(TOKEN_REVIEWS, "", body)
            return msgspec.json.decode(answer, type=_Review).status
        except (Unreachable, ApiError, OperatorError) as error:
            if known is None:
                raise PeerError(f"the token cannot be reviewed: {error}") from None
            _log.warning("token accepted as last reviewed", node=known.caller, why=str(error))
            return None
        except msgspec.MsgspecError as error:
            raise PeerError(f"the token's review is not understood: {error}") from None

    def _caller_of(self, status: _Status) -> str:
        """Raises PeerError."""
        if not status.authenticated or status.user is None:
            raise PeerError(f"the API server does not accept the token: {status.error or 'no reason given'}")
        # An API server that knows nothing of audiences lets every token pass.
        if self._audience not in (status.audiences or ()):
            raise PeerError(f"the token is not for the audience {self._audience}")
        extra = {name.removeprefix(_PREFIX): value[0] for name, value in (status.user.extra or {}).items() if value}
        kind, _, account = status.user.username.partition(_ACCOUNT)
        namespace, _, name = account.partition(":")
        if kind or not namespace or not name:
            raise PeerError(f"{status.user.username!r} is not a service account")
        if "pod-name" not in extra or "pod-uid" not in extra:
            raise PeerError("the token is not bound to a pod: a projected token is required")
        if f"{namespace}/{name}" in self._trusted:
            return extra.get("node-name") or self._node(namespace, extra)
        return self._proxy(namespace, extra)

    def _node(self, namespace: str, extra: dict[str, str]) -> str:
        """Kubernetes before 1.30 does not say it in the token."""
        pod = self._pod(namespace, extra)
        if not pod.spec.node_name:
            raise PeerError(f"pod {namespace}/{extra['pod-name']} is on no node")
        return pod.spec.node_name

    def _proxy(self, namespace: str, extra: dict[str, str]) -> str:
        pod = self._pod(namespace, extra)
        gateway = (pod.metadata.labels or {}).get(GATEWAY_LABEL)
        if not gateway:
            name = f"{namespace}/{extra['pod-name']}"
            raise PeerError(f"pod {name} is neither a tunnel's, by its account, nor a gateway's, by its label")
        try:
            return proxy_caller(f"{namespace}/{gateway}")
        except MeshError as error:
            raise PeerError(str(error)) from None

    def _pod(self, namespace: str, extra: dict[str, str]) -> Pod:
        pod = self._pods.pod(namespace, extra["pod-name"])
        if pod is None or pod.metadata.uid != extra["pod-uid"]:
            raise _NotYet(f"pod {namespace}/{extra['pod-name']} is not known here yet")
        return pod


def _claims(token: str) -> dict[str, Any]:
    """What it says of itself, which proves nothing. Raises PeerError."""
    part = token.split(".")[1]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=dict[str, Any])
    except ValueError:
        raise PeerError("the token is not one of a service account") from None


def _number(claim: Any) -> float:
    """A claim that is missing: long ago."""
    return float(claim) if isinstance(claim, (int, float)) else 0.0
