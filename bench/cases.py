"""What is measured, and the bars: ratios within one run, never absolute times."""

from dataclasses import dataclass
from typing import Literal

GIB = float(1 << 30)

Unit = Literal["GiB", "request", "connection"]


@dataclass(frozen=True, slots=True)
class Case:
    """One load: `args` go to bench/load.c between the target and the seconds; `unit` is what CPU is divided by."""

    name: str
    mode: Literal["send", "recv", "rr", "crr", "hold"]
    args: tuple[int, ...]
    unit: Unit
    same_node: bool = False
    behind_bulk: bool = False
    quick: bool = False


CASES = (
    Case("stream-1", "send", (1,), "GiB", quick=True),
    Case("stream-8", "send", (8,), "GiB"),
    Case("stream-8-back", "recv", (8,), "GiB"),
    Case("request-1B", "rr", (1, 1), "request", quick=True),
    Case("request-1KiB", "rr", (1024, 1), "request"),
    Case("request-1B-x32", "rr", (1, 32), "request", quick=True),
    Case("request-1KiB-x32", "rr", (1024, 32), "request"),
    Case("connect-1", "crr", (1,), "connection", quick=True),
    Case("connect-32", "crr", (32,), "connection"),
    Case("connect-256", "crr", (256,), "connection"),
    Case("request-behind-bulk", "rr", (1, 1), "request", behind_bulk=True),
    Case("same-node-stream", "send", (1,), "GiB", same_node=True),
    Case("same-node-request", "rr", (1, 1), "request", same_node=True),
    Case("idle-1000", "hold", (1000,), "connection"),
    Case("idle-5000", "hold", (5000,), "connection"),
)
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True, slots=True)
class Bar:
    """`ours.metric` against `limit`: as a ratio to the same metric of `of`, or as it is when `of` is None."""

    case: str
    metric: Literal["rate", "cpu", "p50", "added_p50", "memory"]
    of: Literal["envoy", "direct"] | None
    at_least: bool
    limit: float

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        what = {"rate": "", "cpu": "CPU ", "p50": "p50 ", "added_p50": "added p50 ", "memory": "memory "}[self.metric]
        unit = f"× {self.of}" if self.of else {"memory": " KiB", "added_p50": " µs"}.get(self.metric, "")
        return f"{what}{'≥' if self.at_least else '≤'} {self.limit:g}{unit}"


BARS = (
    Bar("stream-1", "rate", "envoy", True, 1.7),
    Bar("stream-1", "cpu", "envoy", False, 0.55),
    Bar("stream-8", "rate", "envoy", True, 1.7),
    Bar("stream-8", "cpu", "envoy", False, 0.55),
    Bar("request-1B", "added_p50", "envoy", False, 0.75),
    Bar("request-1B", "cpu", "envoy", False, 0.75),
    Bar("request-1B-x32", "rate", "envoy", True, 1.12),
    Bar("request-1B-x32", "cpu", "envoy", False, 0.7),
    Bar("connect-1", "rate", "envoy", True, 2.0),
    Bar("connect-1", "cpu", "envoy", False, 0.45),
    Bar("connect-32", "rate", "envoy", True, 1.15),
    Bar("connect-256", "rate", "envoy", True, 1.6),
    Bar("connect-256", "cpu", "envoy", False, 0.6),
    Bar("request-behind-bulk", "p50", "envoy", False, 0.35),
    Bar("same-node-stream", "rate", "direct", True, 0.6),
    Bar("same-node-request", "added_p50", None, False, 25),
    Bar("idle-1000", "memory", None, False, 6),
    Bar("idle-5000", "memory", None, False, 6),
)
