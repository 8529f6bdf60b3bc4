"""Log levels by scope, as a person changes them at run time: `debug`, `access=debug,xds:warn,info`, `reset`. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from mesh import log

CORE_SCOPES: Final = ("access", "core")
"""Those that the core writes; all others are the shell's components."""


@dataclass(frozen=True, slots=True)
class Levels:
    """`level` holds wherever `scopes` does not say otherwise."""

    level: str
    scopes: Mapping[str, str] = field(default_factory=dict)

    def of(self, scope: str) -> str:
        return self.scopes.get(scope, self.level)

    def changed(self, spec: str, scopes: Collection[str]) -> Levels:
        """A bare level takes back what was said of single scopes before. Raises ValueError: a sentence."""
        level, single = self.level, dict(self.scopes)
        parts = [part.strip() for part in spec.split(",")]
        for part in (p for p in parts if not re.search("[=:]", p)):
            level, single = _level(part), {}
        for part in (p for p in parts if re.search("[=:]", p)):
            scope, _, wanted = re.sub("[=:]+", "=", part, count=1).partition("=")
            if scope not in scopes:
                raise ValueError(f"{scope!r} logs nothing; there are {', '.join(sorted(scopes))}")
            single[scope] = _level(wanted)
        return Levels(level, single)

    def __str__(self) -> str:
        return ",".join([*(f"{scope}={level}" for scope, level in sorted(self.scopes.items())), self.level])


def _level(text: str) -> str:
    if text not in log.LEVELS:
        raise ValueError(f"level must be one of {', '.join(log.LEVELS)}, not {text!r}")
    return text
