"""The `iptables` backend: our chains in the raw, mangle and nat tables of both families, by iptables-restore.

Which of the two kinds of programs is used, over nf_tables or over the legacy interface, is tried in a namespace of its
own; a pod that has our rules in the other kind is still read and cleaned with that one. Legacy programs
take a lock: ours is a file that nobody else knows, because nobody else writes into this pod's tables through us, and
a foreign holder of /run/xtables.lock shall not delay a pod.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final

from mesh.errors import MeshError, OperatorError
from nodeagent.redirect import iptables, netns, routes
from nodeagent.redirect.backend import RedirectError, Sandbox
from nodeagent.redirect.kernel import NFT_DEADLINE_S, PATH
from nodeagent.redirect.plan import Options, Plan, make_plan

KINDS: Final = ("nft", "legacy")
"""Of the programs; Istio's order and Istio's words."""
FORCED_BY: Final = "FORCE_IPTABLES_BINARY"
DEADLINE_S: Final = NFT_DEADLINE_S
_PREFIX: Final = {4: "iptables", 6: "ip6tables"}
_LEGACY_TABLES: Final = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}


class Iptables:
    """Stateless but for which kind of programs works here."""

    name = "iptables"

    def __init__(self, forced: str | None = None) -> None:
        """`forced`: one of KINDS; by default what FORCE_IPTABLES_BINARY says."""
        self._forced = forced if forced is not None else os.environ.get(FORCED_BY, "")

    def unusable(self) -> str | None:
        try:
            _ = self._kind
        except MeshError as error:
            return str(error)
        return None

    def cannot(self, _: Sandbox) -> str | None:
        return None

    @property
    def announced(self) -> bool:
        return self._kind == "nft"

    async def put(self, sandbox: Sandbox) -> None:
        plan, kind, keep = make_plan(sandbox.options), self._kind, sandbox.options.keep_connections
        await sandbox.namespace.run(lambda: put(kind, plan, keep_connections=keep))

    async def compare(self, sandbox: Sandbox) -> list[str]:
        plan, kind = make_plan(sandbox.options), self._kind
        return await sandbox.namespace.run(lambda: compare(kind, plan))

    async def release(self, sandbox: Sandbox) -> None:
        await self.put(sandbox.released)

    async def take_out(self, sandbox: Sandbox) -> None:
        await sandbox.namespace.run(lambda: take_out(keep_connections=sandbox.options.keep_connections))

    @cached_property
    def _kind(self) -> str:
        """Raises OperatorError: neither works."""
        if self._forced not in ("", *KINDS):
            raise OperatorError(f"{self._forced!r} is none of {', '.join(KINDS)}", where=FORCED_BY)
        reasons = []
        for kind in [self._forced] if self._forced else KINDS:
            try:
                netns.in_scratch(lambda kind=kind: put(kind, make_plan(Options())))  # type: ignore[misc]
            except (MeshError, OSError) as error:
                reasons.append(f"iptables-{kind}: {error}")
            else:
                return kind
        raise OperatorError("; ".join(reasons))


# On a thread inside the pod's namespace -----------------------------------------------------------------------------


def put(kind: str, plan: Plan, *, keep_connections: bool = False) -> None:
    """Both families, or, where nothing of ours was before, nothing. Raises RedirectError."""
    seen = {version: _observe(kind, version) for version in _versions()}
    routes.put(keep_connections=keep_connections)
    try:
        for version, there in seen.items():
            _restore(kind, version, iptables.render(plan, version, there))
    except RedirectError:
        if not any(there.chains for there in seen.values()):
            take_out(keep_connections=keep_connections)
        raise


def take_out(*, keep_connections: bool = False) -> None:
    """Rules first: without them no packet is marked. Both kinds, whichever put them in. Idempotent."""
    for kind in KINDS:
        for version in _versions() if _may_hold(kind) else ():
            if text := iptables.removal(_observe(kind, version)):
                _restore(kind, version, text)
    routes.take_out(keep_connections=keep_connections)


def compare(kind: str, plan: Plan) -> list[str]:
    kind = next((other for other in KINDS if other != kind and _holds(other)), kind)
    found = [text for version in _versions() for text in iptables.differences(plan, version, _observe(kind, version))]
    return found + routes.missing()


def _holds(kind: str) -> bool:
    return _may_hold(kind) and any(_observe(kind, version).chains for version in _versions())


def _may_hold(kind: str) -> bool:
    """Without side effect: to ask the legacy programs would make the tables that they are asked about."""
    if _find(kind, 4, "save") is None:
        return False
    return kind != "legacy" or any(_legacy_tables(version) for version in _LEGACY_TABLES)


def _legacy_tables(version: int) -> str:
    with suppress(OSError):
        return Path(_LEGACY_TABLES[version]).read_text(encoding="ascii")
    return ""


def _versions() -> list[int]:
    """A kernel without IPv6 has nothing to capture there; with it, both or none."""
    return [4, 6] if Path("/proc/sys/net/ipv6").is_dir() else [4]


def _observe(kind: str, version: int) -> iptables.Seen:
    if kind == "legacy" and not _legacy_tables(version):
        return iptables.Seen()
    return iptables.read(save(kind, version), version)


def save(kind: str, version: int) -> str:
    """What the program lists. Raises RedirectError."""
    return _run(kind, version, "save")


def _restore(kind: str, version: int, text: str) -> None:
    _run(kind, version, "restore", "--noflush", text=text)


def _find(kind: str, version: int, verb: str) -> str | None:
    return shutil.which(f"{_PREFIX[version]}-{kind}-{verb}", path=PATH)


def _run(kind: str, version: int, verb: str, *arguments: str, text: str = "") -> str:
    program = f"{_PREFIX[version]}-{kind}-{verb}"
    path = _find(kind, version, verb)
    if path is None:
        raise RedirectError(f"{program} is not installed")
    lock = os.memfd_create("xtables-lock")
    settings = {"PATH": PATH, "XTABLES_LOCKFILE": f"/proc/self/fd/{lock}"}  # iptables 1.8.6
    try:
        done = subprocess.run(
            [path, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env=settings,
            pass_fds=[lock],
        )
    except subprocess.TimeoutExpired:
        raise RedirectError(f"{program} did not finish within {DEADLINE_S:.0f} s") from None
    except OSError as error:
        raise RedirectError(f"{program} cannot be run: {error.strerror}") from None
    finally:
        os.close(lock)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().splitlines() or ["no reason given"]
    raise RedirectError(f"{program} refused: {said[0]}")
