"""Writes dashboards/slo-rules.yaml: objectives per service, how fast their budgets burn, and alerts by several windows.

`python -m tools.slo`. The thresholds are those of the SRE workbook (chapter 5): a burn rate of 14.4 takes 2 % of a
30 days' budget in an hour, 6 takes 5 % in six hours, 1 takes 10 % in three days. Each alert wants a long window (it is
no blip) and a short one (it is going on still). `tests/lab/test_slo_rules.py` lets promtool judge it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

TARGET: Final = Path(__file__).parent.parent / "dashboards" / "slo-rules.yaml"
HEAD: Final = "# Written by tools/slo.py. Own objectives of a service: docs/telemetry.md.\n"
SHORTEST, BUDGET_WINDOW = "5m", "3d"
WINDOWS: Final = (SHORTEST, "30m", "1h", "2h", "6h", "1d", BUDGET_WINDOW)
LATENCY_MS: Final = 500  # a bucket of Envoy's histograms
Rule = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Burn:
    """`rate`: how many times faster than the objective allows for."""

    severity: str
    long: str
    short: str
    rate: float
    wait: str


BURNS: Final = (
    Burn("page", "1h", "5m", 14.4, "2m"),
    Burn("page", "6h", "30m", 6, "15m"),
    Burn("ticket", "1d", "2h", 3, "1h"),
    Burn("ticket", "3d", "6h", 1, "3h"),
)
_OF: Final = 'reporter="waypoint"'
_SERVICE: Final = "destination_service"
_BY: Final = f"sum by ({_SERVICE})"
# Of gRPC only what is the service's fault: unknown, deadline, unimplemented, internal, unavailable, data loss.
_GRPC: Final = "2|4|12|13|14|15"


@dataclass(frozen=True, slots=True)
class Objective:
    """`total`, `bad`: requests per second over five minutes, by service. `said` of those that were bad."""

    name: str
    share: float
    total: str
    bad: str
    said: str


def _rate(metric: str, labels: str = "") -> str:
    return f"rate({metric}{{{','.join(filter(None, (_OF, labels)))}}}[5m])"


_BAD: Final = " or ".join(
    _rate("istio_requests_total", each) for each in ('response_code=~"5.."', f'grpc_response_status=~"{_GRPC}"')
)
_IN_TIME: Final = _rate("istio_request_duration_milliseconds_bucket", f'le="{LATENCY_MS}"')
_TIMED: Final = f"{_BY} ({_rate('istio_request_duration_milliseconds_count')})"
OBJECTIVES: Final = (
    Objective("availability", 0.999, f"{_BY} ({_rate('istio_requests_total')})", f"{_BY} ({_BAD})", "failed"),
    Objective("latency", 0.99, _TIMED, f"{_TIMED} - {_BY} ({_IN_TIME})", f"took more than {LATENCY_MS} ms"),
)


def rules() -> str:
    groups = [group for each in OBJECTIVES for group in (_recorded(each), _alerts(each))]
    return HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=160)


def _recorded(of: Objective) -> Rule:
    """A ratio over a long window is a sum of what was recorded, not a rate over all series again."""
    name, total, bad = of.name, f"slo:requests:rate5m:{of.name}", f"slo:bad:rate5m:{of.name}"
    found = [
        _record(total, of.total),
        _record(bad, f"({of.bad}) or 0 * {total}"),
        _record(
            f"slo:objective:{name}", f"slo:own_objective:{name} or on (destination_service) (0 * {total} + {of.share})"
        ),
    ]
    for window in WINDOWS:
        of_all = (each if window == SHORTEST else f"sum_over_time({each}[{window}])" for each in (bad, total))
        ratio = "{} / ({} > 0)".format(*of_all)
        found.append(_record(f"slo:bad_ratio{window}:{name}", ratio))
        found.append(_record(f"slo:burn_rate{window}:{name}", _burn(f"slo:bad_ratio{window}:{name}", name)))
    left = f"1 - slo:burn_rate{BUDGET_WINDOW}:{name}"
    return {"name": f"nodemesh-slo-{name}", "rules": [*found, _record(f"slo:budget_left:{name}", left)]}


def _burn(ratio: str, name: str) -> str:
    return f"{ratio} / on ({_SERVICE}) (1 - slo:objective:{name})"


def _alerts(of: Objective) -> Rule:
    return {"name": f"nodemesh-slo-{of.name}-alerts", "rules": [_alert(of, burn) for burn in BURNS]}


def _alert(of: Objective, burn: Burn) -> Rule:
    windows = (f"slo:burn_rate{window}:{of.name} > {burn.rate:g}" for window in (burn.long, burn.short))
    service, times = "{{ $labels.destination_service }}", "{{ $value | humanize }}"
    told = f"{service}: requests {of.said}; over {burn.long} the budget goes {times} times too fast"
    return {
        "alert": f"MeshSlo{of.name.capitalize()}",
        "expr": " and ".join(windows),
        "for": burn.wait,
        "labels": {"severity": burn.severity, "window": burn.long},
        "annotations": {"summary": told},
    }


def _record(name: str, expr: str) -> Rule:
    return {"record": name, "expr": expr}


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(rules(), encoding="utf-8")
