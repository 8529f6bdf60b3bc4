"""`python -m nodeagent.diag connects|retransmits|who [SECONDS]`: looks on for SECONDS (10), on this whole node.

Needs root, Linux 5.8 with tracepoints, and libbpf.so.1; no headers, no kprobes, no compiler. Leaves nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError
from nodeagent import libbpf
from nodeagent.diag.events import Event, Seen, latencies, who
from nodeagent.libbpf import BpfError

OBJECT: Final = Path(__file__).parent / "objects" / "diag.bpf.o"
TRACEFS: Final = Path("/sys/kernel/tracing")
_STATES, _RETRANSMITS = ("sock", "inet_sock_set_state"), ("tcp", "tcp_retransmit_skb")
_PROGRAMS: Final = {_STATES: "mesh_watch_states", _RETRANSMITS: "mesh_watch_retransmits"}
_VIEWS: Final = {"connects": _STATES, "retransmits": _RETRANSMITS, "who": _STATES}
_POLL_S: Final = 0.2
_CLONE_NEWNS: Final = 0x20000
_MS_REC_PRIVATE: Final = 1 << 14 | 1 << 18


def watch(event: tuple[str, str], seconds: float, each: Callable[[Event], None]) -> list[Event]:
    """All that was seen. Raises OperatorError: this node cannot, and what it lacks."""
    if os.geteuid() != 0:
        raise OperatorError("looking on in the kernel needs root")
    _see_tracefs()
    if not (TRACEFS / "events" / event[0] / event[1] / "id").exists():
        raise OperatorError(f"this kernel has no tracepoint {'/'.join(event)}: it needs CONFIG_EVENT_TRACING")
    seen: list[Event] = []

    def tell(record: bytes) -> None:
        seen.append(Event.unpack(record))
        each(seen[-1])

    try:
        with libbpf.Object(OBJECT, None) as loaded, loaded.looking_on(_PROGRAMS[event], *event):
            ring = libbpf.Ring(loaded.maps["mesh_events"], tell)
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                ring.poll(min(left, _POLL_S))
            ring.close()
    except BpfError as error:
        raise OperatorError(str(error)) from None
    return seen


def _see_tracefs() -> None:
    """Where nobody mounted it, for this process only."""
    if (TRACEFS / "events").is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    private = libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(None, b"/", None, _MS_REC_PRIVATE, None) == 0
    if not private or libc.mount(b"none", os.fsencode(TRACEFS), b"tracefs", 0, None) != 0:
        raise OperatorError(f"tracefs cannot be mounted on {TRACEFS}: {os.strerror(ctypes.get_errno())}")


def main(arguments: Sequence[str]) -> int:
    try:
        view, seconds = _read(arguments)
        seen = watch(_VIEWS[view], seconds, _say if view != "who" else lambda _: None)
    except OperatorError as error:
        print(f"diag: {error}", file=sys.stderr)
        return 2
    if view == "who":
        print("\n".join(who(seen)) or "no connection was seen")
    else:
        print(
            latencies(seen) if view == "connects" else f"{sum(e.seen is Seen.RESENT for e in seen)} segments sent again"
        )
    return 0


def _read(arguments: Sequence[str]) -> tuple[str, float]:
    if not arguments or arguments[0] not in _VIEWS or len(arguments) > 2:
        raise OperatorError(f"say what to watch: python -m nodeagent.diag {'|'.join(_VIEWS)} [SECONDS]")
    try:
        return arguments[0], float(arguments[1]) if len(arguments) > 1 else 10.0
    except ValueError:
        raise OperatorError(f"{arguments[1]!r} is no number of seconds") from None


def _say(event: Event) -> None:
    print(event, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
