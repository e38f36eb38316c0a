"""`check`: the effective settings, then every dependency in turn, red or green, with the remedy.

It reads only: no bucket is created, nothing is submitted, no row is written.
"""

from dataclasses import asdict

import typer

from vidgen_worker.cli.check_database import check_postgres
from vidgen_worker.cli.check_films import check_films
from vidgen_worker.cli.check_services import (
    check_media,
    check_runway,
    check_scratch,
    check_storage,
)
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.finding import State, line_of
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, print_json, table
from vidgen_worker.config import effective, load

WIDE = 120
"""Columns of a terminal from which on each setting's meaning is shown."""


def check(json: Json = False) -> None:
    """Show the effective settings, test each dependency, and say what to do about what is red."""
    settings = load()
    rows = effective(settings)
    out = console()
    if not json:
        columns = ("setting", "value", "meaning")[: 3 if out.width >= WIDE else 2]
        out.print(table(columns, [row[: len(columns)] for row in rows]), "")
    findings = []
    looks = (
        check_postgres, check_storage, check_runway, check_scratch, check_media, check_films,
    )  # fmt: skip
    for look in looks:
        for finding in look(settings):
            findings.append(finding)
            if not json:
                out.print(line_of(finding), soft_wrap=True)
    if json:
        print_json(
            {
                "settings": {name: value for name, value, _ in rows},
                "findings": [asdict(finding) for finding in findings],
            }
        )
    if any(finding.state is State.BAD for finding in findings):
        raise typer.Exit(ExitCode.FAILED)
