"""`meshctl lab demo`: the main job on real traffic, from an empty machine back to an empty machine.

Owns the order of the parts and the comparison of before and after; the parts are in `demo_parts` and `demo_speed`.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

from lab import demo_failures, demo_parts, demo_speed, demo_waypoint, leftovers, needs, teardown
from lab.layout import Layout
from lab.report import Report, ms
from lab.watchdog import Guard
from mesh.errors import MeshError, OperatorError


def run(name: str, capture: str) -> int:
    """Exit code: 0 when every check held, 1 otherwise. Raises OperatorError: the machine lacks something."""
    needs.require_all()
    layout = Layout(name)
    if layout.dir.exists():
        raise OperatorError(f"lab {name} exists: `meshctl lab down --name {name}` first")
    signal.signal(signal.SIGTERM, _leave)
    before = leftovers.snapshot(layout)
    report = Report()
    guard = Guard(layout)
    try:
        _play(report, name, capture)
    finally:
        began = time.monotonic()
        teardown.down(layout)
        took = time.monotonic() - began
        guard.release()
    _compare(report, layout, before, took)
    return report.summary()


def _play(report: Report, name: str, capture: str) -> None:
    report.title("A mesh on two nodes")
    began = time.monotonic()
    try:
        stage = demo_parts.bring_up(report, name, capture)
    except MeshError as error:
        report.check("the mesh comes up", str(error), False, "two nodes, pods in the mesh")
        return
    report.check("up, from nothing", ms(time.monotonic() - began), True)
    for title, part in PARTS:
        report.attempt(title, lambda part=part: part(stage))  # type: ignore[misc]


PARTS = (
    ("Pods enter the mesh through the CNI chain", demo_parts.enrolment),
    ("HTTP from node 1 to node 2", demo_parts.requests),
    ("On the wire between the nodes", demo_parts.wire),
    ("A pod outside the mesh, then PeerAuthentication STRICT", demo_parts.plaintext),
    ("An AuthorizationPolicy, applied live", demo_parts.policy),
    ("Layer 7: three services of two versions behind a waypoint", demo_waypoint.waypoint),
    ("Without the control plane", demo_failures.without_controlplane),
    ("The agent killed and started again", demo_failures.agent_killed),
    ("Speed, beside direct TCP in the same run", demo_speed.speed),
)


def _compare(report: Report, layout: Layout, before: leftovers.Snapshot, took_s: float) -> None:
    report.title("Afterwards")
    after = leftovers.snapshot(layout)
    left = leftovers.difference(before, after)
    counted = ", ".join(before)
    report.check("taken down", ms(took_s), True)
    report.check("before and after differ in", f"{len(left)} of {counted}", not left, "nothing")
    for line in left[:20]:
        report.note(line)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)
