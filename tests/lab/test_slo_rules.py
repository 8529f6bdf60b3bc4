"""The rules of dashboards/slo-rules.yaml, judged by promtool: who is told, of what, and when it is over."""

import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.lab

RULES = Path(__file__).parent.parent.parent / "dashboards" / "slo-rules.yaml"
WEB = 'reporter="waypoint",destination_service="web"'
PER_MINUTE = 6000
FIRING = 'count by (alertname, severity, window) (ALERTS{alertstate="firing"})'
HOUR, DAY = 60, 24 * 60


def requests(labels, *phases):
    """A counter of a request kind: (per minute, minutes) one after the other."""
    return series(f"istio_requests_total{{{WEB},{labels}}}", *phases)


def series(name, *phases):
    values, now = [], 0
    for each, minutes in phases:
        values.append(f"{now}+{each}x{minutes}")
        now += each * (minutes + 1)
    return {"series": name, "values": " ".join(values)}


def failing(*phases):
    """Shares of requests that are answered 503, each for so many minutes."""
    good = [(round(PER_MINUTE * (1 - share)), minutes) for share, minutes in phases]
    bad = [(round(PER_MINUTE * share), minutes) for share, minutes in phases]
    return [requests('response_code="200"', *good), requests('response_code="503"', *bad)]


def slow(share, minutes):
    """This share takes more than half a second."""
    name, quick = "istio_request_duration_milliseconds", round(PER_MINUTE * (1 - share))
    return [
        series(f'{name}_bucket{{{WEB},le="500"}}', (quick, minutes)),
        series(f'{name}_bucket{{{WEB},le="+Inf"}}', (PER_MINUTE, minutes)),
        series(f"{name}_count{{{WEB}}}", (PER_MINUTE, minutes)),
    ]


def judge(directory, told, minute, expr, samples):
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m" if minute < DAY else "5m",  # promtool takes its time
        "tests": [
            {
                "interval": "1m",
                "input_series": told,
                "promql_expr_test": [{"expr": expr, "eval_time": f"{minute}m", "exp_samples": samples}],
            }
        ],
    }
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    run = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def fires(directory, told, minute, *alerts, name="MeshSloAvailability"):
    samples = [
        {"labels": f'{{alertname="{name}",severity="{severity}",window="{window}"}}', "value": 1}
        for severity, window in alerts
    ]
    judge(directory, told, minute, FIRING, samples)


PAGE_1H, PAGE_6H, TICKET_1D, TICKET_3D = ("page", "1h"), ("page", "6h"), ("ticket", "1d"), ("ticket", "3d")


@pytest.mark.parametrize(
    ("share", "minutes", "alerts"),
    [
        (0.0, DAY, []),
        (0.0005, 3 * DAY, []),  # half of what is allowed
        (0.002, 3 * DAY + 4 * HOUR, [TICKET_3D]),
        (0.005, DAY + 2 * HOUR, [TICKET_1D, TICKET_3D]),
        (0.01, 6 * HOUR, [PAGE_6H, TICKET_1D, TICKET_3D]),
        (0.1, 20, [PAGE_1H, PAGE_6H]),
        (1.0, 10, [PAGE_1H]),
    ],
)
def test_the_faster_a_budget_burns_the_louder_and_sooner_it_is_told(tmp_path, share, minutes, alerts):
    fires(tmp_path, failing((share, minutes)), minutes, *alerts)


def test_a_page_ends_soon_after_the_outage(tmp_path):
    outage = failing((0.0, 2 * HOUR), (0.2, 30), (0.0, 2 * HOUR))
    fires(tmp_path, outage, 2 * HOUR + 29, PAGE_1H, PAGE_6H)
    judge(tmp_path, outage, 2 * HOUR + 40, 'count(ALERTS{alertstate="firing",window="1h"})', [])


def test_a_blip_pages_nobody(tmp_path):
    fires(tmp_path, failing((0.0, 2 * HOUR), (0.2, 1), (0.0, HOUR)), 2 * HOUR + 5)


def test_a_service_may_have_an_objective_of_its_own(tmp_path):
    own = series('slo:own_objective:availability{destination_service="web"}', (0, HOUR))
    own["values"] = f"0.9x{HOUR}"
    fires(tmp_path, [*failing((0.1, HOUR)), own], HOUR)


def test_a_request_that_fails_in_two_ways_is_one_failed_request(tmp_path):
    told = [
        requests('response_code="200",grpc_response_status="0"', (50, HOUR)),
        requests('response_code="200",grpc_response_status="5"', (30, HOUR)),  # NOT_FOUND is an answer
        requests('response_code="200",grpc_response_status="14"', (10, HOUR)),
        requests('response_code="503",grpc_response_status="14"', (10, HOUR)),
    ]
    answer = {"labels": '{destination_service="web"}', "value": 20}
    judge(tmp_path, told, HOUR, "round(100 * slo:bad_ratio5m:availability)", [answer])


def test_who_is_slow_is_told_of_too(tmp_path):
    fires(tmp_path, slow(0.005, DAY), DAY)
    fires(tmp_path, slow(0.2, 30), 30, PAGE_1H, PAGE_6H, name="MeshSloLatency")


def test_without_requests_nothing_is_told(tmp_path):
    silent = failing((0.5, 5), (0.0, 0))
    for each in silent:
        each["values"] += f" {each['values'].rsplit('+', 1)[0].split()[-1]}x{2 * DAY}"
    judge(tmp_path, silent, DAY, "slo:bad_ratio5m:availability", [])
