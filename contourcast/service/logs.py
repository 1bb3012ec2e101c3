"""What is logged, and how: lines of JSON, and nothing that a foreign library quotes."""

from __future__ import annotations

import json
import logging
import sys
import threading

import structlog

from contourcast.service.problems import log_fault


def configure_logging(level: str) -> None:
    """JSON lines on stderr; other libraries' lines without the errors that they quote."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Quiet())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dbos").addHandler(handler)  # else it adds one that prints what it is told
    logging.captureWarnings(True)
    threading.excepthook = lambda failed: log_fault(
        "thread_failed", failed.exc_value or failed.exc_type(), trace=""
    )


class _Quiet(logging.Formatter):
    """Lines of foreign libraries: who and how bad; text of theirs may quote patients' data."""

    def format(self, record: logging.LogRecord) -> str:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        return json.dumps(
            {
                "event": "library",
                "level": record.levelname.lower(),
                "logger": record.name,
                "place": f"{record.filename}:{record.lineno}",
                "kind": kind,
            }
        )
