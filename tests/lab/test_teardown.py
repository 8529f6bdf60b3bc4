"""Whatever kills a lab, and whenever: `down` finds all of it and takes it away."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lab import leftovers, netns, processes, teardown
from lab.cluster import Cluster
from lab.layout import ROOT, Layout
from lab.processes import wait_until
from mesh.errors import OperatorError

pytestmark = pytest.mark.lab

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def layout():
    layout = Layout(f"d{os.getpid()}")
    yield layout
    teardown.down(layout)


@pytest.fixture
def machine(layout):
    """What the machine looked like; `left()` says what differs now."""
    before = leftovers.snapshot(layout)

    def left():
        return leftovers.difference(before, leftovers.snapshot(layout))

    return left


def up_in_a_process_of_its_own(layout):
    command = [sys.executable, "-m", "meshctl.main", "lab", "up", "--name", layout.name]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
    )


STEPS = ("fabric", "configuration", "control plane", "pods through")


@pytest.mark.parametrize("step", STEPS)
def test_a_lab_killed_while_it_comes_up_is_taken_down_whole(layout, machine, step):
    rising = up_in_a_process_of_its_own(layout)
    while step not in (line := rising.stderr.readline()):
        assert line, "it ended before that step"
    rising.kill()
    rising.communicate()
    assert teardown.down(layout)
    assert machine() == []


def test_down_twice_and_down_of_nothing_are_fine(layout, machine):
    assert not teardown.down(layout)
    assert not teardown.down(layout)
    assert machine() == []


def test_processes_whose_files_and_namespaces_lost_their_names_are_found_by_their_mark(layout, machine):
    made = Cluster.up(layout.name, nodes=1, pods=1)
    for space in [name for name in netns.names() if layout.owns_netns(name)]:
        netns.delete(space)
    layout.processes.unlink()
    layout.state.unlink()
    assert made.daemons["ztunnel-node1"].pid in {p.pid for p in processes.all_of(layout)}
    assert teardown.down(layout)
    assert not any(process.alive for process in made.daemons.values())
    assert machine() == []


def test_stopped_processes_end_too(layout, machine):
    made = Cluster.up(layout.name, nodes=1, pods=1)
    made.daemons["ztunnel-node1"].signal(signal.SIGSTOP)
    assert teardown.down(layout)
    assert machine() == []


def test_a_lab_that_fails_to_come_up_leaves_nothing(layout, machine, monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "shouting")  # the daemons refuse it, when namespaces and files are there already
    with pytest.raises(OperatorError, match=r"ended while starting: .*LOG_LEVEL: 'shouting' is none of"):
        Cluster.up(layout.name)
    assert machine() == []


def test_one_labs_end_is_not_anothers(layout, mesh):
    alive = [process for process in mesh.daemons.values() if process.alive]
    Cluster.up(layout.name, nodes=1, pods=0)
    assert teardown.down(layout)
    assert alive
    assert all(process.alive for process in alive)
    assert ROOT.is_dir()


def test_a_process_whose_pid_was_reused_is_left_alone(layout):
    """The same pid with another start time is somebody else."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        processes.Process("old", stranger.pid, 1).signal(signal.SIGKILL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_killed_pytest_leaves_nothing(layout, machine):
    """What the session's fixture does, in a process that gets SIGKILL."""
    program = textwrap.dedent(f"""
        from lab.cluster import Cluster
        from lab.layout import Layout
        from lab.watchdog import Guard
        guard = Guard(Layout({layout.name!r}))
        Cluster.up({layout.name!r}, nodes=1, pods=1)
        print("up", flush=True)
        input()
    """)
    user = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert user.stdout.readline() == "up\n"
    user.kill()
    user.communicate()
    wait_until(
        "the watchdog has taken the lab down", lambda: not layout.dir.exists() and machine() == [], 90.0, step_s=0.1
    )
