"""The child that reads legacy tables, as its agent bears it: when it dies, keeps silent, or cannot be started."""

from pathlib import Path

import pytest

from nodeagent.redirect import iptables
from nodeagent.redirect.legacy import MOST_DEATHS, Reader, Unreadable
from nodeagent.redirect.plan import Options, make_plan

GOLDEN = Path(__file__).parent / "golden"
SOON_S, PATIENT_S = 0.02, 30.0
DIES = ("/bin/false",)
STANDS_STILL = ("/bin/sh", "-c", "kill -STOP $$")
IS_NOT_THERE = ("/nonexistent/python",)
IS_NOT_ASKED_AGAIN = f"it died {MOST_DEATHS} times and is not asked again"


def refusal(reader):
    with pytest.raises(Unreadable) as refused:
        reader.read(4)
    return str(refused.value)


@pytest.mark.parametrize(
    ("command", "deadline_s", "why"),
    [
        (DIES, PATIENT_S, ""),
        (STANDS_STILL, SOON_S, "no answer within 0.02 s"),
        (IS_NOT_THERE, PATIENT_S, "No such file or directory"),
    ],
)
def test_a_child_that_does_not_read_is_a_sentence_and_is_given_up_in_the_end(command, deadline_s, why):
    reader = Reader(command, deadline_s)
    said = [refusal(reader) for _ in range(MOST_DEATHS + 1)]
    assert all(each.startswith("the child that reads legacy tables: ") and why in each for each in said)
    assert [IS_NOT_ASKED_AGAIN in each for each in said] == [False] * (MOST_DEATHS - 1) + [True, True]
    assert reader.trouble == said[-1]


def test_a_reader_that_nobody_asked_has_no_child_to_end():
    Reader().close()


@pytest.mark.parametrize("version", [4, 6])
def test_what_python_iptables_listed_is_read_back_to_the_plan_that_was_written(version):
    """Recorded; tests/lab/test_legacy.py claims that a kernel's tables are listed like that."""
    plan = make_plan(Options())
    seen = iptables.read((GOLDEN / f"default.listing.ip{version}").read_text(), version)
    assert iptables.differences(plan, version, seen) == []
