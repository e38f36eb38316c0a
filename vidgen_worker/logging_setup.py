"""How the log looks: JSON for machines, one readable line each for people, always on stderr.

Every line names its level in capitals and its logger, `video_generation` for ours, so that
`grep ERROR | grep video_generation` finds the failures in both forms. It decides nothing about
what is said: that is the business of the events. It never lets a value break a line: control
characters are escaped, long values cut, and secrets that it was told of masked.
"""

import logging
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LOGGER = "video_generation"
TRACEBACKS = ("exception", "traceback")
LONGEST_VALUE = 2000
LONGEST_TRACEBACK = 12_000
MOST_ITEMS = 50
DEEPEST = 4
SHORTEST_SECRET = 6

LogFormat = Literal["auto", "json", "console"]

_CONTROL = {
    code: f"\\x{code:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\n\r\t"
} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_CONTROL_BUT_NEWLINE = {code: text for code, text in _CONTROL.items() if chr(code) != "\n"}


def escape(text: str) -> str:
    """Return the text with every control character spelled out, line ends too."""
    return text.translate(_CONTROL)


def configure(
    level: str = "info",
    form: LogFormat = "auto",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Set up structlog, and the standard library's logging in the same form.

    `secrets` are masked wherever they turn up. Libraries speak from warning on, whatever our own
    level is: below it they print whole URLs, signatures included.
    """
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
        _Sanitize(frozenset(s for s in secrets if len(s) >= SHORTEST_SECRET), console=console),
    ]
    renderer = _console_renderer(colors=out.isatty()) if console else _json_renderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
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


class _Sanitize:
    """Escape, shorten and mask the values of a line."""

    def __init__(self, secrets: frozenset[str], *, console: bool) -> None:
        # The longest first: one secret may be the beginning of another.
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._console = console

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        clean: MutableMapping[str, Any] = {}
        for name, value in event.items():
            if name.startswith("_"):
                clean[name] = value
            elif name in TRACEBACKS:
                # The end of a traceback tells more than its beginning. JSON escapes its line ends;
                # on a console it follows its line, under the name that the renderer looks for.
                text = self._mask(str(value))[-LONGEST_TRACEBACK:]
                clean["exception"] = text.rstrip().translate(_CONTROL_BUT_NEWLINE)
            else:
                clean[self._text(str(name))] = self._value(value, DEEPEST)
        return clean

    def _value(self, value: object, depth: int) -> object:
        match value:
            case None | bool() | int() | float():
                return value
            case Mapping() if depth:
                return {
                    self._text(str(k)): self._value(v, depth - 1)
                    for k, v in list(value.items())[:MOST_ITEMS]
                }
            case list() | tuple() | set() | frozenset() if depth:
                return [self._value(item, depth - 1) for item in list(value)[:MOST_ITEMS]]
            case _:
                return self._text(str(value))

    def _text(self, text: str) -> str:
        text = self._mask(text)
        if len(text) > LONGEST_VALUE:
            text = f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"
        # A lone surrogate can't be written as UTF-8. The JSON renderer escapes it by itself.
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return escape(text) if self._console else text

    def _mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "****")
        return text


def _json_renderer() -> Processor:
    return structlog.processors.JSONRenderer(default=str)


def _console_renderer(*, colors: bool) -> Processor:
    styles = structlog.dev.ConsoleRenderer.get_default_level_styles(colors)
    return structlog.dev.ConsoleRenderer(
        colors=colors,
        level_styles={name.upper(): style for name, style in styles.items()},
        # Not the rich one: it shows local variables, and with them secrets.
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=40,
        sort_keys=False,
    )
