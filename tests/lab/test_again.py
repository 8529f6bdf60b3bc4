"""The second try of `make test`: in a world made anew, once, and never in silence."""

import subprocess
import sys

import pytest

from lab.needs import REPOSITORY

pytestmark = pytest.mark.lab

WORLD = """
import pytest
from pathlib import Path
MADE = Path(__file__).with_suffix(".made")
@pytest.fixture(scope="session")
def lab():
    MADE.open("a").write("+")
    yield len(MADE.read_text())
    assert len(MADE.read_text()) < {breaks}
@pytest.fixture(scope="module")
def taken(lab):
    return lab
"""
LAB = "@pytest.mark.lab\n"


def outcome(path, tests, *options, breaks=99):
    """pytest's status and words for a module of `tests` on a lab that counts how often it is made."""
    module = path / "test_it.py"
    module.write_text(WORLD.format(breaks=breaks) + tests)
    (path / "pytest.ini").write_text("[pytest]\nmarkers = lab\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.again", "-p", "no:cacheprovider", *options, str(module)]
    ran = subprocess.run(command, cwd=path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    return ran.returncode, ran.stdout


ONCE_BROKEN = LAB + "def test_shaky(taken):\n    assert taken > 1, 'the lab was broken'\n"
AFTER_IT = LAB + "def test_next(taken):\n    assert taken == 2\n"


def test_a_lab_test_that_failed_is_tried_again_in_a_new_lab_and_the_summary_says_why(tmp_path):
    status, said = outcome(tmp_path, ONCE_BROKEN + AFTER_IT, "--second-try")
    assert status == 0
    assert "the lab was broken" in said
    assert "first try of test_it.py::test_shaky, call" in said
    assert "2 passed, 1 rerun in" in said.splitlines()[-1]


def test_nothing_is_tried_again_unasked(tmp_path):
    status, said = outcome(tmp_path, ONCE_BROKEN)
    assert (status, "1 failed in" in said.splitlines()[-1]) == (1, True)


def test_what_needs_no_lab_gets_no_second_try(tmp_path):
    status, said = outcome(tmp_path, ONCE_BROKEN.removeprefix(LAB), "--second-try")
    assert (status, "1 failed in" in said.splitlines()[-1]) == (1, True)


def test_what_fails_twice_fails(tmp_path):
    status, said = outcome(tmp_path, LAB + "def test_broken(taken):\n    assert taken > 2\n", "--second-try")
    assert (status, "1 failed, 1 rerun in" in said.splitlines()[-1]) == (1, True)


def test_a_lab_that_could_not_be_made_is_made_again(tmp_path):
    tests = "@pytest.fixture\ndef whole(lab):\n    assert lab > 1\n" + LAB + "def test_it(whole):\n    pass\n"
    status, said = outcome(tmp_path, tests, "--second-try")
    assert (status, "1 passed, 1 rerun in" in said.splitlines()[-1]) == (0, True)


def test_a_lab_that_cannot_be_taken_down_is_told(tmp_path):
    tests = LAB + "def test_broken(taken):\n    assert taken > 2\n" + AFTER_IT
    status, said = outcome(tmp_path, tests, "--second-try", breaks=1)
    assert status == 1
    assert "of all fixtures after the first try" in said


def test_a_broken_product_is_not_tried_for_ever(tmp_path):
    tests = f"@pytest.mark.parametrize('n', range(12))\n{LAB}def test_broken(taken, n):\n    assert False\n"
    status, said = outcome(tmp_path, tests, "--second-try")
    assert (status, "12 failed, 10 rerun in" in said.splitlines()[-1]) == (1, True)
