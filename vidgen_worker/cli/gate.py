"""`gate`: see what is paused and why; close and open it by hand."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.ids import check_name
from vidgen_worker.cli.options import Json, Yes, moment
from vidgen_worker.cli.output import console, fail, lasting, need_yes, print_json, table
from vidgen_worker.client.database import Database, load_client_settings, open_database
from vidgen_worker.domain.keys import ALL_MODELS

WIDE = 120
"""Columns of a terminal from which on the list shows what users read."""
PAUSED = "Video generation is paused by the operator."

Model = Annotated[str, typer.Argument(help="The model; * is all of them.")]


def list_gates(json: Json = False) -> None:
    """Show every closed gate: reason, since when, and when it is probed next."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        gates = database.rows("gates")
    if json:
        print_json(gates)
    elif not gates:
        console().print("All gates are open.")
    else:
        console().print(gates_table(gates))


def gates_table(gates: list[dict[str, Any]], title: str = "") -> object:
    """Return the table of closed gates; on a wide terminal with what their users read."""
    wide = console().width >= WIDE
    columns = (
        "model",
        "reason",
        "scope",
        "closed for",
        "next look in",
        *(("message",) if wide else ()),
    )
    lines = [
        (g["model"], g["reason"], g["scope"], lasting(g["closed_for"].total_seconds()),
         "by hand only" if g["next_in"] is None else lasting(g["next_in"].total_seconds()),
         *((g["message"],) if wide else ()))
        for g in gates
    ]  # fmt: skip
    return table(columns, lines, title)


def close(
    model: Model = ALL_MODELS,
    message: Annotated[str, typer.Option(help="What users read meanwhile.")] = PAUSED,
    until: Annotated[
        str | None,
        typer.Option(help="Open by itself then: a time (ISO 8601) or a duration (2h)."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Close a gate for every worker, until you open it: waiting tasks stay untouched."""
    _check_model(model)
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        end = moment(until, "--until")
        said = "" if end is None else f" until {_end(database, end):%Y-%m-%d %H:%M:%S} UTC"
        need_yes(f"Stop new paid submissions of {name_of(model)}, for every worker{said}.", yes=yes)
        parameters = {
            "model": model, "message": message, "details": "closed on the command line",
            "until": _end(database, end) if end is not None else None,
        }  # fmt: skip
        database.rows("close_gate", parameters)
    console().print(
        f"Closed: {name_of(model)}{said}. Open it with: vidgen-worker gate open '{model}' --yes"
    )


def _end(database: Database, end: datetime | timedelta) -> datetime:
    """When that is, by the database's clock. Ends the process where it is over."""
    now: datetime = database.rows("clock")[0]["now"]
    when = now + end if isinstance(end, timedelta) else end
    if when <= now:
        fail(ExitCode.USAGE, f"--until: {when:%Y-%m-%d %H:%M:%S %Z} is over. Nothing was done.")
    return when.astimezone(UTC)


def _check_model(model: str) -> None:
    """End the process where no model of the installed SDK has this name."""
    # Here, because only this verb waits for the SDK.
    from vidgen_worker.domain.resolution import image_models, video_models  # noqa: PLC0415

    check_name(model, {ALL_MODELS, *image_models(), *video_models()}, "model")


def open_gate(
    model: Model = ALL_MODELS,
    scope: Annotated[
        str | None, typer.Option(help="Only the gate of this scope, as `gate list` shows it.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Open a gate, whoever closed it; a trouble that lasts closes it again."""
    of = "" if scope is None else f" in scope {scope}"
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        if not any(gate["model"] == model for gate in database.rows("gates")):
            _check_model(model)  # a gate may be of a model that the SDK no longer knows
        need_yes(f"Let paid submissions of {name_of(model)}{of} begin again.", yes=yes)
        opened = database.rows("open_gate", {"model": model, "scope": scope})
    if not opened:
        fail(
            ExitCode.FAILED,
            f"The gate of {name_of(model)}{of} is not closed; see: vidgen-worker gate list",
        )
    reasons = ", ".join(sorted(f"{gate['reason']} in scope {gate['scope']}" for gate in opened))
    console().print(f"Opened: {name_of(model)} (it was closed by {reasons}).", soft_wrap=True)


def name_of(model: str) -> str:
    """Return the model, in words where it is all of them."""
    return "all models" if model == ALL_MODELS else model
