"""From samples to tables: medians with spread, ratios taken within rounds, bars held or missed."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

from bench import instructions, syscalls
from bench.cases import BARS, CASES, Bar, Case, is_ours
from bench.instructions import Count
from bench.measure import Sample
from bench.syscalls import Calls

Values = dict[tuple[str, str], list[Sample]]


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run found."""

    samples: list[Sample]
    calls: list[Calls]
    counts: list[Count]
    failed: list[str] = field(default_factory=list)
    """What could not be measured, and why."""


LEAST_CLEAN = 2
"""Disturbed rounds do not count where at least so many others are left."""


def grouped(samples: Iterable[Sample]) -> Values:
    values: Values = {}
    for sample in samples:
        values.setdefault((sample.case, sample.contender), []).append(sample)
    return values


def counted(samples: Sequence[Sample]) -> Sequence[Sample]:
    clean = [s for s in samples if not s.disturbed]
    return clean if len(clean) >= LEAST_CLEAN else samples


def contenders(values: Values) -> list[str]:
    first = ["direct", "ours", "envoy", "peer", "hook"]
    return sorted({name for _, name in values}, key=lambda n: (first.index(n.split("-")[0]), n))


# Bars ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A bar and what `contender` (ours, with one capture backend) has against it in each round that counts."""

    bar: Bar
    contender: str
    figures: tuple[float, ...]
    dirty: bool
    """Disturbed rounds had to count, for want of clean ones."""

    @property
    def value(self) -> float:
        return median(self.figures)

    @property
    def verdict(self) -> str:
        if self.bar.holds(self.value):
            return "held"
        return "missed (stretch)" if self.bar.stretch else "MISSED"


def judged(values: Values) -> list[Judged]:
    """Every bar for which there are figures."""
    names = contenders(values)
    found = [_judge(bar, name, values) for bar in BARS for name in names if _is_about(bar, name)]
    return [one for one in found if one.figures]


def _is_about(bar: Bar, contender: str) -> bool:
    return contender == bar.who or (bar.who == "ours" and is_ours(contender))


def missed(samples: Iterable[Sample]) -> list[Judged]:
    return [one for one in judged(grouped(samples)) if one.verdict == "MISSED"]


def _judge(bar: Bar, contender: str, values: Values) -> Judged:
    """Our figure, or its ratio to the other's of the same round. A round counts as clean when all in it are."""
    needed = [contender, *([bar.of] if bar.of else []), *(["direct"] if bar.metric == "added_p50" else [])]
    by_round = [{s.round: s for s in values.get((bar.case, name), [])} for name in needed]
    rounds = [[side[number] for side in by_round] for number in by_round[0] if all(number in side for side in by_round)]
    clean = [together for together in rounds if not any(s.disturbed for s in together)]
    counting = clean if len(clean) >= LEAST_CLEAN else rounds
    figures = tuple(figure for together in counting if (figure := _figure(bar, together)) is not None)
    return Judged(bar, contender, figures, dirty=len(clean) < min(LEAST_CLEAN, len(rounds)))


def _figure(bar: Bar, together: Sequence[Sample]) -> float | None:
    ours, direct = together[0], together[-1]

    def metric(sample: Sample) -> float:
        return sample.p50 - direct.p50 if bar.metric == "added_p50" else float(getattr(sample, bar.metric))

    if bar.of is None:
        return metric(ours)
    against = metric(together[1])
    return metric(ours) / against if against > 0 else None


# Tables -------------------------------------------------------------------------------------------------------------

HEAD = [
    "case",
    "contender",
    "Gbit/s or 1/s",
    "p50 µs",
    "p99 µs",
    "CPU of both ends",
    "generator's CPU",
    "KiB/conn and end",
    "notes",
]
"""CPU: seconds per GiB, or microseconds per operation."""


def markdown(results: Results) -> str:
    values = grouped(results.samples)
    names = contenders(values)
    rows = [_row(c, name, values[c.name, name]) for c in CASES for name in names if (c.name, name) in values]
    tables = (
        (HEAD, rows),
        (syscalls.HEAD, syscalls.rows(results.calls)),
        (instructions.HEAD, instructions.rows(results.counts)),
        (BARS_HEAD, bars(values)),
    )
    shown = [table(head, body) for head, body in tables if body]
    return "\n\n".join([*shown, *(f"NOT MEASURED: {why}" for why in results.failed)])


BARS_HEAD = ["case", "contender", "bar", "measured (least–most)", ""]


def bars(values: Values) -> list[list[str]]:
    return [
        [j.bar.case, j.contender, str(j.bar), spread(j.figures, 2), j.verdict + " on DIRTY rounds" * j.dirty]
        for j in judged(values)
    ]


def _row(case: Case, contender: str, samples: Sequence[Sample]) -> list[str]:
    used = counted(samples)
    rate_digits, cpu_digits = (1, 2) if case.unit == "GiB" else (0, 1)
    return [
        case.name,
        contender,
        spread([s.rate for s in used], rate_digits),
        spread([s.p50 for s in used], 1),
        spread([s.p99 for s in used], 0),
        spread([s.cpu for s in used], cpu_digits),
        spread([s.generator for s in used], cpu_digits),
        spread([s.memory for s in used], 2),
        _notes(samples),
    ]


def _notes(samples: Sequence[Sample]) -> str:
    dirty, again = sum(s.disturbed for s in samples), sum(s.retakes for s in samples)
    bulk, resident, errors = ([getattr(s, f) for s in samples] for f in ("beside", "resident", "errors"))
    notes = [
        f"bulk {spread(bulk, 1)} Gbit/s" if any(bulk) else "",
        f"{median(resident):.0f} MiB idle" if any(resident) else "",
        *(f"p99 {s.idle_p99:.0f} idle, loaded in {s.loaded_s:.1f} s" for s in samples if s.loaded_s),
        f"{sum(errors)} errors" if any(errors) else "",
        f"DIRTY {dirty} of {len(samples)}" if dirty else "",
        f"{again} taken again" if again else "",
    ]
    return ", ".join(filter(None, notes))


def spread(figures: Sequence[float], digits: int) -> str:
    if not any(figures):
        return "–"
    middle = f"{median(figures):.{digits}f}"
    return middle if len(figures) == 1 else f"{middle} ({min(figures):.{digits}f}–{max(figures):.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


# Files --------------------------------------------------------------------------------------------------------------


def to_json(results: Results, about: dict[str, Any]) -> str:
    return json.dumps({**about, **asdict(results)}, indent=1)


def from_json(text: str) -> Results:
    """Also a file of an older suite: figures that it did not have are 0, those that we no longer have are left out."""
    raw = json.loads(text)
    known = {f.name for f in fields(Sample)}
    samples = [{k: v for k, v in one.items() if k in known} for one in raw["samples"]]
    return Results(
        [Sample(**{**one, "cpu_ends": tuple(one["cpu_ends"])}) for one in samples],
        [Calls(**{**one, "ends": tuple(one["ends"])}) for one in raw.get("calls", [])],
        [Count(**one) for one in raw.get("counts", [])],
        raw.get("failed", []),
    )


def comparison(before: Results, after: Results) -> str:
    """The ratio after/before of everything that both files have, then every bar before and after."""
    old, new = grouped(before.samples), grouped(after.samples)
    tables = (
        (["case", "contender", "rate", "p50", "CPU", "generator", "memory"], _medians_compared(old, new)),
        (["system calls per unit", "contender", "both ends"], _calls_compared(before.calls, after.calls)),
        (["instructions per call", "ratio"], _counts_compared(before.counts, after.counts)),
        (["case", "contender", "bar", "before", "after"], _bars_compared(old, new)),
    )
    return "\n\n".join(table(head, body) for head, body in tables if body)


def _medians_compared(old: Values, new: Values) -> list[list[str]]:
    rows = []
    for case in CASES:
        for key in sorted(k for k in old.keys() & new.keys() if k[0] == case.name):
            cells = []
            for metric in ("rate", "p50", "cpu", "generator", "memory"):
                a, b = (median(getattr(s, metric) for s in counted(side[key])) for side in (old, new))
                cells.append(_ratio(a, b))
            rows.append([*key, *cells])
    return rows


def _calls_compared(old: list[Calls], new: list[Calls]) -> list[list[str]]:
    was = {(c.case, c.contender): c.total for c in old}
    return [[*key, _ratio(was[key], c.total)] for c in new if (key := (c.case, c.contender)) in was]


def _counts_compared(old: list[Count], new: list[Count]) -> list[list[str]]:
    was = {c.name: c.instructions for c in old}
    return [[c.name, _ratio(was[c.name], c.instructions, 3)] for c in new if c.name in was]


def _ratio(before: float, after: float, digits: int = 2) -> str:
    return f"{after / before:.{digits}f}" if before else "–"


def _bars_compared(old: Values, new: Values) -> list[list[str]]:
    was = {(j.bar, j.contender): j for j in judged(old)}
    both = [(was[j.bar, j.contender], j) for j in judged(new) if (j.bar, j.contender) in was]
    return [
        [b.bar.case, b.contender, str(b.bar), f"{a.value:.2f} {a.verdict}", f"{b.value:.2f} {b.verdict}"]
        for a, b in both
    ]
