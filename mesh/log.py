"""How the daemons log: one set-up for all, and the phrases that tests, dashboards and people search for.

An event is a constant phrase plus keyword fields. Levels: error = a person must act; warning = degraded; info = a pod
or the configuration changed state; debug = one connection. Does not own the access log: that is written by the core.

Keyword fields common to all: `uid`, `identity`, `type_url`, `version`, `why`, `where`, `path`, `address`, `node`.
"""

from __future__ import annotations

import logging
import sys
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

# Fields of the core's access log, Istio's names.
ACCESS_FIELDS: Final = (
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "error",
)


def configure(format: str = "console", level: str = "info") -> None:
    """Everything to stderr, the standard library's loggers included. May be called again to change the level."""
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
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(_STDLIB[level]),
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
    return structlog.get_logger(component=component)


def refuse(daemon: str, error: OperatorError) -> NoReturn:
    """The end of a daemon that its operator has to help: one sentence on stderr, exit code 2."""
    print(f"{daemon}: {error}", file=sys.stderr)
    raise SystemExit(2)
