"""A log that is set up when the first line comes.

Most verbs of the command line log nothing, and the import of the log takes longer than some verbs.
Code that logs calls `settle` or a logger of the standard library.
"""

import logging
import sys
import threading
from collections.abc import Callable

LOGGER = "video_generation"


class _Late(logging.Handler):
    """Sets the log up, and passes the first line to it."""

    set_up: Callable[[], None]

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on."""
        settle()
        logging.getLogger(record.name).handle(record)


_late = _Late()


def configure_late(set_up: Callable[[], None]) -> None:
    """Let the first line from warning on call `set_up`, whose handler replaces this one."""
    _late.set_up = set_up
    logging.basicConfig(handlers=[_late], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)


def settle() -> None:
    """Set the log up now, where `configure_late` has postponed that."""
    if _late in logging.root.handlers:
        logging.root.removeHandler(_late)
        _late.set_up()


def catch_the_rest() -> None:
    """Write unexpected errors to the log, which Python itself would print with secrets."""
    log = logging.getLogger(LOGGER)

    def uncaught(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread else "unknown"
            log.error("thread %s ended unexpectedly", name, exc_info=args.exc_value)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, BrokenPipeError):
            log.error("ignored while something was cleared away", exc_info=args.exc_value)

    threading.excepthook = uncaught
    sys.unraisablehook = unraisable
