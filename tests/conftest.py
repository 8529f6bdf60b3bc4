"""Temporary files of the tests go with pytest, however it ends: a killed run leaves no directory in /tmp."""

import subprocess
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from tests.corpus import TOLD

pytest_plugins = ["tests.again"]

# How fast a busy machine is decides nothing, and a run that was green is green again.
# --hypothesis-profile=explore: other examples each time.
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("explore", **_ALWAYS)
settings.register_profile("same", derandomize=True, **_ALWAYS)
settings.load_profile("same")

_WHEN_PYTEST_IS_GONE = 'read -r _; rm -rf -- "$0"'


def pytest_addoption(parser):
    ways = ["auto", "bpf", "nft", "iptables"]
    # Not --capture, which is pytest's own.
    parser.addoption("--mesh-capture", choices=ways, default="auto", help="how the lab's agents capture pods")
    parser.addoption("--mesh-direct", action="store_true", help="pods of one node may talk without the tunnel between")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Before pytest chooses a place itself. Who wants to look at the files afterwards gives --basetemp."""
    if config.option.basetemp is not None or config.option.collectonly:
        return
    place = config.option.basetemp = tempfile.mkdtemp(prefix="mesh-tests-")
    # Our end of its stdin closes with this process; a session of its own, so that Ctrl-C does not reach it.
    keeper = subprocess.Popen(["sh", "-c", _WHEN_PYTEST_IS_GONE, place], stdin=subprocess.PIPE, start_new_session=True)
    config.add_cleanup(lambda: keeper.communicate())


def pytest_terminal_summary(terminalreporter):
    for name, (ran, passed) in sorted(TOLD.items()):
        terminalreporter.write_line(f"{name}: {passed} of {ran} cases passed")
