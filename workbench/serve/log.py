"""What the server writes to standard error: text, or with ``--log json`` an object a line.

An object has ``time`` (UTC), ``level``, ``logger``, ``event`` (the message) and the fields of the
event; a traceback stands in ``error``. Of requests only the JSON form has a line each
(:mod:`.access`): they are for machines to count.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LogForm = Literal["text", "json"]


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def write_log(form: LogForm) -> None:
    """From now on this process logs so; for ``text`` everything stays as it was."""
    if form == "text":
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("workbench.access", "workbench.serve"):
        logging.getLogger(name).setLevel(logging.INFO)
