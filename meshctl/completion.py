"""`meshctl completion SHELL`: prints the shell's part of click's completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Completion of commands and options, for bash, zsh or fish.

    \b
    source <(meshctl completion bash)
    meshctl completion zsh > "${fpath[1]}/_meshctl"
    meshctl completion fish > ~/.config/fish/completions/meshctl.fish
    """
    from meshctl.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "meshctl", "_MESHCTL_COMPLETE").source())
