"""Everything that sources say, judged and merged into the objects in force and the world made of them.

Owns last-good: an object goes only when its document goes. An invalid document keeps the object's last good state; a
document that cannot be told apart any more (a broken file, a misspelt kind or name) keeps the object that vanished with
its appearance. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from controlplane import conditions
from controlplane.documents import CLUSTER_SCOPED, Document, Key, Parsed
from controlplane.l7.model import L7
from controlplane.objects import Mesh, Object
from controlplane.translate import authorization, istio, kubernetes, resources, world
from controlplane.translate.inventory import Inventory
from controlplane.translate.l7 import Layer7
from controlplane.translate.notices import Notice
from controlplane.translate.policies import closed
from controlplane.validate import Field, Finding, Level, Problem
from mesh.model import World

CLOSED: Final = (
    "no earlier state of it is known: until it is corrected, it refuses every connection that it could govern"
)
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
class _Entry:
    """`object` None: the document is invalid; `closed` is then what may stand for it (`policies.closed`)."""

    document: Document
    object: Object | None
    closed: Object | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A file after judgement."""

    parsed: Parsed
    entries: tuple[_Entry, ...]
    findings: tuple[Finding, ...]
    claims: frozenset[Claim]


@dataclass(frozen=True, slots=True)
class _Force:
    """An object in force, where it came from, and the claim that keeps it there if its document is gone. `closed`: it
    stands for a document that never was valid."""

    file: str
    object: Object
    claim: Claim | None = None
    closed: bool = False


class Store:
    """`world`, `l7` and `findings` are replaced as wholes by `update`, which costs what the changed files hold.

    `_places`: object to the documents that claim to be it, in the order of files and lines; `_duplicates`: of
    those with several. `_closed`: objects that stand for an unreadable document. `_kept`: in force without a document.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._readers = _readers(mesh.root_namespace)
        self._reads: dict[str, _Read] = {}
        self._judged: dict[str, _Read] = {}
        self._places: dict[Key, list[_Entry]] = {}
        self._duplicates: dict[Key, list[Finding]] = {}
        self._closed: dict[Key, Finding] = {}
        self._kept: set[Key] = set()
        self._force: dict[Key, _Force] = {}
        self._builder = world.Builder(mesh)
        self._started = False
        self.findings: tuple[Finding, ...] = ()
        self.world: World = self._builder.build(())
        self.l7: L7 = self._builder.l7

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What became of documents of layer 7."""
        return self._builder.layer7.notices

    @property
    def inventory(self) -> Inventory:
        return self._builder.inventory

    @property
    def layer7(self) -> Layer7:
        """What `l7` was made of."""
        return self._builder.layer7

    def places(self) -> dict[Key, tuple[str, int]]:
        """File and line of each object that has a document."""
        found: dict[Key, tuple[str, int]] = {}
        for key, entries in dict(self._places).items():
            if listed := list(entries):
                chosen = _choose(listed, self._force.get(key)).document
                found[key] = chosen.file, chosen.line
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Accepted objects by kind."""
        return dict(sorted(Counter(key.kind for key, each in self._force.items() if not each.closed).items()))

    def conditions(self) -> list[dict[str, Any]]:
        """What became of each policy and route, in the form of Istio's status conditions."""
        told: dict[Key, list[Notice]] = defaultdict(list)
        for notice in self.notices:
            told[Key(notice.kind, notice.namespace, notice.name)].append(notice)
        return [
            conditions.of(entry.document, self._force.get(entry.document.key), told[entry.document.key])
            for read in self._reads.values()
            for entry in read.entries
            if entry.document.key.kind in conditions.KINDS
        ]

    def judge(self, parsed: Parsed) -> None:
        """Reads a file ahead of the `update` that will hand it over, and drops its tree."""
        self._judged[parsed.file] = self._read(parsed)

    def update(self, contents: Mapping[str, Parsed]) -> bool:
        """Takes over a source's whole state; whether the world is a new one. Reads each `Parsed` once."""
        reads = {file: self._read(contents[file]) for file in sorted(contents)}
        self._judged.clear()
        different = [file for file in reads.keys() | self._reads.keys() if reads.get(file) is not self._reads.get(file)]
        touched = self._place(reads, different)
        force = {key: self._in_force(key, reads) for key in touched}
        changed = any(_object(each) != _object(self._force.get(key)) for key, each in force.items())
        self._put_into_force(force)
        self._reads, self._started = reads, True
        self.findings = tuple(sorted(set(self._all_findings())))
        if changed:
            self.world = self._builder.build((each.object for each in self._force.values()), self.world.version + 1)
            self.l7 = self._builder.l7
        return changed

    def _all_findings(self) -> Iterator[Finding]:
        for read in self._reads.values():
            yield from read.findings
        for duplicates in self._duplicates.values():
            yield from duplicates
        yield from self._closed.values()

    def _place(self, reads: Mapping[str, _Read], files: Iterable[str]) -> set[Key]:
        """Brings the places of these files up to date; every object that may be affected, the kept ones included."""
        touched: set[Key] = set()
        for file in files:
            for entry in self._reads[file].entries if file in self._reads else ():
                key = entry.document.key
                left = [each for each in self._places.pop(key, ()) if each.document.file != file]
                if left:
                    self._places[key] = left
                touched.add(key)
            for entry in reads[file].entries if file in reads else ():
                entries = self._places.setdefault(entry.document.key, [])
                entries.append(entry)
                entries.sort(key=lambda each: (each.document.file, each.document.line))
                touched.add(entry.document.key)
        changed = set(files)
        return touched | {key for key in self._kept if self._force[key].file in changed}

    def _in_force(self, key: Key, reads: Mapping[str, _Read]) -> _Force | None:
        """By the document that counts; without any by a claim in the object's file, which may still mean it."""
        before = self._force.get(key)
        self._duplicates.pop(key, None)
        self._closed.pop(key, None)
        if entries := self._places.get(key):
            entry = _choose(entries, before)
            if len(entries) > 1:
                others = (each.document for each in entries if each is not entry)
                self._duplicates[key] = [_duplicate(other, entry.document) for other in others]
            chosen = self._choice(entry, before)
            if chosen and chosen.closed:
                self._closed[key] = entry.document.finding(Problem(entry.document.line, CLOSED, Level.WARNING))
            return chosen
        read = reads.get(before.file) if before else None
        claim = self._claim(key, before, read) if before and read else None
        return replace(before, claim=claim) if before and claim else None

    def _choice(self, entry: _Entry, before: _Force | None) -> _Force | None:
        """At the start nobody knows what was in force before: a policy that cannot be read may have been."""
        file = entry.document.file
        if entry.object:
            # The same object for the same value: what was made of it stays, too.
            same = before and before.object == entry.object
            return _Force(file, before.object if before and same else entry.object)
        if before and not before.closed:
            return _Force(file, before.object)
        if entry.closed and (before or not self._started):
            return _Force(file, entry.closed, closed=True)
        return None

    def _put_into_force(self, force: Mapping[Key, _Force | None]) -> None:
        """The order is that of kind, namespace and name: sorting what is nearly sorted takes one look at each."""
        arrived = False
        for key, each in force.items():
            self._kept.discard(key)
            if each is None:
                self._force.pop(key, None)
                continue
            arrived = arrived or key not in self._force
            self._force[key] = each
            if each.claim:
                self._kept.add(key)
        if arrived:
            self._force = {key: self._force[key] for key in sorted(self._force)}

    def _claim(self, key: Key, before: _Force, read: _Read) -> Claim | None:
        """A claim that was there while the object still had its document is about something else."""
        if before.claim in read.claims:
            return before.claim
        earlier = self._reads[before.file].claims
        fresh = (claim for claim in read.claims if claim.whole_file or claim not in earlier)
        return next((claim for claim in fresh if claim.covers(key, self._readers)), None)

    def _read(self, parsed: Parsed) -> _Read:
        for known in (self._judged.get(parsed.file), self._reads.get(parsed.file)):
            if known and known.parsed is parsed:
                return known
        entries: list[_Entry] = []
        findings = list(parsed.findings)
        claims = {Claim()} if parsed.broken else set()
        for document in parsed.documents:
            reader = self._reader(document)
            if reader is None:
                claims.add(_claim_of(document))
            else:
                entries.append(_judge(document, reader))
            findings.extend(map(document.finding, dict.fromkeys(document.root.problems)))
            document.root.release()
        return _Read(parsed, tuple(entries), tuple(findings), frozenset(claims))

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


def _object(force: _Force | None) -> Object | None:
    return force.object if force else None


def _choose(entries: list[_Entry], before: _Force | None) -> _Entry:
    for each in entries:
        if before and each.document.file == before.file:
            return each
    return next((each for each in entries if each.object), entries[0])


def _judge(document: Document, reader: Reader) -> _Entry:
    found = reader(document.root)
    errors = [problem.why for problem in document.root.problems if problem.level is Level.ERROR]
    return _Entry(document, None, closed(found, errors)) if errors else _Entry(document, found)


def _claim_of(document: Document) -> Claim:
    """A name that is no name says nothing."""
    kind, namespace, name = document.key
    wrong = {problem.why.partition(":")[0] for problem in document.root.problems}
    return Claim(
        kind="" if "kind" in wrong and not kind else kind,
        namespace="" if "metadata.namespace" in wrong or kind in CLUSTER_SCOPED else namespace,
        name="" if "metadata.name" in wrong else name,
    )


def _duplicate(document: Document, winner: Document) -> Finding:
    return document.finding(Problem(document.line, f"is a duplicate of {winner.file}:{winner.line}, which is in force"))


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
