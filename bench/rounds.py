"""The order of the samples: contenders interleaved, disturbed samples taken again, a case ended once its figures agree.

Owns the run's time: when a run falls behind its budget, cases get their least rounds and nothing is taken again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, Protocol

from bench import measure
from bench.cases import Case
from bench.measure import Load, Sample, machine_busy_s, take
from mesh.errors import OperatorError

RETAKES = 2
AGREED = 0.05
"""A case is done when every contender's figures lie within this share of their median on either side."""
SETTLE_STEP_S, SETTLE_STEPS = 0.1, 5
SETTLED = 0.08
"""Share of the machine that may be busy when a sample begins."""


@dataclass(slots=True)
class Plan:
    """How long a run may take, in seconds, and how many rounds a case gets."""

    seconds: float
    least: int
    most: int
    budget_s: float
    began: float = field(default_factory=time.monotonic)

    def in_time(self, done: int, cases: int) -> bool:
        """Whether the run is not behind after `done` of its `cases`."""
        return time.monotonic() - self.began <= self.budget_s * (done + 1) / max(cases, 1)


class Measured(Protocol):
    """Who is measured."""

    @property
    def name(self) -> str: ...


class Ground(Protocol):
    """Where."""

    def load_for(self, contender: Any, case: Case) -> Load: ...


Pair = tuple[Ground, Measured]


def run(
    pairs: Sequence[Pair], cases: Sequence[Case], plan: Plan, say: Callable[[str], None]
) -> tuple[list[Sample], list[str]]:
    """The samples, and what could not be measured."""
    samples: list[Sample] = []
    failed: list[str] = []
    for index, case in enumerate(cases):
        asked = [(arena, c) for arena, c in pairs if case.asks(c.name)]
        taken: list[Sample] = []
        try:
            for number in range(plan.most):
                in_time = plan.in_time(index, len(cases))
                if number >= plan.least and (not in_time or agree(taken)):
                    break
                taken += _round(asked, case, number, plan.seconds, RETAKES if in_time else 0)
        except OperatorError as error:
            failed.append(str(error))
            say(f"{case.name}: {error}")
            continue
        if taken:
            say(f"{case.name}: " + "  ".join(_brief(taken, c.name) for _, c in asked))
        samples += taken
    return samples, failed


def figure(sample: Sample) -> float:
    """The one by which rounds are compared: rate, else latency (paced loads), else memory."""
    return sample.rate or sample.p50 or sample.memory


def agree(samples: Sequence[Sample]) -> bool:
    """Whether each contender's rounds tell the same; a disturbed round tells nothing."""
    for contender in {s.contender for s in samples}:
        figures = [figure(s) for s in samples if s.contender == contender and not s.disturbed]
        if len(figures) < 2 or max(abs(f - median(figures)) for f in figures) > AGREED * median(figures):
            return False
    return True


def _brief(samples: Sequence[Sample], contender: str) -> str:
    own = [s for s in samples if s.contender == contender]
    dirty = sum(s.disturbed for s in own)
    return f"{contender} {median(figure(s) for s in own):.1f}" + (
        f" ({dirty} of {len(own)} disturbed)" if dirty else ""
    )


def _round(asked: Sequence[Pair], case: Case, number: int, seconds: float, retakes: int) -> list[Sample]:
    in_order = asked if number % 2 == 0 else asked[::-1]
    loads = {contender.name: arena.load_for(contender, case) for arena, contender in in_order}
    together = [loads] if case.turn_ms else [{name: load} for name, load in loads.items()]
    attempts = [partial(take, case, some, number, seconds) for some in together]
    return [sample for attempt in attempts for sample in _least_disturbed(attempt, retakes)]


def _least_disturbed(attempt: Callable[[], list[Sample]], retakes: int) -> list[Sample]:
    """Of up to 1 + `retakes` attempts."""
    attempts: list[list[Sample]] = []
    for _ in range(1 + retakes):
        _settle()
        attempts.append(attempt())
        if not attempts[-1][0].disturbed:
            break
    best = min(attempts, key=lambda samples: samples[0].others)
    return [replace(sample, retakes=len(attempts) - 1) for sample in best]


def _settle() -> None:
    """Waits until the machine is nearly idle; not for long, for somebody else's load does not end for our sake."""
    for _ in range(SETTLE_STEPS):
        before = machine_busy_s()
        time.sleep(SETTLE_STEP_S)
        if machine_busy_s() - before <= SETTLED * SETTLE_STEP_S * measure.CORES + measure.TICK_S:
            return
