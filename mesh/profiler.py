"""Profiles of a running daemon: where processor time goes, and who holds memory.

Owns the looking; nothing of it costs anything while nobody asks. Who serves them is `profiles.py`. The
interpreter's part is here, a native part is handed in by whoever has one. Blocks: for a thread of its own.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

from mesh.pprof import Frame, Stack, Value, encode

HERTZ: Final = 99
"""Not in step with anything that happens a hundred times a second."""
FRAMES: Final = 16
SAMPLES, CPU = Value("samples", "count"), Value("cpu", "nanoseconds")
OBJECTS, SPACE = Value("inuse_objects", "count"), Value("inuse_space", "bytes")
Native = Callable[[float, int], Iterable[tuple[Stack, int]]]
"""(seconds, hertz) -> stacks and how often each was seen. Raises ValueError: not now."""
_MALLINFO: Final = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
_one_at_a_time: Final = threading.Lock()


def cpu(seconds: float, native: Native | None = None) -> bytes:
    """Samples of `seconds`; without `native` of the threads that run Python. Raises ValueError: one is being taken."""
    if not _one_at_a_time.acquire(blocking=False):
        raise ValueError("another profile is being taken")
    try:
        period = 10**9 // HERTZ
        if native:
            samples = [(stack, (times, times * period)) for stack, times in native(seconds, HERTZ)]
        else:
            samples = _interpreted(seconds)
        return encode((SAMPLES, CPU), samples, int(seconds * 1e9), period)
    finally:
        _one_at_a_time.release()


def _interpreted(seconds: float) -> list[tuple[Stack, tuple[int, int]]]:
    """What a thread used of the processor since the last look is its stack's of now: who waits is not seen."""
    times: Counter[Stack] = Counter()
    spent: Counter[Stack] = Counter()
    used, own, end = _used(), threading.get_ident(), time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        time.sleep(min(1 / HERTZ, end - now))
        before, used = used, _used()
        names = {each.ident: each.name for each in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            since = used.get(ident, 0) - before.get(ident, 0)
            if ident != own and since > 0:
                stack = (Frame(names.get(ident) or str(ident)), *_stack(frame))
                times[stack] += 1
                spent[stack] += since
    return [(stack, (times[stack], spent[stack])) for stack in times]


def _used() -> dict[int, int]:
    """Nanoseconds of processor time of each thread that Python began."""
    found = {}
    for each in threading.enumerate():
        if each.ident is not None and each.native_id is not None:
            try:
                # By the kernel's number: a pthread that ended meanwhile must not be touched (man clock_getcpuclockid).
                found[each.ident] = time.clock_gettime_ns((~each.native_id << 3) | 6)
            except OSError:
                continue  # it ended just now
    return found


def _stack(frame: FrameType | None) -> Stack:
    found = []
    while frame:
        found.append(Frame(frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(reversed(found))


def heap(seconds: float) -> bytes:
    """What Python has allocated and not freed, by stack, since it was started with PYTHONTRACEMALLOC=16; without that
    what comes within `seconds` and stays. Beside it, as one figure each, what malloc handed out and what it holds free.
    """
    if not _one_at_a_time.acquire(blocking=False):
        raise ValueError("another profile is being taken")
    began = not tracemalloc.is_tracing()
    try:
        if began:
            tracemalloc.start(FRAMES)
            time.sleep(seconds)
        snapshot = tracemalloc.take_snapshot()
    finally:
        if began:
            tracemalloc.stop()
        _one_at_a_time.release()
    samples: list[tuple[Stack, tuple[int, int]]] = [
        (tuple(Frame("python", each.filename, each.lineno) for each in found.traceback), (found.count, found.size))
        for found in snapshot.statistics("traceback")
    ]
    samples += [((Frame("native", name),), (1, size)) for name, size in _malloc().items() if size]
    return encode((OBJECTS, SPACE), samples, int(seconds * 1e9) if began else 0)


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2`, glibc 2.33."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO.split())
    uordblks: int
    fordblks: int
    hblkhd: int


def _malloc() -> dict[str, int]:
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return {}
    ask.restype = _Mallinfo
    said: _Mallinfo = ask()
    return {"malloc: in use": said.uordblks, "malloc: large pieces": said.hblkhd, "malloc: free": said.fordblks}
