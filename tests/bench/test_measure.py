"""What is read of processes while they go on living."""

import subprocess
import sys

import pytest

from bench.cases import BY_NAME
from bench.measure import Ends, Load, process_cpu_s

RESTLESS = """
import os, threading, time
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    threading.Thread(target=time.sleep, args=(0.0005,)).start()
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture
def restless():
    """A process whose threads and children come and go."""
    with subprocess.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_threads_and_children_may_end_while_their_time_is_read(restless):
    readings = [process_cpu_s(restless.pid) for _ in range(300)]
    assert readings[-1] > 0


def test_generators_that_take_turns_are_told_which_turn_is_theirs():
    started = []
    load = Load(started.append, "192.0.2.1 80", Ends(), ())
    for number in range(2):
        load.start(BY_NAME["capture-request-64B"], 1.5, number, 2)
    load.start(BY_NAME["request-1B"], 1.5)
    assert [" ".join(arguments) for arguments in started] == [
        "turns 0 2 5 rr 192.0.2.1 80 64 1 1.5",
        "turns 1 2 5 rr 192.0.2.1 80 64 1 1.5",
        "rr 192.0.2.1 80 1 1 1.5",
    ]
