"""The way back of what the tunnel opened towards the application: marked packets are delivered within the namespace.

What every backend needs: one rule and one local route per family. Blocking, on a thread inside the pod's namespace.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.redirect import rtnetlink
from nodeagent.redirect.backend import RedirectError
from nodeagent.redirect.plan import CONNECTION_MARK, MARK_MASK, ROUTE_TABLE, RULE_PREFERENCE

_LO: Final = 1
"""Interface index of lo in every network namespace."""
_RTN_LOCAL: Final = 2
_RT_SCOPE_HOST: Final = 254
_FOREVER: Final = 0xFFFFFFFF
_NAMES: Final = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
_ABSENT: Final = frozenset({errno.ENOENT, errno.ESRCH})
_PRESENT: Final = frozenset({errno.EEXIST})
_KEEP_MARKS: Final = (
    Path("/proc/sys/net/ipv4/tcp_fwmark_accept"),
    Path("/proc/sys/net/ipv4/fwmark_reflect"),
    Path("/proc/sys/net/ipv6/fwmark_reflect"),
)
"""The first, of both families: an accepted connection's packets carry the mark of the packet that opened it. Others:
so do refusals (a reset has no socket), else nobody would hear at once that the application does not listen."""


def put(*, keep_connections: bool = False) -> None:
    """They change nothing until something marks packets. Idempotent. Raises RedirectError."""
    if keep_connections:
        _take_over_midway(False)
    _give([rtnetlink.link_up(_LO)], frozenset())  # what is captured is delivered to lo
    new = ((rtnetlink.NEW_ROUTE, rtnetlink.REPLACE), (rtnetlink.NEW_RULE, rtnetlink.ONLY_NEW))
    _give([order for family in _families() for order in _orders(family, *new)], _PRESENT)


def take_out(*, keep_connections: bool = False) -> None:
    """Idempotent. Raises RedirectError."""
    if keep_connections:
        _take_over_midway(True)
    gone = ((rtnetlink.DEL_ROUTE, 0), (rtnetlink.DEL_RULE, 0))
    _give([order for family in _families() for order in reversed(_orders(family, *gone))], _ABSENT)


def _take_over_midway(may: bool) -> None:
    """Whether conntrack takes a connection that it never saw begin for a new one (it does by default), to which the
    rules would then apply: a connection from before the rules would be torn."""
    with suppress(FileNotFoundError):  # a kernel without conntrack
        Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").write_text(str(int(may)), encoding="ascii")


def observe() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Families that the namespace has, those with our rule, those with our route. Raises RedirectError."""
    with _netlink() as ip:
        marked = {family for family in _families() if _has_rule(ip, family)}
        local = {family for family in _families() if _has_route(ip, family)}
    there, ruled, routed = (frozenset(_NAMES[family] for family in found) for found in (_families(), marked, local))
    return there, ruled, routed


def missing() -> list[str]:
    """One phrase per difference."""
    families, ruled, routed = observe()
    rules = [f"the {f} rule {RULE_PREFERENCE} for mark {CONNECTION_MARK:#x} is missing" for f in families - ruled]
    return sorted(rules) + sorted(f"the {f} route of table {ROUTE_TABLE} is missing" for f in families - routed)


def keep_marks(on: bool) -> None:
    """Raises RedirectError."""
    for path in _KEEP_MARKS:
        try:
            path.write_text("1" if on else "0", encoding="ascii")
        except FileNotFoundError:  # a kernel without IPv6
            continue
        except OSError as error:
            raise RedirectError(f"{path} cannot be written: {error.strerror}") from None


def keeps_marks() -> bool:
    return all(path.read_text(encoding="ascii").strip() == "1" for path in _KEEP_MARKS if path.exists())


def addresses() -> list[str]:
    """Of the namespace's interfaces but lo, in their order. Raises RedirectError."""
    with _refusals(), rtnetlink.Talk() as kernel:
        return [address for index, address in kernel.addresses() if index != _LO]


def keep_on_lo(addresses: Iterable[str]) -> None:
    """They are this namespace's: nobody outside can have a conversation from one. None is chosen as a source by itself:
    for IPv4 their scope says so, for IPv6 that they are deprecated. Idempotent. Raises RedirectError."""
    with _netlink() as ip:
        for address in _of_families(addresses) - _on_lo(ip):
            _tolerating(_PRESENT, ip.addr, "add", **_address(address))


def are_on_lo(addresses: Iterable[str]) -> bool:
    """Raises RedirectError."""
    with _netlink() as ip:
        return _of_families(addresses) <= _on_lo(ip)


def take_from_lo(addresses: Iterable[str]) -> None:
    """Idempotent. Raises RedirectError."""
    with _netlink() as ip:
        for address in _of_families(addresses) & _on_lo(ip):
            ip.addr("del", index=_LO, address=address, prefixlen=ip_address(address).max_prefixlen)


def _on_lo(ip: Any) -> set[str]:
    return {entry.get("address") for entry in ip.get_addr(index=_LO)}


def _of_families(addresses: Iterable[str]) -> set[str]:
    families = _families()
    return {a for a in addresses if (socket.AF_INET6 if ":" in a else socket.AF_INET) in families}


def _address(address: str) -> dict[str, Any]:
    place = {"index": _LO, "address": address, "prefixlen": ip_address(address).max_prefixlen}
    return place | ({"preferred_lft": 0, "valid_lft": _FOREVER} if ":" in address else {"scope": _RT_SCOPE_HOST})


def _families() -> list[socket.AddressFamily]:
    """IPv6 can be switched off in a namespace; its routes are refused then, and no packet of it exists."""
    try:
        off = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        off = True
    return [socket.AF_INET] if off else [socket.AF_INET, socket.AF_INET6]


def _orders(family: socket.AddressFamily, route: tuple[int, int], rule: tuple[int, int]) -> list[rtnetlink.Order]:
    """`route`, `rule`: what to do with each: type and flags. In the order in which they take effect."""
    scope = _RT_SCOPE_HOST if family == socket.AF_INET else 0
    marks = {"mark": CONNECTION_MARK, "mask": MARK_MASK}
    return [
        rtnetlink.route(*route, family, kind=_RTN_LOCAL, scope=scope, table=ROUTE_TABLE, device=_LO),
        rtnetlink.rule(*rule, family, priority=RULE_PREFERENCE, table=ROUTE_TABLE, **marks),
    ]


def _give(orders: Sequence[rtnetlink.Order], tolerated: frozenset[int]) -> None:
    """Each by itself: one that is there already must not keep the next one out. Raises RedirectError."""
    with _refusals(), rtnetlink.Talk() as kernel:
        for number in kernel.give(orders):
            if number and number not in tolerated:
                raise RedirectError(f"the kernel refused a routing rule: {os.strerror(number)}")


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
    with _refusals(), open_socket() as ip:
        yield ip


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise RedirectError(f"the kernel refused a routing rule: {os.strerror(error.code)}") from None
    except OSError as error:
        raise RedirectError(f"netlink failed: {error.strerror}") from None


def _tolerating(expected: frozenset[int], call: Any, verb: str, **parameters: Any) -> None:
    try:
        call(verb, **parameters)
    except NetlinkError as error:
        if error.code not in expected:
            raise
