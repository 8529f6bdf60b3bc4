"""From samples to verdicts: what counts, what is held, what an older file still says."""

import json
from dataclasses import asdict

import pytest

from bench import report, rounds, syscalls
from bench.cases import BARS, BY_NAME, CASES, Bar
from bench.measure import Sample


def sample(contender, round_=0, *, case="request-1B", disturbed=False, **figures):
    return Sample(case, contender, round_, disturbed=disturbed, **figures)


def verdict(samples, metric):
    found = [j for j in report.judged(report.grouped(samples)) if j.bar.metric == metric]
    return [(round(j.value, 2), j.verdict) for j in found]


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (70.0, (0.5, "held")),  # 20 added by us, 40 by Envoy
        (80.0, (0.75, "held")),  # exactly the bar
        (90.0, (1.0, "MISSED")),
    ],
)
def test_an_addition_is_measured_above_direct_and_against_envoys(ours, says):
    samples = [sample("direct", p50=50.0), sample("ours", p50=ours), sample("envoy", p50=90.0)]
    assert verdict(samples, "added_p50") == [says]


def test_a_ratio_is_taken_within_its_round():
    """The machine was twice as fast in the second round: that is no difference between contenders."""
    samples = [sample(name, n, cpu=cpu * (1 + n)) for n in (0, 1) for name, cpu in (("ours", 60.0), ("envoy", 100.0))]
    assert verdict(samples, "cpu") == [(0.6, "held")]


def test_disturbed_rounds_do_not_count_where_two_clean_ones_are_left():
    figures = [(0.6, False), (0.6, False), (0.9, True), (0.9, True), (0.9, True)]
    samples = [sample("ours", n, cpu=cpu, disturbed=dirty) for n, (cpu, dirty) in enumerate(figures)]
    samples += [sample("envoy", n, cpu=1.0) for n in range(len(figures))]
    assert verdict(samples, "cpu") == [(0.6, "held")]
    assert verdict(samples[1:], "cpu") == [(0.9, "MISSED")]
    dirty = [j.dirty for side in (samples, samples[1:]) for j in report.judged(report.grouped(side))]
    assert dirty == [False, True]


def test_a_missed_stretch_is_no_failure():
    samples = [
        sample("ours", case="passthrough-stream", rate=1.0),
        sample("direct", case="passthrough-stream", rate=9.0),
    ]
    assert verdict(samples, "rate") == [(0.11, "missed (stretch)")]
    assert report.missed(samples) == []


def test_every_capture_backend_is_held_to_the_bars():
    samples = [sample("ours", cpu=0.6), sample("ours-bpf", cpu=0.9), sample("envoy", cpu=1.0)]
    assert verdict(samples, "cpu") == [(0.6, "held"), (0.9, "MISSED")]


def test_rounds_agree_when_every_contender_does_and_was_not_disturbed():
    steady = [sample("ours", n, rate=rate) for n, rate in enumerate((100.0, 101.0, 99.0))]
    assert rounds.agree(steady)
    assert not rounds.agree([*steady, sample("ours", 3, rate=120.0)])
    assert not rounds.agree([*steady, sample("envoy", 0, rate=50.0)])
    assert not rounds.agree([sample("ours", n, rate=100.0, disturbed=True) for n in range(3)])


def test_results_survive_their_file():
    calls = [syscalls.Calls("request-1B", "ours", "request", ({"read": 2.0}, {"read": 2.5}))]
    results = report.Results([sample("ours", cpu_ends=(1.0, 2.0))], calls, [], ["peer: it ended"])
    assert report.from_json(report.to_json(results, {"commit": "abc"})) == results


def test_a_file_of_an_older_suite_is_read():
    old = {**asdict(sample("ours", rate=5.0)), "generator_cpu_s": 1.0}
    del old["beside"]
    assert report.from_json(json.dumps({"samples": [old]})).samples == [sample("ours", rate=5.0)]


def test_straces_table_gives_calls_by_name():
    summary = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 50.00    0.000200           1       200           sendto
 50.00    0.000200           1       150        50 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    0.000400           1       350        50 total
"""
    assert syscalls.parse(summary) == {"sendto": 200, "recvfrom": 150}


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: f"{bar.case}-{bar.metric}")
def test_a_bar_is_about_a_case_and_somebody_who_takes_part_in_it(bar: Bar):
    assert bar.case in BY_NAME
    assert bar.of is None or BY_NAME[bar.case].asks(bar.of)


def test_idle_cases_come_first_for_they_need_a_fresh_heap():
    modes = [case.mode for case in CASES]
    assert modes[: modes.count("hold")] == ["hold"] * modes.count("hold")
