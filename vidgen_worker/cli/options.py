"""Options that several verbs have, and how their durations and times are read."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from vidgen_worker.domain.durations import parse_duration

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
TaskId = Annotated[str, typer.Argument(help="The task's id, or its beginning.", show_default=False)]
User = Annotated[str, typer.Argument(help="The user's id, or its beginning.", show_default=False)]


def duration(text: str | None, option: str) -> timedelta | None:
    """Read a duration."""
    if text is None:
        return None
    try:
        length = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    return length if isinstance(length, timedelta) else None


def moment(text: str | None, option: str) -> datetime | timedelta | None:
    """Read a time, or a duration: from now on, by the database's clock."""
    if text is None:
        return None
    try:
        length = parse_duration(text)
    except ValueError:
        length = None
    if isinstance(length, timedelta):
        return length
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is neither a time (2026-12-24T18:00:00+00:00) nor a duration (15m)."
        raise typer.BadParameter(message, param_hint=option) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)
