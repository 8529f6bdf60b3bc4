"""`meshctl`: finds the command, turns errors into one sentence and an exit code.

Exit codes: 0 fine, 1 a finding or failed check, 2 wrong use or configuration, 3 nobody answers, 4 not permitted.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final, NoReturn

import click

from mesh.errors import MeshError, OperatorError, PeerError

# Name -> (module, help): a module is imported when its command runs, so that `--help` and completion stay quick.
COMMANDS: Final = {
    "all": ("meshctl.tunnel", "Workloads, services, policies, certificates and connections."),
    "analyze": ("meshctl.analyze", "What is wrong between documents, by Istio's message codes."),
    "bugreport": ("meshctl.bugreport", "Everything for somebody who helps, in one archive, without secrets."),
    "certificates": ("meshctl.tunnel", "Identities, certificates, validity."),
    "check": ("meshctl.check", "Is everything on this node as it should be?"),
    "completion": ("meshctl.completion", "Completion for bash, zsh or fish."),
    "connections": ("meshctl.tunnel", "Open connections of this node's pods."),
    "enroll": ("meshctl.enroll", "A control group of this host joins the mesh."),
    "explain": ("meshctl.explain", "What would become of a connection, and who decides."),
    "graph": ("meshctl.graph", "Who calls what, how often, with which result."),
    "lab": ("lab.main", "A cluster in one kernel: up, status, exec, demo, down."),
    "log": ("meshctl.logs", "Log levels of a running tunnel."),
    "policies": ("meshctl.tunnel", "Layer-4 policies in force."),
    "profile": ("meshctl.profile", "Where a daemon's processor time goes, and who holds its memory."),
    "services": ("meshctl.tunnel", "Services, virtual addresses, endpoints."),
    "status": ("meshctl.status", "The daemons here: who runs, what is wrong."),
    "top": ("meshctl.top", "Who talks to whom, how much, now."),
    "validate": ("meshctl.analyze", "Is each document of some files valid?"),
    "withdraw": ("meshctl.enroll", "A control group of this host leaves the mesh."),
    "waypoint": ("meshctl.waypoint", "Waypoints: apply, list, status, delete, generate."),
    "workloads": ("meshctl.tunnel", "Workloads and how they are reached."),
}


class LazyGroup(click.Group):
    """Commands by name only, until one is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = {"all": "everything"}.get(cmd_name, cmd_name)
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """nodemesh's command line: what a node's mesh knows and does, and a lab to try it in."""


def exit_code(error: MeshError) -> int:
    """An error may carry its own code in `exit_code`; else whose fault it is decides."""
    if isinstance(error, PeerError):
        return 3
    return int(getattr(error, "exit_code", 2 if isinstance(error, OperatorError) else 1))


def main() -> NoReturn:
    try:
        cli.main(prog_name="meshctl", standalone_mode=False)
    except MeshError as error:
        print(f"meshctl: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
