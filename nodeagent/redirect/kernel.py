"""The system calls of capture, to be run on a thread inside the pod's namespace: nft, the policy rule, the route.

Blocking. Owns no decision: what goes in comes from `plan.py`, what is different is said by `verify.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mesh.errors import OperatorError
from nodeagent.redirect import nft
from nodeagent.redirect.backend import RedirectError
from nodeagent.redirect.plan import CONNECTION_MARK, MARK_MASK, ROUTE_TABLE, RULE_PREFERENCE, TABLE, Plan
from nodeagent.redirect.verify import Observed, read_table

NFT_DEADLINE_S: Final = 5.0
_LO: Final = 1
"""Interface index of lo in every network namespace."""
_RTN_LOCAL: Final = 2
_LISTEN: Final = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
_RT_SCOPE_HOST: Final = 254
_ANYWHERE: Final = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
_NAMES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
_ABSENT: Final = frozenset({errno.ENOENT, errno.ESRCH})
_PRESENT: Final = frozenset({errno.EEXIST})
_PATH: Final = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def find_nft() -> str:
    """Raises OperatorError: without it no pod can be captured."""
    found = shutil.which("nft", path=_PATH)
    if found is None:
        raise OperatorError("nft is not installed: apt-get install nftables")
    return found


def put(nft_path: str, plan: Plan) -> None:
    """Routes first: they change nothing until the rules mark packets. Idempotent. Raises RedirectError."""
    with _netlink() as ip:
        ip.link("set", index=_LO, state="up")  # REDIRECT delivers to lo
        for family in _families():
            _tolerating(_PRESENT, ip.route, "replace", **_route(family))
            _tolerating(_PRESENT, ip.rule, "add", **_rule(family))
    _nft(nft_path, "-f", "-", text=nft.render(plan))


def take_out(nft_path: str) -> None:
    """Nothing of ours is left. Rules first: without them no packet is marked. Idempotent. Raises RedirectError."""
    _nft(nft_path, "-f", "-", text=nft.REMOVAL)
    with _netlink() as ip:
        for family in _families():
            _tolerating(_ABSENT, ip.rule, "del", **_rule(family))
            _tolerating(_ABSENT, ip.route, "del", **_route(family))


def observe(nft_path: str) -> Observed:
    """What is there now. Raises RedirectError."""
    listing = _nft(nft_path, "-j", "list", "table", "inet", TABLE, missing_ok=True)
    rules, chains = read_table(listing)
    with _netlink() as ip:
        marked = {family for family in _families() if _has_rule(ip, family)}
        local = {family for family in _families() if _has_route(ip, family)}
    names = (frozenset(_NAMES[family] for family in found) for found in (_families(), marked, local))
    return Observed(rules, chains, *names)


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


def _families() -> list[socket.AddressFamily]:
    """IPv6 can be switched off in a namespace; its routes are refused then, and no packet of it exists."""
    try:
        off = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        off = True
    return [socket.AF_INET] if off else [socket.AF_INET, socket.AF_INET6]


def _route(family: socket.AddressFamily) -> dict[str, Any]:
    route = {"family": family, "dst": _ANYWHERE[family], "oif": _LO, "table": ROUTE_TABLE, "type": _RTN_LOCAL}
    return route | ({"scope": _RT_SCOPE_HOST} if family == socket.AF_INET else {})


def _rule(family: socket.AddressFamily) -> dict[str, Any]:
    marks = {"fwmark": CONNECTION_MARK, "fwmask": MARK_MASK}
    return {"family": family, "priority": RULE_PREFERENCE, "table": ROUTE_TABLE, **marks}


def _has_rule(ip: Any, family: socket.AddressFamily) -> bool:
    def ours(rule: Any) -> bool:
        seen = tuple(rule.get(key) for key in ("priority", "fwmark", "fwmask", "table"))
        return seen == (RULE_PREFERENCE, CONNECTION_MARK, MARK_MASK, ROUTE_TABLE)

    return any(ours(rule) for rule in ip.get_rules(family=family))


def _has_route(ip: Any, family: socket.AddressFamily) -> bool:
    routes = ip.get_routes(family=family, table=ROUTE_TABLE)
    return any(r["type"] == _RTN_LOCAL and r["dst_len"] == 0 and r.get("oif") == _LO for r in routes)


@contextmanager
def _netlink() -> Iterator[Any]:
    """A pyroute2 socket of this thread's namespace; must not leave the thread."""
    open_socket: Any = IPRoute
    try:
        with open_socket() as ip:
            yield ip
    except NetlinkError as error:
        raise RedirectError(f"the kernel refused a routing rule: {os.strerror(error.code)}") from None
    except OSError as error:
        raise RedirectError(f"netlink failed: {error.strerror}") from None


def _tolerating(expected: frozenset[int], call: Any, verb: str, **parameters: Any) -> None:
    """Each rule by itself: one that is there already must not keep the next one out."""
    try:
        call(verb, **parameters)
    except NetlinkError as error:
        if error.code not in expected:
            raise


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
