"""The first thing a newcomer runs must tell the truth and end well."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).parents[2]


def test_the_demo_shows_the_main_job_and_leaves_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "meshctl.main", "lab", "demo", "--name", "tdemo"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "pods enrolled",
        "ADD p50",
        "client address the server saw",
        "identities verified",
        "the marker occurs in the mesh's capture",
        "TCP ports opened between pods",
        "refused after STRICT was written",
        "an established connection was cut after",
        "reason in the access log",
        "throughput, 8 streams",
        "request latency, p99",
        "before and after differ in",
    ):
        assert line in done.stdout
    assert "FAIL" not in done.stdout
