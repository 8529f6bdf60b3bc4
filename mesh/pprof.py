"""Stacks with figures as a profile that `go tool pprof` reads. Pure."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mesh.gen import profile_pb2 as wire


class Frame(NamedTuple):
    function: str
    file: str = ""
    line: int = 0


Stack = tuple[Frame, ...]
"""Outermost first."""


class Value(NamedTuple):
    """What a figure is, and in what: ("cpu", "nanoseconds")."""

    what: str
    unit: str


def encode(
    values: Sequence[Value], samples: Iterable[tuple[Stack, Sequence[int]]], duration_ns: int = 0, period: int = 0
) -> bytes:
    """A compressed profile; each sample has a figure for every one of `values`. `period`: of the last of them, between
    two samples."""
    return _Profile().filled(values, samples, duration_ns, period)


class _Profile:
    """Everything is named by number; numbers of strings begin with 0 for "", others with 1."""

    def __init__(self) -> None:
        self._message = wire.Profile(string_table=[""])
        self._strings = {"": 0}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[Frame, int] = {}

    def filled(
        self, values: Sequence[Value], samples: Iterable[tuple[Stack, Sequence[int]]], duration_ns: int, period: int
    ) -> bytes:
        message = self._message
        message.sample_type.extend(map(self._value, values))
        for stack, figures in samples:
            message.sample.add(location_id=[self._location(frame) for frame in reversed(stack)], value=figures)
        message.duration_nanos = duration_ns
        if period:
            message.period_type.CopyFrom(self._value(values[-1]))
            message.period = period
        return gzip.compress(message.SerializeToString(), mtime=0)

    def _string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = len(self._strings)
            self._message.string_table.append(text)
        return self._strings[text]

    def _value(self, value: Value) -> wire.ValueType:
        return wire.ValueType(type=self._string(value.what), unit=self._string(value.unit))

    def _function(self, name: str, file: str) -> int:
        if (name, file) not in self._functions:
            number = self._functions[name, file] = len(self._functions) + 1
            text = self._string(name)
            self._message.function.add(id=number, name=text, system_name=text, filename=self._string(file))
        return self._functions[name, file]

    def _location(self, frame: Frame) -> int:
        if frame not in self._locations:
            number = self._locations[frame] = len(self._locations) + 1
            place = self._message.location.add(id=number)
            place.line.add(function_id=self._function(frame.function, frame.file), line=frame.line)
        return self._locations[frame]
