"""The form of the log: JSON for machines, one readable line each for people, always on stderr.

Every line names its level in capitals and its logger, `video_generation` for ours, so that
`grep ERROR | grep video_generation` finds the failures in both forms. The events decide the
content. No value breaks a line or shows a secret of this process: every text, also of libraries,
goes through `foreign_text.printable`.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from vidgen_worker.domain import masking
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.telemetry.late_log import LOGGER

TRACEBACKS = ("exception", "traceback")
LONGEST_VALUE = 2000
LONGEST_TRACEBACK = 12_000
MOST_ITEMS = 50
DEEPEST = 4

_ID = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")

LogFormat = Literal["auto", "json", "console"]


def configure(
    level: str = "info",
    form: LogFormat = "auto",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Set up structlog, and the standard library's logging in the same form.

    `secrets` are hidden beside those that the process knows. Libraries log from warning on,
    whatever our own level is: below it they print whole URLs, signatures included.
    """
    masking.learn(secrets)
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.add_log_level,
        _name_the_logger,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _sanitized,
    ]
    renderer = _console_renderer(colors=out.isatty()) if console else _json_renderer()
    ends: list[Processor] = [_compact, renderer] if console else [renderer]
    structlog.configure(
        processors=[*shared, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(out)
    # Its own level too: a library with a variable for "debug" ignores the root's level.
    handler.setLevel(max(threshold, logging.WARNING))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
    logging.captureWarnings(capture=True)


def _name_the_logger(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the logger's name, spell the level in capitals, and put both first."""
    record = event.get("_record")
    head = {
        "timestamp": event.pop("timestamp", None),
        "level": str(event.pop("level", "info")).upper(),
        "logger": event.pop("logger", None) or (record.name if record else LOGGER),
        "event": event.pop("event", ""),
    }
    return {**head, **event}


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the lines of libraries."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Report a library's malformed line without its values, which `logging` would print."""
        error = sys.exc_info()[0]
        kind = error.__name__ if error else "an error"
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(f"WARNING {record.name}: a line could not be written ({kind})\n")


def _sanitized(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make every value of a line printable: escaped, masked, cut."""
    clean: MutableMapping[str, Any] = {}
    for name, value in event.items():
        if name.startswith("_"):
            clean[name] = value
        elif name in TRACEBACKS:
            # The end of a traceback says more than its beginning. JSON escapes its line ends;
            # on a console it follows its line, under the name that the renderer looks for.
            text = masking.masked(str(value)[-2 * LONGEST_TRACEBACK :])[-LONGEST_TRACEBACK:]
            clean["exception"] = printable(text.rstrip(), LONGEST_TRACEBACK, lines=True)
        else:
            clean[printable(str(name), LONGEST_VALUE)] = _value(value, DEEPEST)
    return clean


def _value(value: object, depth: int) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case UUID():
            return str(value)
        case Mapping() if depth:
            return {
                printable(str(k), LONGEST_VALUE): _value(v, depth - 1)
                for k, v in list(value.items())[:MOST_ITEMS]
            }
        case list() | tuple() | set() | frozenset() if depth:
            return [_value(item, depth - 1) for item in list(value)[:MOST_ITEMS]]
        case _:
            return printable(str(value), LONGEST_VALUE)


def _compact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Shorten a line for people: the time of day, and ids to what the verbs take for them."""
    shown: MutableMapping[str, Any] = {}
    for name, value in event.items():
        if name == "timestamp" and isinstance(value, str):
            shown[name] = value[11:23]  # 2026-11-30T16:55:13.123456Z
        elif isinstance(value, str) and name not in TRACEBACKS:
            shown[name] = _ID.sub(r"\1", value)
        elif value is not None:
            shown[name] = value
    return shown


def _json_renderer() -> Processor:
    return structlog.processors.JSONRenderer(default=str)


def _console_renderer(*, colors: bool) -> Processor:
    styles = structlog.dev.ConsoleRenderer.get_default_level_styles(colors)
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        level_styles={name.upper(): style for name, style in styles.items()},
        # The formatter of rich would show local variables, and so secrets.
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=40,
        sort_keys=False,
    )
