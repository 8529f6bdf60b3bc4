"""`meshctl log`: a running tunnel's log levels, shown and changed."""

from __future__ import annotations

from urllib.parse import quote

import click

from meshctl import columns
from meshctl.admin import Place, ask
from meshctl.tunnel import place_options


@click.command()
@place_options
@click.option("--level", default="", metavar="[SCOPE:]LEVEL,…", help="error, warn, info, debug or trace.")
@click.option("-r", "--reset", is_flag=True, help="Back to what was configured.")
def log(place: Place, output: str, level: str, reset: bool) -> None:
    """A tunnel's log levels; of all nodes of a lab without --node. Without options only shows them.

    Scopes: access (a line per connection), core, and the shell's components, for instance xds and identity.

    \b
    meshctl log
    meshctl log --level debug
    meshctl log --level access:debug,xds:warn
    meshctl log --reset
    """
    if level and reset:
        raise click.UsageError("--level and --reset exclude each other")
    target = "/logging?level=reset" if reset else f"/logging?level={quote(level)}" if level else "/logging"
    sockets = {owner: path / "ztunnel.sock" for owner, path in place.run_dirs().items()}
    if len(sockets) > 1:
        sockets = {owner: path for owner, path in sockets.items() if path.exists()}
    said = {owner: ask(path, target, "POST").decode().strip() for owner, path in sockets.items()}
    found = [{"node": owner, "level": text.rpartition(" ")[2]} for owner, text in said.items()]
    rows = [list(each.values()) for each in found]
    if output == "short":
        click.echo(columns.table(("NODE", "LEVEL"), rows))
    else:
        click.echo(columns.document("LogLevelList", found, output))
