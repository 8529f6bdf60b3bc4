"""Profiles: what is written is read back by the format's own rules, and says who did what."""

import gzip
import threading
import tracemalloc

import pytest

from mesh import profiler
from mesh.gen.profile_pb2 import Profile
from mesh.pprof import Frame, Value, encode

MAIN, WORK = Frame("main", "a.py", 1), Frame("work", "b.py", 7)


def read(data):
    """(function, file, line) from the outermost on, with the figures."""
    profile = Profile.FromString(gzip.decompress(data))
    text = profile.string_table
    functions = {each.id: (text[each.name], text[each.filename]) for each in profile.function}
    places = {each.id: (*functions[each.line[0].function_id], each.line[0].line) for each in profile.location}
    assert text[0] == ""
    return [([places[n] for n in reversed(each.location_id)], list(each.value)) for each in profile.sample], profile


def test_stacks_come_back_with_their_figures():
    samples, profile = read(encode([Value("cpu", "nanoseconds")], [((MAIN, WORK), [5]), ((MAIN,), [1])], 10, 3))
    assert samples == [([("main", "a.py", 1), ("work", "b.py", 7)], [5]), ([("main", "a.py", 1)], [1])]
    assert profile.string_table[profile.period_type.type] == "cpu"
    assert (profile.duration_nanos, profile.period) == (10, 3)
    assert len(profile.function) == len(profile.location) == 2, "each is there once"


def test_nothing_is_a_profile_too():
    assert read(encode([Value("a", "b")], []))[0] == []


def test_another_threads_work_is_found_and_its_waiting_is_not():
    done = threading.Event()

    def busy():
        while not done.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=busy, name="busy"), threading.Thread(target=done.wait, name="idle")]
    for each in threads:
        each.start()
    try:
        samples, _ = read(profiler.cpu(0.2))
    finally:
        done.set()
        for each in threads:
            each.join()
    spent = {name: sum(figures[1] for stack, figures in samples if stack[0][0] == name) for name in ("busy", "idle")}
    assert spent["busy"] > 10 * spent["idle"]
    assert any(stack[0][0] == "busy" and "busy" in stack[-1][0] for stack, _ in samples)


def test_what_is_kept_is_found_by_the_line_that_made_it():
    kept = []
    samples, profile = read(_while_tracing(lambda: kept.extend(bytes(100_000) for _ in range(20))))
    assert [profile.string_table[each.type] for each in profile.sample_type] == ["inuse_objects", "inuse_space"]
    mine = [figures[1] for stack, figures in samples if stack[-1][1] == __file__]
    assert max(mine) > 1_000_000
    assert any(stack[0][0] == "native" for stack, _ in samples)


def _while_tracing(make):
    """What somebody has who began with PYTHONTRACEMALLOC."""
    tracemalloc.start(profiler.FRAMES)
    try:
        make()
        return profiler.heap(0.001)
    finally:
        tracemalloc.stop()


def test_one_profile_at_a_time():
    def native(seconds, hertz):
        with pytest.raises(ValueError, match="another profile"):
            profiler.cpu(seconds)
        with pytest.raises(ValueError, match="another profile"):
            profiler.heap(seconds)
        return [((MAIN,), 2)]

    [(stack, figures)], _ = read(profiler.cpu(0.01, native))
    assert (stack, figures) == ([("main", "a.py", 1)], [2, 2 * (10**9 // profiler.HERTZ)])
