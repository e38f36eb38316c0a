"""`gate`: see what is paused and why; close and open it by hand."""

from typing import Annotated

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json, Yes
from vidgen_worker.cli.output import console, fail, need_yes, print_json, table
from vidgen_worker.client.database import load_client_settings, open_database
from vidgen_worker.domain.keys import ALL_MODELS

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
        columns = ("scope", "model", "reason", "message", "closed", "probed next", "probes")
        lines = [
            (g["scope"], g["model"], g["reason"], g["message"], g["closed_at"], g["until"],
             g["probes"])
            for g in gates
        ]  # fmt: skip
        console().print(table(columns, lines))


def close(
    model: Model = ALL_MODELS,
    message: Annotated[str, typer.Option(help="What users read meanwhile.")] = PAUSED,
    yes: Yes = False,
) -> None:
    """Close a gate for every worker, until you open it: waiting tasks stay untouched."""
    need_yes(f"Stop all new paid submits of {_name(model)}, for every worker.", yes=yes)
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        parameters = {"model": model, "message": message, "details": "closed on the command line"}
        database.rows("close_gate", parameters)
    console().print(
        f"Closed: {_name(model)}. Open it with: vidgen-worker gate open '{model}' --yes"
    )


def open_gate(
    model: Model = ALL_MODELS,
    scope: Annotated[
        str | None, typer.Option(help="Only the gate of this scope, as `gate list` shows it.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Open a gate, whoever closed it; a trouble that lasts closes it again."""
    of = "" if scope is None else f" in scope {scope}"
    need_yes(f"Let paid submits of {_name(model)}{of} start again.", yes=yes)
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        opened = database.rows("open_gate", {"model": model, "scope": scope})
    if not opened:
        fail(
            ExitCode.FAILED,
            f"The gate of {_name(model)}{of} is not closed; see: vidgen-worker gate list",
        )
    reasons = ", ".join(sorted(f"{gate['reason']} in scope {gate['scope']}" for gate in opened))
    console().print(f"Opened: {_name(model)} (it was closed by {reasons}).", soft_wrap=True)


def _name(model: str) -> str:
    return "all models" if model == ALL_MODELS else model
