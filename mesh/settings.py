"""Reading a daemon's environment: every value parsed once, a bad one named in one sentence. Owns no defaults.

The environment is an argument: `Env(os.environ)` in a daemon's `settings.py`, a literal in its tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from mesh.errors import OperatorError

_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


def parse_duration(text: str) -> float:
    """Go's notation (`24h`, `1m30s`, `250ms`) in seconds. Raises ValueError."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 250ms, 5s or 24h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_host_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:15000` or `[::1]:15000`; the host comes without brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    try:
        ip_address(bare)
    except ValueError:
        raise ValueError(f"{text!r} does not start with an IP address") from None
    return bare, int(port)


@dataclass(frozen=True, slots=True)
class Env:
    """Typed views of the environment. An empty variable counts as unset; `default=None` makes it required.

    Every method raises OperatorError that names the variable and the value.
    """

    variables: Mapping[str, str]

    def text(self, name: str, default: str | None = None) -> str:
        value = self.variables.get(name) or default
        if value is None:
            raise OperatorError("is required and not set", where=name)
        return value

    def number(self, name: str, default: int | None = None, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """A decimal or 0x number in [`low`, `high`]."""
        text = self.text(name, None if default is None else str(default))
        try:
            value = int(text, 0)
        except ValueError:
            raise OperatorError(f"{text!r} is not a whole number", where=name) from None
        if not low <= value <= high:
            raise OperatorError(f"{value} is not between {low} and {high}", where=name)
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        text = self.text(name, None if default is None else str(default)).lower()
        if text not in _TRUE | _FALSE:
            raise OperatorError(f"{text!r} is neither true nor false", where=name)
        return text in _TRUE

    def path(self, name: str, default: str | Path | None = None) -> Path:
        """Not checked for existence: only the one who opens it can say what is wrong."""
        return Path(self.text(name, None if default is None else str(default)))

    def duration(self, name: str, default: str | None = None) -> float:
        """Go's notation; seconds."""
        try:
            return parse_duration(self.text(name, default))
        except ValueError as error:
            raise OperatorError(str(error), where=name) from None

    def host_port(self, name: str, default: str | None = None) -> tuple[str, int]:
        """An address to listen on."""
        try:
            return parse_host_port(self.text(name, default))
        except ValueError as error:
            raise OperatorError(str(error), where=name) from None

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        text = self.text(name, default)
        if text not in allowed:
            raise OperatorError(f"{text!r} is none of {', '.join(allowed)}", where=name)
        return text
