"""What the operator sees: metrics, and a line of JSON an event; never a text of anybody."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The service's metrics, for Prometheus; labels name no user and no key."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ours: Any = {"registry": self.registry, "namespace": "prefheads"}
        timed: Any = ours | {"buckets": SECONDS}
        route = ("method", "route")
        self.requests = Counter("requests", "Requests answered.", (*route, "status"), **ours)
        whole = "From request to the end of the answer."
        first = "From request to the first piece of text."
        self.seconds = Histogram("request_seconds", whole, route, **timed)
        self.first = Histogram("first_piece_seconds", first, **timed)
        self.active = Gauge("active_requests", "Being answered now.", **ours)
        self.waiting = Gauge("waiting_jobs", "In the engine's queue, not begun.", **ours)
        self.tokens = Counter("tokens", "Tokens of prompts and answers.", ("kind",), **ours)
        self.steered = Counter("answers", "Answers by how they were steered.", ("mode",), **ours)
        self.cut = Counter("cut_profiles", "Prompts whose profile was cut to fit.", **ours)
        self.batch = Histogram("batch_rows", "Jobs in a batch.", buckets=ROWS, **ours)


class JsonLines(logging.Formatter):
    """A record as a line of JSON: its message, its ``fields``, and of an error the kind and place.

    The message of an error may quote what somebody wrote, so it is left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            line["error"] = type(error).__name__
            line["at"] = [f"{frame.filename}:{frame.lineno}" for frame in frames[-8:]]
        return json.dumps(line, ensure_ascii=False)


def log_json(level: int = logging.INFO) -> None:
    """Write the service's log, and the web server's, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("prefheads.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "prefheads.serve" else logging.WARNING)
