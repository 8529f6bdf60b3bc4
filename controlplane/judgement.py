"""What a file's documents say, one by one: read by the reader of their kind, with what is wrong about each.

Owns which kinds there are, and what a document that cannot be told apart may mean (a claim). Which of several documents
counts, and what stays in force, is the store's. Pure: a file is judged where and when it suits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from controlplane.documents import CLUSTER_SCOPED, Document, Key, Parsed
from controlplane.objects import Object, Resource
from controlplane.translate import authorization, istio, kubernetes, resources
from controlplane.translate.policies import closed
from controlplane.validate import Field, Finding, Level, Problem

Reader = Callable[[Field], Object]
_NETWORKING: Final = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_SECURITY: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")


@dataclass(frozen=True, slots=True)
class Claim:
    """A document that may be the changed form of an object. Empty: not known. A kind counts only if it is ours."""

    kind: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def whole_file(self) -> bool:
        return self == Claim()

    def covers(self, key: Key, known_kinds: Iterable[str]) -> bool:
        return (
            (self.kind not in known_kinds or self.kind == key.kind)
            and (not self.name or self.name == key.name)
            and (not self.namespace or not key.namespace or self.namespace == key.namespace)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """`object` None: the document is invalid; `closed` is then what may stand for it (`policies.closed`)."""

    document: Document
    object: Object | None
    closed: Object | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A file after judgement."""

    parsed: Parsed
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    claims: frozenset[Claim]


class Judge:
    """`known_kinds`: every kind that is used here."""

    def __init__(self, root_namespace: str) -> None:
        self._readers = _readers(root_namespace)
        self.known_kinds = frozenset(self._readers)

    def read(self, parsed: Parsed) -> Judged:
        """Drops the documents' trees."""
        entries: list[Entry] = []
        findings = list(parsed.findings)
        claims = {Claim()} if parsed.broken else set()
        for number, document in enumerate(parsed.documents):
            reader = self._reader(document)
            if reader is None:
                claims.add(_claim_of(document))
            else:
                entries.append(_judge(document, reader, number))
            findings.extend(map(document.finding, dict.fromkeys(document.root.problems)))
            document.root.release()
        return Judged(parsed, tuple(entries), tuple(findings), frozenset(claims))

    def _reader(self, document: Document) -> Reader | None:
        """None: what the document is about cannot be told, or is not ours."""
        kind, problems = document.key.kind, document.root.problems
        versions, reader = self._readers.get(kind, ((), None))
        if kind and not versions:
            allowed = ", ".join(sorted(self._readers))
            problems.append(Problem(document.line, f"kind: {kind!r} is not used here; known: {allowed}"))
        elif versions and document.api_version and document.api_version not in versions:
            why = f"apiVersion: {document.api_version!r} of {kind} is not known; allowed: {', '.join(versions)}"
            problems.append(Problem(document.line, why))
            return reader if document.header_ok else None
        return reader if document.header_ok else None


def _judge(document: Document, reader: Reader, number: int) -> Entry:
    found = reader(document.root)
    if isinstance(found, Resource) and document.line and not found.meta.created:
        found = replace(found, meta=replace(found.meta, place=(document.file, number)))
    errors = [problem.why for problem in document.root.problems if problem.level is Level.ERROR]
    return Entry(document, None, closed(found, errors)) if errors else Entry(document, found)


def _claim_of(document: Document) -> Claim:
    """A name that is no name says nothing."""
    kind, namespace, name = document.key
    wrong = {problem.why.partition(":")[0] for problem in document.root.problems}
    return Claim(
        kind="" if "kind" in wrong and not kind else kind,
        namespace="" if "metadata.namespace" in wrong or kind in CLUSTER_SCOPED else namespace,
        name="" if "metadata.name" in wrong else name,
    )


def _readers(root_namespace: str) -> dict[str, tuple[tuple[str, ...], Reader]]:
    return {
        "Namespace": (("v1",), kubernetes.namespace),
        "Node": (("v1",), kubernetes.node),
        "ServiceAccount": (("v1",), kubernetes.service_account),
        "Pod": (("v1",), kubernetes.pod),
        "Service": (("v1",), kubernetes.service),
        "EndpointSlice": (("discovery.k8s.io/v1",), kubernetes.endpoint_slice),
        "ServiceEntry": (_NETWORKING, istio.service_entry),
        "WorkloadEntry": (_NETWORKING, istio.workload_entry),
        "AuthorizationPolicy": (_SECURITY, authorization.authorization_policy),
        "PeerAuthentication": (_SECURITY, partial(istio.peer_authentication, root_namespace=root_namespace)),
        **resources.readers(root_namespace),
    }
