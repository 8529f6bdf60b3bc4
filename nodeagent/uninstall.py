"""Takes off this node what agents put on it: capture of pods and host workloads, pins, addresses, groups, files.

For when no agent runs any more: pods that live on are outside the mesh from then on. What belongs to the tunnel and to
the plugin goes with them (docs/operations.md). Idempotent; what cannot be taken off is named and the rest is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from mesh import log
from mesh.errors import MeshError, OperatorError
from nodeagent import host_workloads
from nodeagent.capture import Capture
from nodeagent.enrol.store import Member, Store
from nodeagent.redirect import groups
from nodeagent.redirect.netns import NamespaceError
from nodeagent.redirect.pins import Pins
from nodeagent.settings import Settings
from nodeagent.sockets import is_served

_log: Final = log.get("uninstall")


async def uninstall(settings: Settings) -> None:
    """Raises OperatorError: an agent runs, or something could not be taken off."""
    if is_served(settings.admin_socket):
        raise OperatorError("an agent still runs: end it first", where=str(settings.admin_socket))
    left = await _free_pods(settings)
    for work in (lambda: host_workloads.remove(), lambda: _remove_group(settings.listener_group)):
        left += await asyncio.to_thread(_tried, work)
    await asyncio.to_thread(Pins(settings.bpf_root).remove)
    if left:
        raise OperatorError(f"not all was taken off: {'; '.join(left)}")
    for path in _files(settings):
        path.unlink(missing_ok=True)
    for directory in (settings.state_dir, settings.run_dir):
        with suppress(OSError):  # somebody else's files are in it
            directory.rmdir()


async def _free_pods(settings: Settings) -> list[str]:
    capture = Capture(
        "auto",
        prove_capture=False,
        cgroup_root=settings.cgroup_root,
        bpf_root=settings.bpf_root,
        memory=settings.state_dir / "tunnels.json",
        listeners=settings.listener_group,
    )
    left = [why for member in Store(settings.state_dir).load() if (why := await _free(capture, member))]
    await asyncio.to_thread(capture.probing.keep)
    return left if capture.probing.trouble == "off" else [*left, capture.probing.trouble]


async def _free(capture: Capture, member: Member) -> str:
    """Why not, or ""."""
    try:
        namespace = capture.open(member.netns)
    except NamespaceError:
        return ""  # the pod has gone, and its namespace with all that was in it
    try:
        if namespace.identity == member.identity:
            await capture.take_out(member, namespace)
            _log.info(log.POD_WITHDRAWN, uid=member.uid)
    except (MeshError, OSError) as error:
        return f"{member.uid}: {error}"
    finally:
        namespace.close()
    return ""


def _remove_group(name: str) -> None:
    with suppress(groups.NoGroup, FileNotFoundError):
        (groups.mount() / name).rmdir()


def _tried(work: Callable[[], None]) -> list[str]:
    try:
        work()
    except (MeshError, OSError) as error:
        return [str(error)]
    return []


def _files(settings: Settings) -> Iterator[Path]:
    for name in ("enrolled", "tunnels"):
        yield settings.state_dir / f"{name}.json"
        yield settings.state_dir / f"{name}.tmp"
    yield from (settings.plugin_socket, settings.admin_socket, settings.zds_socket)
