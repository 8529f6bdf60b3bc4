"""From samples to tables: medians with spread, ratios taken within rounds, bars held or missed."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from typing import Any

from bench.cases import BARS, CASES, Bar, Case
from bench.measure import Sample

Values = dict[tuple[str, str], list[Sample]]


def grouped(samples: Iterable[Sample]) -> Values:
    values: Values = {}
    for sample in samples:
        values.setdefault((sample.case, sample.contender), []).append(sample)
    return values


def _metric(sample: Sample, metric: str, direct: Sample | None) -> float:
    if metric == "added_p50":
        return sample.p50 - (direct.p50 if direct else 0.0)
    return float(getattr(sample, metric))


def value_of(bar: Bar, values: Values) -> float | None:
    """The median over the rounds of our figure, or of its ratio to the contender's figure of the same round."""
    found = []
    direct = {s.round: s for s in values.get((bar.case, "direct"), [])}
    other = {s.round: s for s in values.get((bar.case, bar.of or ""), [])}
    for ours in values.get((bar.case, "ours"), []):
        figure = _metric(ours, bar.metric, direct.get(ours.round))
        if bar.of is None:
            found.append(figure)
        elif ours.round in other:
            against = _metric(other[ours.round], bar.metric, direct.get(ours.round))
            if against > 0:
                found.append(figure / against)
    return median(found) if found else None


def missed(samples: Iterable[Sample]) -> list[tuple[Bar, float]]:
    values = grouped(samples)
    judged = [(bar, value_of(bar, values)) for bar in BARS]
    return [(bar, value) for bar, value in judged if value is not None and not bar.holds(value)]


def _spread(figures: list[float], digits: int) -> str:
    if not any(figures):
        return "–"
    return f"{median(figures):.{digits}f} ({min(figures):.{digits}f}–{max(figures):.{digits}f})"


def _row(case: Case, contender: str, samples: list[Sample]) -> list[str]:
    rate_digits = 1 if case.unit == "GiB" else 0
    return [
        case.name,
        contender,
        _spread([s.rate for s in samples], rate_digits),
        _spread([s.p50 for s in samples], 1),
        _spread([s.p99 for s in samples], 1),
        _spread([s.cpu for s in samples], 2 if case.unit == "GiB" else 1),
        _spread([s.memory for s in samples], 2),
        str(sum(s.errors for s in samples) or "–"),
    ]


HEAD = ["case", "contender", "Gbit/s or 1/s", "p50 µs", "p99 µs", "CPU of both ends", "KiB/conn and end", "errors"]
"""CPU: seconds per GiB, or microseconds per operation."""


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def markdown(samples: list[Sample]) -> str:
    values = grouped(samples)
    order = sorted({s.contender for s in samples}, key=["direct", "ours", "envoy", "peer"].index)
    rows = [_row(c, name, values[c.name, name]) for c in CASES for name in order if (c.name, name) in values]
    return table(HEAD, rows) + "\n\n" + bars(values)


def bars(values: Values) -> str:
    rows = []
    for bar in BARS:
        if (value := value_of(bar, values)) is not None:
            rows.append([bar.case, str(bar), f"{value:.2f}", "held" if bar.holds(value) else "MISSED"])
    return table(["case", "bar", "measured", ""], rows)


def to_json(samples: list[Sample], about: dict[str, Any]) -> str:
    return json.dumps({**about, "samples": [asdict(s) for s in samples]}, indent=1)


def from_json(text: str) -> list[Sample]:
    return [Sample(**{**raw, "cpu_ends": tuple(raw["cpu_ends"])}) for raw in json.loads(text)["samples"]]


def comparison(before: list[Sample], after: list[Sample]) -> str:
    """The ratio after/before of every median that both files have."""
    old, new = grouped(before), grouped(after)
    rows = []
    for case in CASES:
        for key in sorted(k for k in old.keys() & new.keys() if k[0] == case.name):
            cells = []
            for metric in ("rate", "p50", "cpu", "memory"):
                a, b = (median(getattr(s, metric) for s in side[key]) for side in (old, new))
                cells.append(f"{b / a:.2f}" if a else "–")
            rows.append([*key, *cells])
    return table(["case", "contender", "rate", "p50", "CPU", "memory"], rows)
