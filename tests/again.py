"""Gives a lab test that failed one second try, in a lab that is made anew, and says so.

A last belt (decision 43), only with --second-try as `make test` gives it: the summary tells how the first try failed,
and what needed a second one is a defect to be filed.
"""

import pytest
from _pytest.runner import runtestprotocol

MOST = 10
"""Second tries of one session; what breaks more tests than that is no accident."""


def pytest_addoption(parser):
    parser.addoption("--second-try", action="store_true", help="a failed lab test is tried once more, in a new lab")


def pytest_configure(config):
    if config.getoption("--second-try"):
        config.pluginmanager.register(SecondTry(), "second-try")


class SecondTry:
    def __init__(self):
        self.first_tries = []

    def pytest_runtest_protocol(self, item, nextitem):
        if not item.get_closest_marker("lab"):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = [report for report in reports if report.failed]
        if failed and len(self.first_tries) < MOST and not (item.session.shouldfail or item.session.shouldstop):
            self._note(item, failed)
            _tear_all_down(item)
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _note(self, item, failed):
        self.first_tries.append(failed)
        for report in failed:
            report.outcome = "rerun"
        item.ihook.pytest_runtest_logreport(report=failed[0])

    def pytest_report_teststatus(self, report):
        return ("rerun", "R", ("RERUN", {"yellow": True})) if report.outcome == "rerun" else None

    def pytest_terminal_summary(self, terminalreporter):
        if self.first_tries:
            terminalreporter.section("needed a second try: each is a defect to be filed", yellow=True, bold=True)
        for failed in self.first_tries:
            for report in failed:
                terminalreporter.section(f"first try of {report.nodeid}, {report.when}", sep="_")
                terminalreporter.write_line(report.longreprtext)
                for title, content in report.sections:
                    terminalreporter.section(title, sep="-")
                    terminalreporter.write_line(content)


def _tear_all_down(item):
    """Fixtures of every scope, the shared lab too: whatever one test broke in it ends here and not in the next ones."""
    end = pytest.CallInfo.from_call(
        lambda: item.session._setupstate.teardown_exact(None), "teardown", (pytest.exit.Exception, KeyboardInterrupt)
    )
    if end.excinfo:
        item.add_report_section("teardown", "of all fixtures after the first try", str(end.excinfo.value))
