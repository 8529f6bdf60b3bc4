"""The demo's parts on what may fail without anybody noticing."""

from __future__ import annotations

import time

from lab import daemons
from lab.apps import ECHO_PORT
from lab.demo_parts import Stage
from lab.documents import PodSpec
from lab.probes import Probe, Said
from lab.report import ms
from lab.runtime import CniRefused

TRY_AGAIN = 11
WHILE_S = 1.5


def without_controlplane(stage: Stage) -> None:
    """Stopped as a service manager stops it; what was open stays open and new connections are made."""
    report, cluster = stage.report, stage.cluster
    with (
        Probe(cluster, stage.client, "hold", stage.server.ip, ECHO_PORT, 0.01) as held,
        Probe(cluster, stage.client, "loop", stage.vip, ECHO_PORT, 0.01) as fresh,
    ):
        held.expect("open")
        fresh.expect("open")
        daemons.stop(cluster.daemons["controlplane"])
        report.equal("the control plane has ended", not cluster.daemons["controlplane"].alive, True)
        with Probe(cluster, stage.client, "loop", stage.server.ip, ECHO_PORT, 0.01) as other:
            other.expect("open")
            time.sleep(WHILE_S)
            # A pool is per destination: this one asks the other server too, with a tunnel of its own.
            _unharmed(stage, held.stop(), fresh.stop(), other.stop())
    cluster.start_controlplane()
    report.equal("and when it is back, requests go on", stage.answers(stage.client, stage.server), True)


def _unharmed(stage: Stage, held: Said, *loops: Said) -> None:
    fine, failed = sum(loop["fine"] for loop in loops), sum(loop["failed"] for loop in loops)
    why = next((loop["why"][0] for loop in loops if loop["why"]), "")
    stage.report.check(
        "new connections meanwhile",
        f"{fine} made, {failed} failed {why}".rstrip(),
        not failed and fine > 0,
        "no failure",
    )
    is_open = held["event"] == "stopped"  # by us, at the end
    seen = f"{'still open' if is_open else held['event']}, {held['count']} exchanges, longest {ms(held['worst_s'])}"
    stage.report.check("the connection held open meanwhile", seen, is_open, "not cut")


def agent_killed(stage: Stage) -> None:
    """SIGKILL: running pods notice nothing, a new pod does not start uncaptured, and starts once the agent is back."""
    report, cluster = stage.report, stage.cluster
    with (
        Probe(cluster, stage.client, "hold", stage.server.ip, ECHO_PORT, 0.01) as held,
        Probe(cluster, stage.client, "loop", stage.server.ip, ECHO_PORT, 0.01) as fresh,
    ):
        held.expect("open")
        fresh.expect("open")
        cluster.daemons["nodeagent-node1"].kill()
        _refused(stage)
        time.sleep(WHILE_S)
        cluster.start_agent("node1")
        late = cluster.add_pod(PodSpec("late", "node1"))
        report.check("the agent is back; ADD of a new pod", ms(sum(late.took_s.values())), True)
        stage.until("the new pod talks", lambda: stage.answers(late, stage.server))
        cluster.delete_pod("late")
        _unharmed(stage, held.stop(), fresh.stop())


def _refused(stage: Stage) -> None:
    try:
        stage.cluster.add_pod(PodSpec("early", "node1"))
    except CniRefused as refused:
        seen = f"refused by {refused.plugin}, code {refused.code}: {refused.msg}"
        stage.report.check("a pod while the agent is down", seen, refused.code == TRY_AGAIN, f"code {TRY_AGAIN}")
        return
    stage.report.check("a pod while the agent is down", "started", False, f"refused with code {TRY_AGAIN}")
