"""Who asks and what they may: service account tokens, their review, and RBAC by the objects that the store holds.

Tokens are JWTs with the claims of Kubernetes' bound tokens, signed with a key of the stand-in's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any, Final

from lab.apiserver.kinds import BY_PATH
from lab.apiserver.store import Item, Refused, Store

AUDIENCE: Final = "https://kubernetes.default.svc"
MASTERS: Final = "system:masters"
_RBAC: Final = ("rbac.authorization.k8s.io", "v1")


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, str], ...] = ()


ADMIN: Final = User("admin", (MASTERS,))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request's attributes. `resource` with its subresource: `pods/status`."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


class Access:
    def __init__(self, store: Store, key: bytes, *, rbac: bool) -> None:
        self._store, self._key, self._rbac = store, key, rbac

    def issue(self, namespace: str, account: str, audiences: list[str], ttl_s: int, bound: Item | None = None) -> str:
        """`bound`: a pod. Raises Refused: it, or the account, is not there."""
        about = self._store.get(BY_PATH["", "v1", "serviceaccounts"], namespace, account)["metadata"]
        claims: Item = {"serviceaccount": {"name": account, "uid": about["uid"]}, "namespace": namespace}
        if bound is not None:
            claims |= self._bound(bound)
        now = int(time.time())
        return self._signed(
            {
                "iss": AUDIENCE,
                "aud": audiences or [AUDIENCE],
                "sub": f"system:serviceaccount:{namespace}:{account}",
                "iat": now,
                "exp": now + ttl_s,
                "kubernetes.io": claims,
            }
        )

    def _bound(self, pod: Item) -> Item:
        about, node = pod["metadata"], pod.get("spec", {}).get("nodeName")
        bound: Item = {"pod": {"name": about["name"], "uid": about["uid"]}}
        return bound | ({"node": {"name": node, "uid": ""}} if node else {})

    def _signed(self, claims: Item) -> str:
        text = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        return f"{text}.{_encoded(hmac.digest(self._key, text.encode(), hashlib.sha256))}"

    def review(self, token: str, audiences: list[str]) -> tuple[User, list[str]]:
        """Who it is, and which of the audiences it is for. Raises ValueError with a sentence."""
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(_encoded(hmac.digest(self._key, text.encode(), hashlib.sha256)), signature):
            raise ValueError("invalid bearer token")
        claims = json.loads(_decoded(text.split(".")[1]))
        if claims["exp"] <= time.time():
            raise ValueError("service account token has expired")
        shared = [each for each in audiences if each in claims["aud"]]
        if not shared:
            raise ValueError(f"token audiences {claims['aud']} is invalid for the target audiences {audiences}")
        return self._user(claims), shared

    def _user(self, claims: Item) -> User:
        about = claims["kubernetes.io"]
        extra: list[tuple[str, str]] = []
        if pod := about.get("pod"):
            found = self._store.get(BY_PATH["", "v1", "pods"], about["namespace"], pod["name"])
            if found["metadata"]["uid"] != pod["uid"]:
                raise ValueError("the pod that the token is bound to is another one now")
            extra = [("pod-name", pod["name"]), ("pod-uid", pod["uid"])]
            extra += [(f"node-{each}", about["node"][each]) for each in ("name", "uid")] if "node" in about else []
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{about['namespace']}", "system:authenticated")
        return User(claims["sub"], groups, tuple((f"authentication.kubernetes.io/{k}", v) for k, v in extra))

    def authenticate(self, authorization: str) -> User:
        """Raises Refused."""
        try:
            return self.review(authorization.removeprefix("Bearer "), [AUDIENCE])[0]
        except (ValueError, KeyError, IndexError, Refused):
            raise Refused(401, "Unauthorized", "Unauthorized") from None

    def authorize(self, user: User, wanted: Wanted) -> None:
        """Raises Refused."""
        if not self._rbac or MASTERS in user.groups:
            return
        rules = [*self._rules(user, ""), *(self._rules(user, wanted.namespace) if wanted.namespace else [])]
        if any(_allows(rule, wanted) for rule in rules):
            return
        scope = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
        what = f'User "{user.name}" cannot {wanted.verb} resource "{wanted.resource}" in API group "{wanted.group}"'
        raise Refused(403, "Forbidden", f"{what} {scope}")

    def _rules(self, user: User, namespace: str) -> list[Any]:
        plural = "rolebindings" if namespace else "clusterrolebindings"
        rules: list[Any] = []
        for binding in self._store.all(BY_PATH[(*_RBAC, plural)], namespace):
            if any(_is(user, subject) for subject in binding.get("subjects", [])):
                ref = binding["roleRef"]
                role = BY_PATH[(*_RBAC, "roles" if ref["kind"] == "Role" else "clusterroles")]
                rules += self._store.get(role, namespace if ref["kind"] == "Role" else "", ref["name"])["rules"]
        return rules


def _is(user: User, subject: Item) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    return subject["name"] in (user.groups if subject["kind"] == "Group" else (user.name,))


def _allows(rule: Item, wanted: Wanted) -> bool:
    names = rule.get("resourceNames")
    return (
        bool({"*", wanted.verb} & set(rule["verbs"]))
        and bool({"*", wanted.group} & set(rule.get("apiGroups", [])))
        and bool({"*", wanted.resource} & set(rule.get("resources", [])))
        and (not names or wanted.name in names)
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
