"""What the kernel's looking-on is told as."""

import struct
from ipaddress import ip_address

import pytest

from nodeagent.diag.__main__ import main
from nodeagent.diag.events import EVENT_BYTES, Event, Seen, latencies, who


def record(seen, took_us=0, source="10.0.0.1", destination="10.0.0.2", pid=7, program=b"curl"):
    ends = [ip_address(text) for text in (source, destination)]
    packed = [end.packed.ljust(16, b"\0") for end in ends]
    return struct.pack(
        "=QIHH16s16sBB6x16s", took_us * 1000, pid, 4000, 80, *packed, seen, ends[0].version == 4, program
    )


def event(*arguments, **options):
    return Event.unpack(record(*arguments, **options))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            event(Seen.CONNECTED, 42),
            "connected       42 µs curl (7)                 10.0.0.1:4000 -> 10.0.0.2:80",
        ),
        (
            event(Seen.REFUSED, 9, "fd00::1", "fd00::2"),
            "refused          9 µs curl (7)                 [fd00::1]:4000 -> [fd00::2]:80",
        ),
        (
            event(Seen.RESENT, 0, "::ffff:10.0.0.1", "::ffff:10.0.0.2", pid=0, program=b""),
            "resent                a kernel timer           10.0.0.1:4000 -> 10.0.0.2:80",
        ),
    ],
)
def test_an_event_is_one_line(told, line):
    assert str(told) == line


def test_who_connects_where_is_counted_the_most_frequent_first():
    seen = [event(Seen.CONNECTED), event(Seen.REFUSED), event(Seen.REFUSED), event(Seen.RESENT)]
    assert who(seen) == [
        "      2 curl             refused   10.0.0.2:80",
        "      1 curl             connected 10.0.0.2:80",
    ]


def test_latencies_are_of_connections_that_came_about():
    seen = [event(Seen.CONNECTED, took) for took in range(1, 101)] + [event(Seen.REFUSED, 9999)]
    assert latencies(seen) == "100 connections: p50 51 µs, p99 100 µs, most 100 µs"
    assert latencies([]) == "no connection was seen"


def test_a_record_is_as_long_as_the_kernels():
    assert len(record(Seen.CONNECTED)) == EVENT_BYTES == 72


@pytest.mark.parametrize(("arguments", "said"), [([], "say what to watch"), (["who", "soon"], "'soon' is no number")])
def test_what_cannot_be_understood_is_one_sentence(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
