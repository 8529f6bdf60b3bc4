"""Which node, waypoint or gateway is calling, by its Kubernetes service account token: the API server reviews it.

Owns what a token proves: a tunnel (one of the trusted accounts) proves the node that its pod is bound to, a proxy's pod
the gateway that it belongs to. Join tokens go on being accepted. While the API server is away, a token that it has
vouched for is accepted until it expires, so that certificates are renewed.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from controlplane.attest import BEARER, Tokens, proxy_caller
from kube.client import Client
from kube.errors import ApiError, Unreachable
from kube.objects import TOKEN_REVIEWS, Pod
from mesh import log
from mesh.errors import MeshError, OperatorError, PeerError

FRESH_S: Final = 30.0
MOST: Final = 50_000
MAX_TOKEN_CHARS: Final = 16 * 1024
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

    async def caller(self, authorization: str | bytes | None) -> str:
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
            known = await self._reviewed(token, known)
            self._remember(digest, known)
        if known.expires <= self._now():
            raise PeerError("the service account token has expired")
        return known.caller

    def _remember(self, digest: bytes, known: _Known) -> None:
        self._known[digest] = known
        self._known.move_to_end(digest)
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    async def _reviewed(self, token: str, known: _Known | None) -> _Known:
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = await self._client.create(TOKEN_REVIEWS, "", body)
            status = msgspec.json.decode(answer, type=_Review).status
        except (Unreachable, ApiError, OperatorError) as error:
            if known is None:
                raise PeerError(f"the token cannot be reviewed: {error}") from None
            _log.warning("token accepted as last reviewed", node=known.caller, why=str(error))
            return known
        except msgspec.MsgspecError as error:
            raise PeerError(f"the token's review is not understood: {error}") from None
        return _Known(self._caller_of(status), self._now(), _expiry(token))

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
            raise PeerError(f"pod {namespace}/{extra['pod-name']} is not known here yet")
        return pod


def _expiry(token: str) -> float:
    """Of a token that the API server has just accepted. A claim that is missing: at once."""
    part = token.split(".")[1]
    try:
        claims: dict[str, Any] = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        return 0.0
