"""The installer as a process: killed anywhere, and keeping watch while others write into its directories."""

import json
import random
import signal
import subprocess
import sys

import pytest

from lab.needs import REPOSITORY
from lab.processes import wait_until
from tests.cni.hosts import ODD, Host

pytestmark = pytest.mark.lab

SECONDS = 60.0
# It looks without being told only after much longer than that.
WATCH = "import cni.watch; cni.watch.LOOK_S = 3600.0; from cni.install import main; main()"


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_a_hundred_installations_that_are_killed_anywhere_leave_nothing_behind(host):
    """Each is killed somewhere in an installation, then somewhere in its end; at last one goes through."""
    host.write("10-net.conf", '{"type":"bridge",  "name":"net"}', 0o640)
    host.write("20-other.conflist", ODD)
    before, chance = host.everything(), random.Random(20)
    for _ in range(100):
        host.killed_while(host.install, chance.randrange(200))
        if chance.random() < 0.5:
            host.install()
        host.killed_while(host.uninstall, chance.randrange(150))
        host.uninstall()
        assert host.everything() == before


def ends_in_ours(path):
    try:
        return json.loads(path.read_text())["plugins"][-1]["type"] == "nodemesh-cni"
    except (OSError, ValueError):
        return False


def test_what_others_do_is_mended_within_seconds_and_a_stop_leaves_it_so(host):
    path, first, binary = host.net / "10-net.conflist", host.net / "05-new.conflist", host.bin / "nodemesh-cni"
    where = ["--binary", str(host.binary), "--bin-dir", str(host.bin), "--net-dir", str(host.net)]
    command = [sys.executable, "-c", WATCH, "watch", *where]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert "has no valid CNI configuration yet" in watching.stdout.readline()
            deeds = {
                "the first configuration": (path, lambda: host.write(path.name, ODD)),
                "the chain rewritten": (path, lambda: host.write(path.name, ODD.replace("net", "other"))),
                "a file that sorts before": (first, lambda: host.write(first.name, ODD)),
            }
            for what, (where, deed) in deeds.items():
                deed()
                took = wait_until(what, lambda where=where: ends_in_ours(where), SECONDS)
                print(f"{what}: mended after {took * 1000:.0f} ms")
            binary.unlink()
            wait_until("the binary is back", binary.is_file, SECONDS)
        finally:
            watching.send_signal(signal.SIGTERM)
        assert watching.wait(SECONDS) == 0
    assert ends_in_ours(path)
