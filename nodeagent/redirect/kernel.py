"""The `nft` program, run on a thread inside the pod's namespace. Blocking. Owns no decision."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from mesh.errors import OperatorError
from nodeagent.redirect import nft, routes
from nodeagent.redirect.backend import RedirectError
from nodeagent.redirect.plan import TABLE, Plan
from nodeagent.redirect.verify import Observed, Ways, read_table

NFT_DEADLINE_S: Final = 15.0
"""Of a program that takes a few milliseconds: on a starved node its turn may be seconds away."""
PATH: Final = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def find_nft() -> str:
    """Raises OperatorError."""
    found = shutil.which("nft", path=PATH)
    if found is None:
        raise OperatorError("nft is not installed: apt-get install nftables")
    return found


def put(nft_path: str, plan: Plan, *, keep_connections: bool = False) -> None:
    """Routes first: they change nothing until the rules mark packets. Idempotent. Raises RedirectError."""
    routes.put(keep_connections=keep_connections)
    load_first(nft_path, nft.render_first(plan), nft.render(plan))


def take_out(nft_path: str, *, keep_connections: bool = False) -> None:
    """Nothing of ours is left. Rules first: without them no packet is marked. Idempotent. Raises RedirectError."""
    _nft(nft_path, "-f", "-", text=nft.REMOVAL)
    routes.take_out(keep_connections=keep_connections)


def observe(nft_path: str) -> Observed:
    """What is there now. Raises RedirectError."""
    listing = _nft(nft_path, "-j", "list", "table", "inet", TABLE, missing_ok=True)
    rules, chains = read_table(listing)
    return Observed(rules, chains, Ways(*routes.observe()))


def load(nft_path: str, text: str) -> None:
    """All of it or nothing. Raises RedirectError."""
    _nft(nft_path, "-f", "-", text=text)


def load_first(nft_path: str, first: str, text: str) -> None:
    """As `load`, in a namespace where it is probably the first time. `first` creates what `text` would replace: who
    deletes rules waits until no processor reads them any more, longer than for all else. Raises RedirectError."""
    try:
        load(nft_path, first)
    except RedirectError:
        load(nft_path, text)


def listing(nft_path: str, family: str, table: str) -> str:
    """nft's JSON; "" when there is no such table, or no such family. Raises RedirectError."""
    return _nft(nft_path, "-j", "list", "table", family, table, missing_ok=True)


def _nft(path: str, *arguments: str, text: str = "", missing_ok: bool = False) -> str:
    try:
        done = subprocess.run(
            [path, *arguments], input=text, capture_output=True, text=True, timeout=NFT_DEADLINE_S, env={"PATH": PATH}
        )
    except subprocess.TimeoutExpired:
        raise RedirectError(f"nft did not finish within {NFT_DEADLINE_S:.0f} s") from None
    except OSError as error:
        raise RedirectError(f"{path} cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().splitlines() or ["no reason given"]
    if missing_ok and "No such file or directory" in said[0]:
        return ""
    raise RedirectError(f"nft refused: {said[0]}")
