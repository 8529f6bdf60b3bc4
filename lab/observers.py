"""A real Prometheus and a real Zipkin server in pods of a lab: what they understand is told well.

Both are programs that others wrote: Debian's `prometheus`, and Zipkin's server from Maven Central (`tools/setup.sh
observers`). They keep what they learn in the lab's directory and in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from lab import apps
from lab.cluster import Cluster, Pod
from lab.needs import REPOSITORY, search_path
from lab.processes import wait_until
from mesh.errors import OperatorError

ZIPKIN: Final = REPOSITORY / "build" / "zipkin-server.jar"
_READY_S = 240.0  # a Java server on a busy machine
_PROMETHEUS = "127.0.0.1:9090"


def start_prometheus(cluster: Cluster, pod: Pod, targets: list[str], rules: Sequence[Path] = ()) -> None:
    """Scrapes `targets` (HOST:PORT) at `/metrics` every second and evaluates `rules` as often, until the lab ends.
    Raises OperatorError."""
    _require("prometheus", "apt-get install prometheus")
    directory = cluster.layout.dir / "prometheus"
    directory.mkdir(mode=0o700, exist_ok=True)
    config = directory / "prometheus.yml"
    job = {"job_name": "mesh", "static_configs": [{"targets": targets}]}
    often = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    said = {"global": often, "scrape_configs": [job], "rule_files": [str(each) for each in rules]}
    config.write_text(yaml.safe_dump(said))
    options = {"config.file": config, "storage.tsdb.path": directory / "data", "web.listen-address": _PROMETHEUS}
    argv = ["prometheus", *(f"--{name}={value}" for name, value in options.items()), "--log.level=warn"]
    cluster.start_in(pod, "prometheus", argv)
    wait_until("Prometheus answers", lambda: cluster.http_status(pod.netns, f"{_PROMETHEUS}/-/ready") == 200, _READY_S)


def query(cluster: Cluster, pod: Pod, expression: str) -> list[dict[str, Any]]:
    """An instant vector of PromQL: `{"metric": labels, "value": [when, text]}` each."""
    url = f"http://{_PROMETHEUS}/api/v1/query"
    told = cluster.exec(pod, ["curl", "-sG", "-m", "5", "--data-urlencode", f"query={expression}", url]).stdout
    answer = json.loads(told)
    if answer["status"] != "success":
        raise OperatorError(f"Prometheus does not understand {expression!r}: {answer.get('error')}")
    return list(answer["data"]["result"])


def targets(cluster: Cluster, pod: Pod) -> dict[str, str]:
    """What is scraped: by instance what went wrong the last time, empty when nothing did."""
    told = cluster.exec(pod, ["curl", "-s", "-m", "5", f"http://{_PROMETHEUS}/api/v1/targets"]).stdout
    active = json.loads(told)["data"]["activeTargets"]
    return {
        each["labels"]["instance"]: each["lastError"] if each["health"] == "up" else each["health"] for each in active
    }


def start_zipkin(cluster: Cluster, pod: Pod) -> None:
    """Answers at the pod's port 8080, for the API and for spans. Raises OperatorError."""
    _require("java", "apt-get install default-jre-headless")
    if not ZIPKIN.exists():
        raise OperatorError("Zipkin's server is not there: tools/setup.sh observers")
    # One small heap, and no time for the best code: it lives for a minute.
    scratch = f"-Djava.io.tmpdir={cluster.layout.dir / 'tmp'}"  # Java does not ask TMPDIR
    java = ["java", scratch, "-Xmx192m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-jar", str(ZIPKIN)]
    cluster.start_in(pod, "zipkin", ["env", f"QUERY_PORT={apps.HTTP_PORT}", *java])
    url = f"127.0.0.1:{apps.HTTP_PORT}/health"
    wait_until("Zipkin answers", lambda: cluster.http_status(pod.netns, url) == 200, _READY_S, step_s=0.2)


def trace(cluster: Cluster, pod: Pod, trace_id: str) -> list[dict[str, Any]]:
    """The trace's spans (Zipkin's v2 API); none while it is not there."""
    url = f"http://127.0.0.1:{apps.HTTP_PORT}/api/v2/trace/{trace_id}"
    told = cluster.exec(pod, ["curl", "-sf", "-m", "5", url]).stdout
    return list(json.loads(told)) if told else []


def _require(program: str, remedy: str) -> None:
    if not shutil.which(program, path=search_path()):
        raise OperatorError(f"{program} is not installed: {remedy}")
