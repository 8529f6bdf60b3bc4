"""The system calls of capture, to be run on a thread inside the pod's namespace: nft, and who listens.

Blocking. Owns no decision: what goes in comes from `plan.py`, what is different is said by `verify.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError
from nodeagent.redirect import nft, routes
from nodeagent.redirect.backend import RedirectError
from nodeagent.redirect.plan import TABLE, Plan
from nodeagent.redirect.verify import Observed, read_table

NFT_DEADLINE_S: Final = 5.0
_LISTEN: Final = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
_PATH: Final = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def find_nft() -> str:
    """Raises OperatorError: without it no pod can be captured."""
    found = shutil.which("nft", path=_PATH)
    if found is None:
        raise OperatorError("nft is not installed: apt-get install nftables")
    return found


def put(nft_path: str, plan: Plan) -> None:
    """Routes first: they change nothing until the rules mark packets. Idempotent. Raises RedirectError."""
    routes.put()
    _nft(nft_path, "-f", "-", text=nft.render(plan))


def take_out(nft_path: str) -> None:
    """Nothing of ours is left. Rules first: without them no packet is marked. Idempotent. Raises RedirectError."""
    _nft(nft_path, "-f", "-", text=nft.REMOVAL)
    routes.take_out()


def observe(nft_path: str) -> Observed:
    """What is there now. Raises RedirectError."""
    listing = _nft(nft_path, "-j", "list", "table", "inet", TABLE, missing_ok=True)
    rules, chains = read_table(listing)
    return Observed(rules, chains, *routes.observe())


def load(nft_path: str, text: str) -> None:
    """All of it or nothing. Raises RedirectError."""
    _nft(nft_path, "-f", "-", text=text)


def listing(nft_path: str, family: str, table: str) -> str:
    """nft's JSON; "" when there is no such table, or no such family. Raises RedirectError."""
    return _nft(nft_path, "-j", "list", "table", family, table, missing_ok=True)


def devices() -> list[str]:
    """Of this thread's namespace, without lo, in order."""
    rows = Path("/proc/thread-self/net/dev").read_text(encoding="utf-8").splitlines()[2:]
    return sorted({name.strip() for name, _, _ in (row.partition(":") for row in rows)} - {"lo"})


def listening() -> list[int]:
    """TCP ports that somebody listens on in this thread's namespace, in order."""
    found: set[int] = set()
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            rows = Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()[1:]
            columns = (row.split() for row in rows)
            found |= {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in columns if state == _LISTEN}
    return sorted(found)


def _nft(path: str, *arguments: str, text: str = "", missing_ok: bool = False) -> str:
    try:
        done = subprocess.run(
            [path, *arguments], input=text, capture_output=True, text=True, timeout=NFT_DEADLINE_S, env={"PATH": _PATH}
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
