"""The README against the code: tables, columns, commands, paths."""

import re
from pathlib import Path

import psycopg
import pytest
from typer.main import get_command

from vidgen_worker.cli import app
from vidgen_worker.config import Settings, meanings
from vidgen_worker.domain.faults import FAULTS
from vidgen_worker.domain.resolution import RATIOS
from vidgen_worker.settings.looks import shown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def table(*rows: tuple[str, ...]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def settings_table() -> str:
    rows = [("setting", "default", "meaning")]
    said = meanings()
    for name, field in Settings.model_fields.items():
        default = "mandatory" if field.is_required() else shown(field.get_default())
        rows.append((f"`{name.upper()}`", default, said[name]))
    return table(*rows)


def faults_table() -> str:
    rows = [("where", "signal", "code", "what follows", "the user's hold")]
    for rule in FAULTS.values():
        code = f"`{rule.code}`" if rule.code else shown(None)
        follows = f"{rule.disposition} ({rule.gate})" if rule.gate else str(rule.disposition)
        follows = f"{follows}; {rule.follows}" if rule.follows else follows
        rows.append((rule.where, rule.signal, code, follows, rule.hold))
    return table(*rows)


def resolutions_table() -> str:
    rows = [(name, video, image) for name, (video, image) in RATIOS.items()]
    return table(("resolution", "video ratio", "image ratio"), *rows)


@pytest.mark.parametrize(
    "expected",
    [settings_table(), faults_table(), resolutions_table()],
    ids=["settings", "faults", "resolutions"],
)
def test_a_table_of_the_readme_is_the_codes(expected: str) -> None:
    assert expected in README, f"put this into README.md:\n{expected}"


def test_the_columns_of_the_contract_are_the_databases(database_url: str) -> None:
    section = README.partition("## The contract")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    named = {column for row in rows for column in re.findall(r"`(\w+)`", row)}
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "select column_name from information_schema.columns"
            " where table_schema = 'public' and table_name = 'video_generation_tasks'"
        ).fetchall()
    assert named == {column for (column,) in columns}


def test_every_command_that_is_named_exists() -> None:
    verbs = set(getattr(get_command(app), "commands", {}))
    for verb in re.findall(r"vidgen-worker (\w+)", README):
        assert verb in verbs, verb
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`make (\w+)|^make (\w+)", README, re.MULTILINE):
        assert set(filter(None, target)) <= targets, target


def test_every_path_that_is_named_exists() -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(
        re.findall(r"`((?:vidgen_worker|migrations|systemd|tests)/[\w./-]*)`", README)
    )
    for path in named:
        assert (ROOT / path).exists(), path
