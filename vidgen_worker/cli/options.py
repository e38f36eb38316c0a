"""Options that several verbs have, and how their durations and times are read."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from vidgen_worker.domain.durations import parse_duration
from vidgen_worker.domain.foreign_text import quoted

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
TaskId = Annotated[str, typer.Argument(help="The task's id, or its beginning.", show_default=False)]
User = Annotated[str, typer.Argument(help="The user's id, or its beginning.", show_default=False)]


LONGEST = timedelta(days=36_525)
"""A hundred years: of more, times leave the calendar."""


def duration(text: str | None, option: str) -> timedelta | None:
    """Read a duration."""
    if text is None:
        return None
    try:
        return _length(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def moment(text: str | None, option: str) -> datetime | timedelta | None:
    """Read a time, by UTC where it names no zone; or a duration, from now on."""
    if text is None:
        return None
    try:
        parse_duration(text)
    except ValueError:
        pass  # a time, then
    else:
        return duration(text, option)
    try:
        when = datetime.fromisoformat(text)
        return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is neither a time (2026-12-24T18:00:00+00:00) nor a duration (15m)."
        raise typer.BadParameter(message, param_hint=option) from error


def _length(text: str) -> timedelta:
    length = parse_duration(text)
    if not isinstance(length, timedelta) or length > LONGEST:
        raise ValueError(f"{quoted(text)} is longer than a hundred years")
    return length
