"""`assert play(machine) >> event << command`: a conversation with a machine, as it is told.

`>>` feeds an event to `machine.handle`, `<<` claims its next command; `<< nothing` says that it stays silent. The
assertion runs on `bool()`, so a playbook without `assert` is an error. The idea is mitmproxy's proxy test kit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol


class Machine(Protocol):
    def handle(self, event: Any) -> Iterable[Any]: ...


nothing: Final = object()


class play:
    def __init__(self, machine: Machine):
        self.machine = machine
        self.script: list[tuple[str, Any]] = []
        self.ran = False

    def __rshift__(self, event: Any) -> play:
        self.script.append((">>", event))
        return self

    def __lshift__(self, command: Any) -> play:
        if command is not nothing:
            self.script.append(("<<", command))
        return self

    def __bool__(self) -> bool:
        self.ran = True
        pending: list[Any] = []
        for arrow, item in self.script:
            if arrow == ">>":
                assert not pending, f"unclaimed before {item}: {pending}"
                pending = list(self.machine.handle(item))
            else:
                assert pending, f"expected {item}, the machine said nothing more"
                assert pending[0] == item, f"expected {item}, got {pending[0]}"
                pending.pop(0)
        assert not pending, f"unclaimed at the end: {pending}"
        return True

    def __del__(self) -> None:
        assert self.ran, "a playbook was never asserted"
