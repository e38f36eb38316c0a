"""The command line. It wires everything together and is the only part that prints.

Each verb lives in a module of its own, which is imported when it is used. Here every error that an
operator can do something about becomes a sentence and an exit code instead of a traceback.
"""

import contextlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vidgen_worker import __version__
from vidgen_worker.cli.exit_codes import ExitCode, ReaderLeftError
from vidgen_worker.cli.verbs import commands


class _Verbs(TyperGroup):
    """All verbs, and what becomes of their errors."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - typer's own
        super().__init__(**{**options, "commands": commands()})

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's own
        """Read the arguments that stand before the verb. Raises BadParameter for an empty one."""
        with _errors_become_sentences():
            _refuse_empty(args[1])
            context = super().make_context(*args, **options)
        # The verb runs within the context, which tells an error to what was registered here.
        context.with_resource(_errors_become_sentences())
        return context


def _refuse_empty(arguments: list[str]) -> None:
    """Raise BadParameter for an empty value, which a variable that is not set would be.

    It would mean no filter, the working directory, or another reference each time.
    """
    for before, given in pairwise(["", *arguments]):
        option, _, value = given.partition("=")
        if not given.strip():
            option = before
        elif not option.startswith("--") or value.strip() or option == given:
            continue
        raise typer.BadParameter(
            "It is empty, perhaps of a variable that is not set. Give a value, or leave it out.",
            param_hint=option if option.startswith("-") else None,
        )


@contextlib.contextmanager
def _errors_become_sentences() -> Iterator[None]:
    """End with a sentence and an exit code for every error that an operator can do something about.

    An error of the arguments repeats them with their control characters spelled out. An error that
    nobody expected goes on.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        raise ReaderLeftError from None
    except Exception as error:
        # Imported here, because both need other boxes, which a verb that fails has imported.
        if hasattr(error, "format_message"):  # typer's own: about what somebody typed, or passed on
            from vidgen_worker.domain.foreign_text import printable  # noqa: PLC0415

            said = str(error.message)  # type: ignore[attr-defined]
            said = said.replace("Value error, ", "", 1)  # its library's own words
            error.message = printable(said, lines=True)  # type: ignore[attr-defined]
        else:
            from vidgen_worker.cli.errors import end_with  # noqa: PLC0415

            end_with(error)
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
    rich_markup_mode=None,  # the other help takes longer to import than most verbs to answer
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
