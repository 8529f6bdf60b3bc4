"""A child process that lists legacy tables as `iptables-save` does, by python-iptables. Its agent is `legacy.py`.

It holds python-iptables loaded and forks for every reading. Reads only, and takes no lock: the kernel hands a table
out as a whole. Strict: what would be misread is refused, not guessed.
"""

from __future__ import annotations

import ctypes.util
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from nodeagent.redirect.iptables import TABLES
from nodeagent.redirect.netns import enter

END: Final = "# nothing is left out\n"
CANNOT: Final = "# cannot: "
_NAMES: Final = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
_PR_CAPBSET_DROP: Final = 24
_CAP_SYS_MODULE: Final = 16


def tables(version: int) -> list[str]:
    """Those of ours that the calling thread's namespace has. Without side effect: who opens a table makes it."""
    try:
        names = Path(_NAMES[version]).read_text(encoding="ascii").split()
    except OSError:  # the kernel has no legacy tables
        return []
    return [table for table in TABLES if table in names]


def main() -> None:
    """Ends with its parent, whose end of the connection closes."""
    why = _load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who reads
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        while True:
            version, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
            if not version:
                return
            if os.fork() == 0:
                _answer(version[0], descriptors[0], descriptors[1], why)
                os._exit(0)  # without python-iptables' destructors: they commit
            for each in descriptors:
                os.close(each)


def _load() -> str:
    """Why python-iptables cannot be used, or "". It runs modprobe when it is loaded: that shall be in vain."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(_CAP_SYS_MODULE))
    for name in ("ip4tc", "ip6tc", "xtables"):
        if ctypes.util.find_library(name) is None:
            return f"lib{name} is not installed"
    try:
        import iptc  # noqa: F401
    except Exception as error:  # whatever a library of another version makes of it
        return f"python-iptables does not load: {type(error).__name__}: {error}"
    return ""


def _answer(version: int, namespace: int, writing: int, why: str) -> None:
    text = f"{CANNOT}{why}"
    try:
        if not why:
            enter(namespace)
            text = "".join(f"{line}\n" for line in listing(version)) + END
    except Exception as error:  # as above; the agent has another way to read
        said = str(error).replace("b'", "'")  # libiptc's words come as bytes
        text = f"{CANNOT}python-iptables: {type(error).__name__}: {said}"
    with os.fdopen(writing, "w", encoding="utf-8") as pipe:
        pipe.write(text)


def listing(version: int) -> Iterator[str]:
    """In the calling process's namespace, of which it must be the first: python-iptables keeps what it opened.
    Raises whatever python-iptables does, ValueError: it would misread something."""
    import iptc

    kind, there = {4: iptc.Table, 6: iptc.Table6}[version], tables(version)
    kind.ALL = there  # for every rule it opens all of these, and what is opened is made
    for name in there:
        table = kind(name, autocommit=False)
        yield f"*{name}"
        for chain in table.chains:
            policy = chain.get_policy()
            yield f":{chain.name} {policy.name if policy else '-'} [0:0]"
        for chain in table.chains:
            for rule in chain.rules:
                yield " ".join(_shown(word) for word in ("-A", chain.name, *_rule(rule, version)))
        yield "COMMIT"


def _shown(word: str) -> str:
    """What a comment has no business to hold would begin another line."""
    return word if word == "!" else shlex.quote("".join(each if each.isprintable() else "?" for each in word))


# include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h
_FRAGMENT: Final = 0x01
_TOS_6: Final = 0x02
_NOT_TOS: Final = 0x04
_NOT_SOURCE: Final = 0x08
_NOT_DESTINATION: Final = 0x10
_NOT_FRAGMENT: Final = 0x20


def _rule(rule: Any, version: int) -> Iterator[str]:
    ip = rule.get_ip()
    if ip.invflags & _NOT_TOS or (version == 6 and ip.flags & _TOS_6):
        raise ValueError("a rule looks at the type of service")
    yield from _address("-s", ip.src, ip.smsk, bool(ip.invflags & _NOT_SOURCE))
    yield from _address("-d", ip.dst, ip.dmsk, bool(ip.invflags & _NOT_DESTINATION))
    for option, text in (("-i", rule.in_interface), ("-o", rule.out_interface), ("-p", rule.protocol)):
        if text not in (None, "ip", "all"):
            yield from [*["!"] * text.startswith("!"), option, text.removeprefix("!")]
    if version == 4 and ip.flags & _FRAGMENT:
        yield from [*["!"] * bool(ip.invflags & _NOT_FRAGMENT), "-f"]
    for match in rule.matches:
        yield from _extension("-m", match, match.match.u.match_size, match.match.u.user.revision)
    target = rule.target
    if target.name:
        header = target.target.u
        yield from _extension("-g" if target.goto else "-j", target, header.target_size, header.user.revision)


def _address(option: str, address: Any, mask: Any, negated: bool) -> list[str]:
    ones = f"{int.from_bytes(bytes(mask), 'big'):0{8 * len(bytes(mask))}b}".rstrip("0")
    if "0" in ones:
        raise ValueError("a rule has a mask with holes")
    network = ip_network((bytes(address), len(ones)), strict=False)
    return [*["!"] * negated, option, str(network)] if ones or negated else []


def _extension(option: str, part: Any, size: int, revision: int) -> Iterator[str]:
    """`size`, `revision`: as the kernel has them. python-iptables goes by those of the newest that it knows."""
    if (size, revision) != (part.size, part._revision):
        raise ValueError(f"{part.name} of revision {revision} is not the one that libxtables reads")
    yield from [option, part.name]
    for name, values in part.get_all_parameters().items():
        negated = values[:1] == ["!"]
        yield from [*["!"] * negated, f"--{name}", *values[negated:]]


if __name__ == "__main__":
    main()
