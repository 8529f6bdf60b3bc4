"""What is measured, and the bars: ratios within one run, never absolute times."""

from dataclasses import dataclass
from typing import Literal

GIB = float(1 << 30)

STREAM_TURN_MS = 40
"""Long enough that the queues of our tunnel are a small part of what moves in a turn. Envoy's are not: with eight
streams it hands on what it has for longer than a turn, in somebody else's."""

Mode = Literal["send", "recv", "rr", "orr", "crr", "con", "cold", "hold", "world"]
Unit = Literal["GiB", "request", "connection"]
Place = Literal["far", "near", "outside", "here"]
"""Where the server is: on the other node, on the client's own, on the other node and outside the mesh, or in the
client's pod (`hooks.py`)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load: `args` go to bench/load.c between the target and the seconds; `unit` is what CPU is divided by.

    `longer`: how many times the run's seconds a sample takes. `turn_ms`: all contenders at the same time, so many
    milliseconds each in turn: for figures so close together that a machine which is slower for a second decides.
    """

    name: str
    mode: Mode
    args: tuple[int, ...]
    unit: Unit
    place: Place = "far"
    behind_bulk: bool = False
    quick: bool = True
    longer: float = 1.0
    turn_ms: int = 0
    counted: bool = False
    """Its system calls are counted too, after the timed rounds."""

    def asks(self, contender: str) -> bool:
        """Envoy and the peer are two ends on two nodes; direct holds no memory of a tunnel."""
        if (self.place == "here") != (contender.split("-")[0] == "hook"):
            return False
        if self.mode == "world":
            return is_ours(contender)
        if contender == "direct":
            return self.mode != "hold"
        return self.place in ("far", "here") or is_ours(contender)


def is_ours(contender: str) -> bool:
    """`ours`, or `ours-BACKEND` for another capture backend."""
    return contender.split("-")[0] == "ours"


CASES = (
    # First, while nobody's heap has grown by other loads.
    Case("idle-1000", "hold", (1000,), "connection"),
    Case("idle-5000", "hold", (5000,), "connection", quick=False),
    Case("stream-1", "send", (1,), "GiB", counted=True),
    Case("stream-8", "send", (8,), "GiB"),
    Case("stream-8-back", "recv", (8,), "GiB", quick=False),
    Case("request-1B", "rr", (1, 1), "request", counted=True),
    Case("request-1KiB", "rr", (1024, 1), "request", quick=False),
    Case("request-1B-x32", "rr", (1, 32), "request"),
    Case("request-1KiB-x32", "rr", (1024, 32), "request", quick=False),
    Case("request-open-1000", "orr", (1024, 16, 1000), "request", longer=1.5, quick=False),
    Case("connect-1", "crr", (1,), "connection", counted=True),
    Case("connect-32", "crr", (32,), "connection"),
    Case("connect-256", "crr", (256,), "connection"),
    Case("cold-handshake", "cold", (15008,), "connection", quick=False),
    Case("request-behind-bulk", "rr", (1, 1), "request", behind_bulk=True),
    Case("same-node-stream", "send", (1,), "GiB", place="near", turn_ms=STREAM_TURN_MS),
    Case("same-node-request", "rr", (1, 1), "request", place="near"),
    Case("same-node-connect", "crr", (1,), "connection", place="near", quick=False),
    Case("passthrough-stream", "send", (1,), "GiB", place="outside", quick=False, turn_ms=STREAM_TURN_MS),
    Case("capture-connect", "con", (), "connection", place="here", turn_ms=5),
    Case("capture-request-64B", "rr", (64, 1), "request", place="here", turn_ms=5),
    Case("capture-stream", "send", (1,), "GiB", place="here", turn_ms=5),
    Case("workloads-100k", "world", (100_000, 10_000), "request", quick=False),
)
BY_NAME = {case.name: case for case in CASES}

Metric = Literal["rate", "cpu", "p50", "added_p50", "memory", "resident", "of_idle"]
_SHOWN: dict[Metric, tuple[str, str]] = {
    "rate": ("", ""),
    "cpu": ("CPU ", ""),
    "p50": ("p50 ", " µs"),
    "added_p50": ("added p50 ", " µs"),
    "memory": ("memory ", " KiB"),
    "resident": ("idle RSS ", " MiB"),
    "of_idle": ("p99 ", "× idle"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """`ours.metric` against `limit`: as a ratio to the same metric of `of`, or as it is when `of` is None.

    `stretch`: shown, but a miss is no failure. `who`: whose it is instead of ours; of `hook-none-again` it says how far
    apart the harness's own noise puts two that are the same.
    """

    case: str
    metric: Metric
    of: Literal["envoy", "direct", "hook-none"] | None
    at_least: bool
    limit: float
    stretch: bool = False
    who: str = "ours"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        what, unit = _SHOWN[self.metric]
        against = f"× {(self.of or '').replace('hook-none', 'direct')}" if self.of else unit
        return f"{what}{'≥' if self.at_least else '≤'} {self.limit:g}{against}"


_CAPTURE: tuple[tuple[str, Metric, bool, float], ...] = (
    ("capture-connect", "p50", False, 1.2),
    ("capture-request-64B", "p50", False, 1.05),
    ("capture-stream", "rate", True, 0.95),
)

BARS = (
    Bar("idle-1000", "memory", None, False, 6),
    Bar("idle-1000", "resident", None, False, 60),
    Bar("idle-5000", "memory", None, False, 6),
    Bar("stream-1", "rate", "envoy", True, 1.7),
    Bar("stream-1", "cpu", "envoy", False, 0.55),
    Bar("stream-8", "rate", "envoy", True, 1.7),
    Bar("stream-8", "cpu", "envoy", False, 0.55),
    Bar("request-1B", "added_p50", "envoy", False, 0.75),
    Bar("request-1B", "cpu", "envoy", False, 0.75),
    Bar("request-1B-x32", "rate", "envoy", True, 1.12),
    Bar("request-1B-x32", "cpu", "envoy", False, 0.7),
    Bar("request-open-1000", "added_p50", "envoy", False, 0.75, stretch=True),
    Bar("request-open-1000", "cpu", "envoy", False, 0.75, stretch=True),
    Bar("connect-1", "rate", "envoy", True, 2.0),
    Bar("connect-1", "cpu", "envoy", False, 0.45),
    Bar("connect-32", "rate", "envoy", True, 1.15),
    Bar("connect-256", "rate", "envoy", True, 1.6),
    Bar("connect-256", "cpu", "envoy", False, 0.6),
    Bar("cold-handshake", "added_p50", "envoy", False, 1.0, stretch=True),
    Bar("cold-handshake", "cpu", "envoy", False, 1.0, stretch=True),
    Bar("request-behind-bulk", "p50", "envoy", False, 0.35),
    Bar("same-node-stream", "rate", "direct", True, 0.6),
    Bar("same-node-request", "added_p50", None, False, 25),
    Bar("passthrough-stream", "rate", "direct", True, 0.65, stretch=True),
    *(Bar(case, metric, "hook-none", at_least, limit, who="hook-bpf") for case, metric, at_least, limit in _CAPTURE),
    *(
        Bar(case, metric, "hook-none", at_least, limit, stretch=True, who="hook-none-again")
        for case, metric, at_least, limit in _CAPTURE
    ),
    Bar("workloads-100k", "of_idle", None, False, 2),
)
