"""libbpf by ctypes: objects, maps and links as far as capture needs them. Owns no name, no layout and no decision.

Everything here blocks for microseconds, loading an object for milliseconds. Raises BpfError with the kernel's words.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from mesh.errors import MeshError

LIBRARY: Final = "libbpf.so.1"
_SAID_BYTES: Final = 512


class BpfError(MeshError):
    """The kernel, or libbpf, refused."""


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """`target`: the control group's id or the namespace's inode; 0: it is gone, and the link holds nothing."""

    program: int
    target: int


class _Info(ctypes.Structure):
    """struct bpf_link_info, linux/bpf.h: what links to control groups and namespaces have in common."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("target", ctypes.c_uint64),
        ("rest", ctypes.c_uint8 * 128),
    )


class _ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info."""

    _fields_ = (("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 240))


_LINK_TO_NETNS: Final = 5
"""BPF_LINK_TYPE_NETNS: its target has 32 bits."""

_P, _S, _I, _U = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "bpf_object__open_file": (_P, (_S, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_map": (_P, (_P, _P)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__find_map_by_name": (_P, (_P, _S)),
    "bpf_map__name": (_S, (_P,)),
    "bpf_map__fd": (_I, (_P,)),
    "bpf_map__pin_path": (_S, (_P,)),
    "bpf_map__set_pin_path": (_I, (_P, _S)),
    "bpf_map__set_initial_value": (_I, (_P, _P, ctypes.c_size_t)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__fd": (_I, (_P,)),
    "bpf_program__attach_tracepoint": (_P, (_P, _S, _S)),
    "bpf_link__destroy": (_I, (_P,)),
    "ring_buffer__new": (_P, (_I, _P, _P, _P)),
    "ring_buffer__poll": (_I, (_P, _I)),
    "ring_buffer__free": (None, (_P,)),
    "bpf_link_create": (_I, (_I, _I, _I, _P)),
    "bpf_link_update": (_I, (_I, _I, _P)),
    "bpf_link_detach": (_I, (_I,)),
    "bpf_obj_pin": (_I, (_I, _S)),
    "bpf_obj_get": (_I, (_S,)),
    "bpf_obj_get_info_by_fd": (_I, (_I, _P, _P)),
    "bpf_map_update_elem": (_I, (_I, _P, _P, ctypes.c_ulonglong)),
    "bpf_map_lookup_elem": (_I, (_I, _P, _P)),
    "bpf_map_delete_elem": (_I, (_I, _P)),
    "bpf_map_get_next_key": (_I, (_I, _P, _P)),
}
_TAKES: Final = ctypes.CFUNCTYPE(_I, _P, _P, ctypes.c_size_t)
_SAYS: Final = ctypes.CFUNCTYPE(_I, _I, _S, _P)


@cache
def _library() -> ctypes.CDLL:
    """Raises BpfError: it is not installed, or older than 1.0."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        raise BpfError(f"{LIBRARY} is not installed: apt-get install libbpf1") from None
    library.libbpf_set_print(_LISTENER)
    return library


_said: list[str] = []
"""What libbpf complained of last; it says more than errno."""
_format: Final = ctypes.CDLL(None).vsnprintf


def _listen(level: int, text: bytes, arguments: int) -> int:
    if level == 0:
        line = ctypes.create_string_buffer(_SAID_BYTES)
        _format(line, ctypes.c_size_t(_SAID_BYTES), ctypes.c_char_p(text), ctypes.c_void_p(arguments))
        _said.append(line.value.decode(errors="replace").removeprefix("libbpf: ").strip())
    return 0


_LISTENER: Final = _SAYS(_listen)


def _fail(what: str) -> BpfError:
    number = ctypes.get_errno()
    said = next((line for line in _said if line and not line.startswith("--")), "")
    _said.clear()
    return BpfError(f"{what}: {os.strerror(number)}" + (f" ({said})" if said else ""))


def _checked(result: int | None, what: str) -> int:
    if result is None or result < 0:
        raise _fail(what)
    return result


class Object:
    """A loaded object file. Its programs live as long as it, or as a link of theirs."""

    def __init__(self, path: Path, pins: Path | None, constants: bytes = b"", section: str = ".rodata") -> None:
        """Maps that have a pin below `pins` are shared, the others are made and pinned; None: nothing is pinned.
        `constants`: all of `section`. Raises BpfError; then nothing is loaded."""
        self._bpf = _library()
        if not path.is_file():
            raise BpfError(f"{path} is not built: run `make setup`")
        self._object = _checked(self._bpf.bpf_object__open_file(os.fsencode(path), None), f"{path.name} is unreadable")
        try:
            for handle in self._each("map"):
                if self._bpf.bpf_map__pin_path(handle):
                    at = pins and os.fsencode(pins / self._bpf.bpf_map__name(handle).decode())
                    _checked(self._bpf.bpf_map__set_pin_path(handle, at), f"{path.name}: a map's pin")
            if constants:
                self._set_constants(path, section, constants)
            _said.clear()
            _checked(self._bpf.bpf_object__load(self._object), f"{path.name} was not loaded")
        except BaseException:
            self.close()
            raise
        named = ((self._bpf.bpf_program__name(each), self._bpf.bpf_program__fd(each)) for each in self._each("program"))
        self.programs = {name.decode(): fd for name, fd in named}
        maps = ((self._bpf.bpf_map__name(each), self._bpf.bpf_map__fd(each)) for each in self._each("map"))
        self.maps = {name.decode(): fd for name, fd in maps}

    def _set_constants(self, path: Path, section: str, constants: bytes) -> None:
        found = self._bpf.bpf_object__find_map_by_name(self._object, section.encode())
        data = _checked(found, f"{path.name} has no {section}")
        _checked(self._bpf.bpf_map__set_initial_value(data, constants, len(constants)), f"{path.name}: constants")

    def _each(self, kind: str) -> Iterator[int]:
        following = getattr(self._bpf, f"bpf_object__next_{kind}")
        handle = following(self._object, None)
        while handle:
            yield handle
            handle = following(self._object, handle)

    @contextmanager
    def looking_on(self, program: str, category: str, event: str) -> Iterator[None]:
        """Runs a program at every passing of a tracepoint, for as long as this lasts. Raises BpfError."""
        handles = {self._bpf.bpf_program__name(each).decode(): each for each in self._each("program")}
        made = self._bpf.bpf_program__attach_tracepoint(handles[program], category.encode(), event.encode())
        attached = _checked(made, f"{category}/{event} cannot be watched")
        try:
            yield
        finally:
            self._bpf.bpf_link__destroy(attached)

    def close(self) -> None:
        """What is pinned, or linked and pinned, stays."""
        if self._object:
            self._bpf.bpf_object__close(self._object)
            self._object = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Map:
    """A map by its descriptor, which stays its object's. Keys and values are bytes of the C structs' size."""

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        self._fd, self._key_bytes, self._value_bytes = fd, key_bytes, value_bytes
        self._bpf = _library()

    def __setitem__(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == (self._key_bytes, self._value_bytes)
        _checked(self._bpf.bpf_map_update_elem(self._fd, key, value, 0), "a map entry was not written")

    def get(self, key: bytes) -> bytes | None:
        assert len(key) == self._key_bytes
        value = ctypes.create_string_buffer(self._value_bytes)
        return value.raw if self._bpf.bpf_map_lookup_elem(self._fd, key, value) == 0 else None

    def discard(self, key: bytes) -> None:
        assert len(key) == self._key_bytes
        self._bpf.bpf_map_delete_elem(self._fd, key)

    def having(self, part: bytes) -> list[bytes]:
        """Keys with these bytes in them. Cost: a walk over all; what changes meanwhile may be missed."""
        seen: bytes | None = None
        found = []
        following = ctypes.create_string_buffer(self._key_bytes)
        while self._bpf.bpf_map_get_next_key(self._fd, seen, following) == 0:
            seen = following.raw
            found += [seen] if part in seen else []
        return found


class Ring:
    """A ring buffer's reader, on one thread. `each` gets the bytes of every record; it must not raise."""

    def __init__(self, fd: int, each: Callable[[bytes], None]) -> None:
        def take(_: int, record: int, length: int) -> int:
            each(ctypes.string_at(record, length))
            return 0

        self._take = _TAKES(take)  # libbpf has only its address
        self._bpf = _library()
        self._ring = _checked(self._bpf.ring_buffer__new(fd, self._take, None, None), "a ring buffer")

    def poll(self, seconds: float) -> None:
        """What has come, or what comes first within `seconds`."""
        self._bpf.ring_buffer__poll(self._ring, int(seconds * 1000))

    def close(self) -> None:
        self._bpf.ring_buffer__free(self._ring)


def link(program: int, target: int, attach_type: int, path: Path) -> None:
    """Attaches and pins: what is pinned outlives every process. Raises BpfError; then nothing is attached."""
    made = _library().bpf_link_create(program, target, attach_type, None)
    fd = _checked(made, f"{path.name} was not attached")
    try:
        pin(fd, path)
    finally:
        os.close(fd)


def pin(fd: int, path: Path) -> None:
    """Raises BpfError."""
    _checked(_library().bpf_obj_pin(fd, os.fsencode(path)), f"{path} cannot be pinned")


def open_pin(path: Path) -> int:
    """A descriptor, the caller's to close. Raises BpfError."""
    return _checked(_library().bpf_obj_get(os.fsencode(path)), f"{path} cannot be opened")


def update(path: Path, program: int) -> None:
    """The same link, another program, in one step: no connection sees neither. Raises BpfError."""
    with _opened(path) as fd:
        _checked(_library().bpf_link_update(fd, program, None), f"{path.name} was not updated")


def unlink(path: Path) -> None:
    """Detached before this returns. Nothing happens when it is gone."""
    with suppress(BpfError), _opened(path) as fd:
        _library().bpf_link_detach(fd)
    path.unlink(missing_ok=True)


def describe(path: Path) -> LinkInfo | None:
    """None: there is no such link."""
    info = _Info()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    try:
        with _opened(path) as fd:
            _checked(_library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)), f"{path}")
    except BpfError:
        return None
    return LinkInfo(info.prog_id, info.target & 0xFFFFFFFF if info.type == _LINK_TO_NETNS else info.target)


def program_id(fd: int) -> int:
    """A number never used twice since boot."""
    info = _ProgramInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(_library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)), "a program")
    return int(info.id)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = open_pin(path)
    try:
        yield fd
    finally:
        os.close(fd)
