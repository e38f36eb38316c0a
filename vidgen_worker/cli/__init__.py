"""The command line. It wires everything together and is the only part that prints.

Each verb lives in a module of its own; here they are collected, and every error that an operator
can do something about becomes a sentence and an exit code instead of a traceback.
"""

import sys
from typing import Annotated

import typer

from vidgen_worker import __version__
from vidgen_worker.cli import (
    check,
    credit,
    demo,
    gate,
    limits,
    prune,
    reconcile,
    sandbox,
    stats,
    tasks,
    work,
)
from vidgen_worker.cli.output import ExitCode, fail
from vidgen_worker.client import ClientError, DatabaseUnreachableError
from vidgen_worker.config import SettingsError
from vidgen_worker.metrics import MetricsPortError
from vidgen_worker.service import ServiceUnavailableError, VideoGenerationError

EPILOG = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."

app = typer.Typer(
    name="vidgen-worker",
    help="A trusted worker for paid AI video generation on Supabase. "
    "Settings come from the environment, systemd credentials and .env.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (work, check, demo, sandbox, tasks, stats, credit, limits, gate, reconcile, prune):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vidgen-worker {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before every verb."""
    del version


def main() -> None:
    """Run the command line, and end the process with one of the documented codes."""
    try:
        app(prog_name="vidgen-worker")
    except SettingsError as error:
        fail(
            ExitCode.CONFIGURATION,
            "The configuration can't be used.",
            *[f"  {problem}" for problem in error.problems],
            "Set these in the environment or in .env (.env.example lists all of them). "
            "To try it without any account: vidgen-worker demo",
        )
    except MetricsPortError as error:
        fail(ExitCode.FAILED, str(error))
    except (DatabaseUnreachableError, ServiceUnavailableError) as error:
        fail(ExitCode.UNAVAILABLE, str(error))
    except (ClientError, VideoGenerationError, LookupError) as error:
        fail(ExitCode.FAILED, str(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
