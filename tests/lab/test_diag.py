"""The diagnostics on this very kernel: a connection of ours is told of, by whom and where to."""

import socket
import subprocess
import sys

import pytest

from lab.needs import REPOSITORY
from lab.processes import wait_until

pytestmark = pytest.mark.lab

SOON_S = 60.0


def test_a_connection_is_seen_with_its_program_and_the_time_it_took(tmp_path):
    log = tmp_path / "seen"
    with socket.create_server(("127.0.0.1", 0)) as server, log.open("w") as out:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "nodeagent.diag", "connects", "600"]
        watcher = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=REPOSITORY)
        try:

            def told():
                socket.create_connection(("127.0.0.1", port)).close()
                server.accept()[0].close()
                assert watcher.poll() is None, log.read_text()
                return f"-> 127.0.0.1:{port}" in log.read_text()

            wait_until("the connection is told of", told, SOON_S)
        finally:
            watcher.kill()
            watcher.wait()
    line = next(line for line in log.read_text().splitlines() if f":{port}" in line)
    assert line.startswith("connected")
    assert " µs " in line
