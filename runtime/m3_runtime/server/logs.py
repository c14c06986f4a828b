"""The log: lines on standard error, as JSON or for people, each with the ids of the request that it is about."""

import json
import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class LogLevel(StrEnum):
    """The least that is logged. Requests are `info`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line is written."""

    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True)
class LogSettings:
    """What is logged, and how."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.JSON


log_fields: ContextVar[dict[str, str] | None] = ContextVar("log_fields", default=None)
"""The ids of the request that is answered here; they stand in every line that is logged meanwhile."""

_USUAL_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What a line says beside time, level and event. Of an error only its kind: its message may hold a text.

    Names with an underscore are other packages' own, which Ray gives every record.
    """
    extra = {key: value for key, value in vars(record).items() if not key.startswith("_")}
    fields: dict[str, object] = {key: value for key, value in extra.items() if key not in _USUAL_FIELDS}
    fields |= log_fields.get() or {}
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__name__
    return fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, process, event, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "pid": record.process,
            "event": record.getMessage(),
        }
        return json.dumps(line | _fields(record), ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """The same for people: `2026-01-31T12:00:00.000+00:00 info request route=/embed status=200 …`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields = [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        return " ".join([_time(record), record.levelname.lower(), record.getMessage(), *fields])


def _word(value: object) -> str:
    """A value without blanks or line ends, so that a line stays one line and its fields stay apart.

    >>> _word("a b"), _word("/embed"), _word(2)
    ('"a b"', '/embed', '2')
    """
    text = str(value)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


def log_to_stderr(settings: LogSettings) -> None:
    """Send this process's logs to standard error. Other packages' lines begin at warnings, whatever is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.format is LogFormat.JSON else TextLines())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("m3_runtime").setLevel(level)
