"""Everything that sources say, judged and merged into the objects in force and the world made of them.

Owns last-good: an object goes only when its document goes. An invalid document keeps the object's last good state; a
document that cannot be told apart any more (a broken file, a misspelt kind or name) keeps the object that vanished with
its appearance. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from controlplane import conditions
from controlplane.documents import Document, Key, Parsed
from controlplane.judgement import Claim, Entry, Judge, Judged
from controlplane.l7.model import L7
from controlplane.objects import Mesh, Object
from controlplane.translate import world
from controlplane.translate.inventory import Inventory, Shelves
from controlplane.translate.l7 import Layer7
from controlplane.translate.notices import Notice
from controlplane.validate import Finding, Level, Problem
from mesh.model import World

CLOSED: Final = (
    "no earlier state of it is known: until it is corrected, it refuses every connection that it could govern"
)


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

    `_spoken`: files with findings. `_conditional`: files with what has conditions. `_places`: object to the documents
    that claim to be it, in the order of files and lines; `_duplicates`: of those with several. `_closed`: objects that
    stand for an unreadable document. `_kept`: in force without a document. `_shelves`: the objects of `_force`.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._judge = Judge(mesh.root_namespace)
        self._reads: dict[str, Judged] = {}
        self._judged: dict[str, Judged] = {}
        self._spoken: dict[str, tuple[Finding, ...]] = {}
        self._conditional: dict[str, Judged] = {}
        self._places: dict[Key, list[Entry]] = {}
        self._duplicates: dict[Key, list[Finding]] = {}
        self._closed: dict[Key, Finding] = {}
        self._kept: set[Key] = set()
        self._force: dict[Key, _Force] = {}
        self._shelves = Shelves()
        self._builder = world.Builder(mesh)
        self._started = False
        self.findings: tuple[Finding, ...] = ()
        self.world: World = self._builder.build(self._shelves)
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
        return dict(sorted(Counter(key.kind for key, each in list(self._force.items()) if not each.closed).items()))

    @property
    def size(self) -> int:
        """Objects in force."""
        return len(self._force)

    def conditions(self) -> list[dict[str, Any]]:
        """What became of each policy and route, in the form of Istio's status conditions."""
        told: dict[Key, list[Notice]] = defaultdict(list)
        for notice in self.notices:
            told[Key(notice.kind, notice.namespace, notice.name)].append(notice)
        return [
            self._conditions(entry.document, told[entry.document.key])
            for _, read in sorted(self._conditional.items())
            for entry in read.entries
            if entry.document.key.kind in conditions.KINDS and self.layer7.judges(*entry.document.key)
        ]

    def _conditions(self, document: Document, told: list[Notice]) -> dict[str, Any]:
        kind, namespace, name = document.key
        listeners = self.layer7.listeners(namespace, name) if kind == "Gateway" else ()
        return conditions.of(document, self._force.get(document.key), told, listeners)

    def judge(self, parsed: Parsed) -> None:
        """Reads a file ahead of the `update` that will hand it over, and drops its tree."""
        self.judged(self._judge.read(parsed))

    def judged(self, read: Judged) -> None:
        """As `judge`, when that has been done elsewhere."""
        self._judged[read.parsed.file] = read

    def update(self, contents: Mapping[str, Parsed], touched: Collection[str] | None = None) -> bool:
        """Takes over a source's whole state; whether the world is a new one. Reads each `Parsed` once. `touched`: where
        it may differ from the state before, which then is all that is looked at."""
        files = sorted(self._different(contents, touched))
        now = {file: self._read(contents[file]) for file in files if file in contents}
        self._judged.clear()
        before = {file: self._reads.pop(file) for file in files if file in self._reads}
        self._reads.update(now)
        keys = self._place(before, files)
        force = {key: self._in_force(key, before) for key in keys}
        changed = any(_object(each) != _object(self._force.get(key)) for key, each in force.items())
        self._put_into_force(force)
        self._started = True
        self._hear(files)
        if changed:
            self.world = self._builder.build(self._shelves, self.world.version + 1)
            self.l7 = self._builder.l7
        return changed

    def _different(self, contents: Mapping[str, Parsed], touched: Collection[str] | None) -> Iterator[str]:
        known = self._reads
        for file in contents if touched is None else touched:
            if (known[file].parsed if file in known else None) is not contents.get(file):
                yield file
        if touched is None:
            yield from known.keys() - contents.keys()

    def _read(self, parsed: Parsed) -> Judged:
        known = self._judged.get(parsed.file)
        return known if known and known.parsed is parsed else self._judge.read(parsed)

    def _hear(self, files: Iterable[str]) -> None:
        conditional = dict(self._conditional)  # others look at it meanwhile
        for file in files:
            self._spoken.pop(file, None)
            conditional.pop(file, None)
            read = self._reads.get(file)
            if read and read.findings:
                self._spoken[file] = read.findings
            if read and any(entry.document.key.kind in conditions.KINDS for entry in read.entries):
                conditional[file] = read
        self._conditional = conditional
        self.findings = tuple(sorted(set(self._all_findings())))

    def _all_findings(self) -> Iterator[Finding]:
        for said in self._spoken.values():
            yield from said
        for duplicates in self._duplicates.values():
            yield from duplicates
        yield from self._closed.values()

    def _place(self, before: Mapping[str, Judged], files: Iterable[str]) -> set[Key]:
        """Brings the places of these files up to date; every object that may be affected, the kept ones included."""
        touched: set[Key] = set()
        for file in files:
            for entry in before[file].entries if file in before else ():
                key = entry.document.key
                left = [each for each in self._places.pop(key, ()) if each.document.file != file]
                if left:
                    self._places[key] = left
                touched.add(key)
            for entry in self._reads[file].entries if file in self._reads else ():
                entries = self._places.setdefault(entry.document.key, [])
                entries.append(entry)
                entries.sort(key=lambda each: (each.document.file, each.document.line))
                touched.add(entry.document.key)
        changed = set(files)
        return touched | {key for key in self._kept if self._force[key].file in changed}

    def _in_force(self, key: Key, earlier: Mapping[str, Judged]) -> _Force | None:
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
        read = self._reads.get(before.file) if before else None
        claim = self._claim(key, before, earlier.get(before.file, read), read) if before and read else None
        return replace(before, claim=claim) if before and claim else None

    def _choice(self, entry: Entry, before: _Force | None) -> _Force | None:
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
        for key, each in force.items():
            self._kept.discard(key)
            if each is None:
                self._force.pop(key, None)
                continue
            self._force[key] = each
            if each.claim:
                self._kept.add(key)
        self._shelves.put({key: _object(each) for key, each in force.items()})

    def _claim(self, key: Key, before: _Force, earlier: Judged, read: Judged) -> Claim | None:
        """A claim that was there while the object still had its document is about something else."""
        if before.claim in read.claims:
            return before.claim
        fresh = (claim for claim in read.claims if claim.whole_file or claim not in earlier.claims)
        return next((claim for claim in fresh if claim.covers(key, self._judge.known_kinds)), None)


def _object(force: _Force | None) -> Object | None:
    return force.object if force else None


def _choose(entries: list[Entry], before: _Force | None) -> Entry:
    for each in entries:
        if before and each.document.file == before.file:
            return each
    return next((each for each in entries if each.object), entries[0])


def _duplicate(document: Document, winner: Document) -> Finding:
    return document.finding(Problem(document.line, f"is a duplicate of {winner.file}:{winner.line}, which is in force"))
