"""Every command shows how it is used; completion is what the shells read."""

import pytest
from click.testing import CliRunner

from meshctl.main import COMMANDS, cli


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"lab"}))
def test_help_has_an_example(command):
    text = CliRunner().invoke(cli, [command, "--help"]).output
    assert f"meshctl {command} " in text.replace("\n", " \n").split("Options:")[0].partition("\n")[2]


@pytest.mark.parametrize(
    ("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef meshctl"), ("fish", "complete")]
)
def test_completion_is_printed_for_every_shell(shell, sign):
    result = CliRunner().invoke(cli, ["completion", shell])
    assert sign in result.output
    assert "_MESHCTL_COMPLETE" in result.output


def test_commands_are_completed():
    result = CliRunner().invoke(
        cli,
        [],
        env={"_MESHCTL_COMPLETE": "bash_complete", "COMP_WORDS": "meshctl ex", "COMP_CWORD": "1"},
        prog_name="meshctl",
    )
    assert "plain,explain" in result.output
