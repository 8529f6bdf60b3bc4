"""How the daemons log: one set-up for all, and the phrases that tests, dashboards and people search for.

An event is a constant phrase plus keyword fields. Levels: error = a person must act; warning = degraded; info = a pod
or the configuration changed state; debug = one connection. Does not own the access log: that is written by the core.

Keyword fields common to all: `uid`, `identity`, `type_url`, `version`, `why`, `where`, `path`, `address`, `node`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import structlog

from mesh.errors import OperatorError

FORMATS: Final = ("console", "json")
LEVELS: Final = ("error", "warn", "info", "debug", "trace")
_STDLIB: Final = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

_METHODS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Events that more than one part emits or reads.
STARTED: Final = "started"
READY: Final = "ready"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"
POD_ENROLLED: Final = "pod enrolled"
POD_REFUSED: Final = "pod refused"
POD_WITHDRAWN: Final = "pod withdrawn"
CONFIG_APPLIED: Final = "configuration applied"
CONFIG_REFUSED: Final = "configuration refused"
CERTIFICATE_ISSUED: Final = "certificate issued"
CERTIFICATE_FAILED: Final = "certificate failed"
PEER_CONNECTED: Final = "peer connected"
PEER_LOST: Final = "peer lost"

# Fields of the core's access log, Istio's names; the last three are ours.
ACCESS_FIELDS: Final = (
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "error",
    "trace_id",
    "response_flags",
    "dry_run",
)


_components: set[str] = set()


class _Scopes:
    """Drops what is below the level of its component."""

    def __init__(self, level: str, scopes: Mapping[str, str]) -> None:
        self._default = _STDLIB[level]
        self._least = {component: _STDLIB[own] for component, own in scopes.items()}

    def __call__(self, _: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        least = self._least.get(event.get("component", ""), self._default)
        if _METHODS.get(method, logging.CRITICAL) < least:
            raise structlog.DropEvent
        return event


def configure(format: str = "console", level: str = "info", scopes: Mapping[str, str] | None = None) -> None:
    """Everything to stderr, the standard library's loggers included. May be called again to change the levels.

    `scopes`: component -> level, where it is not `level`."""
    lowest = min(_STDLIB[each] for each in (level, *(scopes or {}).values()))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*([_Scopes(level, scopes)] if scopes else []), *shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    _adopt_standard_library(shared, render)


def _adopt_standard_library(shared: list[structlog.typing.Processor], render: structlog.typing.Processor) -> None:
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[strip, render]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def get(component: str) -> Any:
    """A logger whose lines carry `component`, for instance `xds`."""
    _components.add(component)
    return structlog.get_logger(component=component)


def components() -> frozenset[str]:
    """Everything in this process that may have a level of its own."""
    return frozenset(_components)


def refuse(daemon: str, error: OperatorError) -> NoReturn:
    """The end of a daemon that its operator has to help: one sentence on stderr, exit code 2."""
    print(f"{daemon}: {error}", file=sys.stderr)
    raise SystemExit(2)
