"""`init`: a file of settings to fill in."""

import os
from pathlib import Path
from typing import Annotated

import typer

import vidgen_worker
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.output import console, fail
from vidgen_worker.domain.foreign_text import printable

OWNERS_ONLY = 0o600
PACKAGE = Path(vidgen_worker.__file__).parent
TEMPLATES = (PACKAGE / "env.example", PACKAGE.parent / ".env.example")
"""In an installed package, and in a checkout."""


def init(
    file: Annotated[Path, typer.Option(help="The file to write.")] = Path(".env"),
) -> None:
    """Write a file of settings to fill in. A file that is there stays as it is."""
    template = next(path for path in TEMPLATES if path.is_file()).read_text(encoding="utf-8")
    name = printable(str(file), 200)
    try:
        # For its owner only, because it will hold keys; an existing file is never overwritten.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNERS_ONLY)
    except FileExistsError:
        fail(
            ExitCode.FAILED,
            f"{name} is there already, and stays as it is. To write another one: "
            "vidgen-worker init --file NAME",
        )
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        fail(ExitCode.FAILED, f"{name} can't be written: {reason}. Nothing was done.")
    try:
        with open(descriptor, "w", encoding="utf-8") as out:  # noqa: PTH123 - it has no path
            out.write(template)
    except OSError as error:  # the disk is full: half a file would stand in the way of the next try
        file.unlink()
        fail(ExitCode.FAILED, f"{name} can't be written: {error.strerror}. Nothing is left of it.")
    console().print(
        f"{name} is written, readable by you alone. Fill in DATABASE_URL, SUPABASE_URL, "
        "SUPABASE_SERVICE_ROLE_KEY and RUNWAYML_API_SECRET; all else has a default. "
        "Then: vidgen-worker migrate, vidgen-worker check, vidgen-worker run",
        soft_wrap=True,
    )
