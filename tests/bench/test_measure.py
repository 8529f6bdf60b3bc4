"""What is read of processes while they go on living."""

import subprocess
import sys

import pytest

from bench.measure import process_cpu_s

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
