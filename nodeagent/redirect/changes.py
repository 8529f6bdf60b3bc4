"""Whether somebody may have touched a namespace's rules since the last look, for two system calls.

The kernel announces every change of nftables (which iptables over nf_tables is, too), of routes, routing rules and
devices to who listens inside the namespace. What the legacy interface of iptables changes, it does not announce.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from nodeagent.redirect.netns import run_on_thread

_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_GROUPS: Final = {
    _NETLINK_NETFILTER: (7,),  # NFNLGRP_NFTABLES
    socket.NETLINK_ROUTE: (1, 7, 8, 11, 19),  # RTNLGRP_LINK, IPV4_ROUTE, IPV4_RULE, IPV6_ROUTE, IPV6_RULE
}
_BUFFER: Final = 65536


class Changes:
    """Two sockets in the namespace, until `close`."""

    def __init__(self, namespace: int) -> None:
        """`namespace`: its descriptor; not taken over. Raises OSError."""
        self._sockets = run_on_thread(namespace, lambda: [_listen(kind, groups) for kind, groups in _GROUPS.items()])

    def happened(self) -> bool:
        """Since the last time that this was asked. Cost: a microsecond when nothing did."""
        return any([_drain(listener) for listener in self._sockets])

    def close(self) -> None:
        for listener in self._sockets:
            listener.close()


def _listen(kind: int, groups: tuple[int, ...]) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, kind)
    try:
        listener.bind((0, 0))
        for group in groups:
            listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        listener.close()
        raise
    return listener


def _drain(listener: socket.socket) -> bool:
    heard = False
    while True:
        try:
            listener.recv(_BUFFER)
        except BlockingIOError:
            return heard
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more came than the buffer holds: something happened
                raise
        heard = True
