"""The command line. It wires everything together and is the only part that prints.

Each verb lives in a module of its own; here they are collected, and every error that an operator
can do something about becomes a sentence and an exit code instead of a traceback.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vidgen_worker import __version__
from vidgen_worker.cli import (
    check,
    credit,
    dashboard,
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
from vidgen_worker.client.database import ClientError, DatabaseUnreachableError
from vidgen_worker.client.service import ServiceUnavailableError, VideoGenerationError
from vidgen_worker.config import SettingsError
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.telemetry.loopback_http import PortError


class _Verbs(TyperGroup):
    """Repeats an argument that it can't use only spelled out."""

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's own
        """Read the arguments that stand before the verb."""
        with _spelled_out():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own
        """Run the verb."""
        with _spelled_out():
            return super().invoke(ctx)


@contextlib.contextmanager
def _spelled_out() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: about what somebody typed, or passed on
            error.message = printable(str(error.message))  # type: ignore[attr-defined]
        raise


EPILOG = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."

app = typer.Typer(
    name="vidgen-worker",
    cls=_Verbs,
    help="A trusted worker for paid AI video generation on Supabase. "
    "Settings come from the environment, systemd credentials and .env.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    work, check, demo, sandbox, dashboard, tasks, stats, credit, limits, gate, reconcile, prune,
):  # fmt: skip
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
    except PortError as error:
        fail(ExitCode.FAILED, str(error))
    except (DatabaseUnreachableError, ServiceUnavailableError) as error:
        fail(ExitCode.UNAVAILABLE, str(error))
    except (ClientError, VideoGenerationError, LookupError) as error:
        fail(ExitCode.FAILED, str(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
