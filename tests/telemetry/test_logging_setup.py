"""The form of the log: one line each, greppable, nothing secret, nothing that breaks it."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from vidgen_worker.telemetry.late_log import catch_the_rest
from vidgen_worker.telemetry.log import LogFormat, configure

NASTY = "a\nb\r\tc\x1b[31m\x00\x85\u2028d\ud800"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hooks = threading.excepthook, sys.unraisablehook
    yield
    threading.excepthook, sys.unraisablehook = hooks
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def log_of(form: LogFormat, level: str = "info", **values: object) -> list[str]:
    out = io.StringIO()
    configure(level, form, stream=out, secrets=["hunter22"])
    structlog.get_logger().log(logging.ERROR, "Video generation failed", **values)
    return out.getvalue().split("\n")[:-1]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_failures_line_holds_the_words_that_operators_grep_for(form: LogFormat) -> None:
    (line,) = log_of(form, task="t", attempt=1, code="CONTENT_REJECTED")
    for word in ("ERROR", "video_generation", "Video generation failed", "CONTENT_REJECTED"):
        assert word in line


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_value_breaks_a_line(form: LogFormat) -> None:
    (line,) = log_of(form, details=NASTY, nested={NASTY: [NASTY]}, big="x" * 10**6)
    assert len(line) < 10_000
    assert all(ord(character) >= 0x20 for character in line)
    assert "\u2028" not in line
    line.encode()


def test_json_lines_are_json_with_level_and_logger() -> None:
    (line,) = log_of("json", task="t", details=NASTY, deep=[[[[[[1]]]]]])
    said: dict[str, Any] = json.loads(line)
    assert said["level"] == "ERROR"
    assert said["logger"] == "video_generation"
    assert said["event"] == "Video generation failed"


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_masked_in_every_place_of_a_line(form: LogFormat) -> None:
    (line,) = log_of(form, details="password hunter22", nested={"url": "x://u:hunter22@h"})
    assert "hunter22" not in line
    assert "****" in line


KEY = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_way_into_the_log_shows_a_secret(form: LogFormat) -> None:
    out = io.StringIO()
    configure("info", form, stream=out, secrets=[KEY])
    catch_the_rest()
    library = logging.getLogger("httpx")
    error = ValueError(f"Illegal header value {KEY.encode() + bytes([10])!r}")
    library.error("header %r", KEY.encode() + bytes([10]))
    library.error("broken: %s", KEY[:60] + chr(10) + "    " + KEY[60:])
    library.error("with a traceback", exc_info=error)
    library.error("said %s and %s", KEY)  # one value too few: logging itself fails
    structlog.get_logger().error(KEY, details=[KEY], **{KEY: KEY})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(KEY, stacklevel=1)
    thread = threading.Thread(target=_fail_with, args=[error])
    thread.start()
    thread.join()
    text = out.getvalue()
    assert len(text.splitlines()) >= 7
    assert KEY not in text
    assert KEY[20:60] not in text
    assert KEY.rpartition(".")[2] not in text


def _fail_with(error: Exception) -> None:
    raise error


def test_a_library_set_to_debug_logs_nothing_below_warning() -> None:
    out = io.StringIO()
    configure("debug", "json", stream=out)
    logging.getLogger("runwayml").setLevel(logging.DEBUG)  # as RUNWAYML_LOG=debug does
    try:
        logging.getLogger("runwayml").debug("Request options: %s", {"headers": "…"})
    finally:
        logging.getLogger("runwayml").setLevel(logging.NOTSET)
    assert out.getvalue() == ""


def test_a_traceback_is_one_json_value_and_readable_on_a_console() -> None:
    assert len(log_of("json", traceback="Traceback:\n  one\n  two\n")) == 1
    assert len(log_of("console", traceback="Traceback:\n  one\n  two\n")) == 4


def test_a_pipe_gets_json() -> None:
    (line,) = log_of("auto")
    json.loads(line)


def test_libraries_log_in_the_same_form_and_only_from_warning_on() -> None:
    out = io.StringIO()
    configure("debug", "json", stream=out)
    logging.getLogger("httpx").info("GET https://host/signed?token=secret")
    logging.getLogger("psycopg").warning("connection %s", "lost")
    (line,) = out.getvalue().splitlines()
    said = json.loads(line)
    assert (said["logger"], said["level"]) == ("psycopg", "WARNING")
    assert said["event"] == "connection lost"


def test_the_level_is_obeyed() -> None:
    out = io.StringIO()
    configure("warning", "json", stream=out)
    structlog.get_logger().log(logging.INFO, "Video generation started")
    assert out.getvalue() == ""
