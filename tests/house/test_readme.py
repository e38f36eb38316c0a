"""The README and the whole tables in docs/ against the code: columns, commands, paths."""

import html
import re
from pathlib import Path

import psycopg
import pytest
from PIL import Image
from typer.main import get_command

from vidgen_worker.cli import app
from vidgen_worker.config import Settings, meanings
from vidgen_worker.domain.faults import FAULTS, Disposition
from vidgen_worker.domain.resolution import RATIOS
from vidgen_worker.films.presets import FORMATS, PRESETS, Kind
from vidgen_worker.settings.looks import shown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def table(*rows: tuple[str, ...]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def part(section: str) -> str:
    """What stands under a heading."""
    return README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]


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


def outputs_table() -> str:
    rows = [("preset", "what it is", "`format`", "at most", "`target`")]
    for name, preset in PRESETS.items():
        forms = [FORMATS[form] for form in preset.formats.values()]
        named = [f"`{one}`" for one in preset.formats]
        files = " and ".join(named[: preset.usual])
        if rest := named[preset.usual :]:
            files += f"; {', '.join(rest)} when it is named"
        filmed = forms[0].kind in (Kind.FILM, Kind.STILL)
        bounds = ["{} × {}".format(*preset.box)] if preset.box else ["as filmed"] * filmed  # noqa: RUF001 - as people write it
        bounds += [f"{preset.most_bytes / 1e6:g} MB"] if preset.most_bytes else []
        bounds += [f"{preset.seconds} s"] if preset.seconds else []
        rows.append((
            f"`{name}`", html.escape(preset.title), files, ", ".join(bounds) or shown(None),
            f"`{preset.target}`" if preset.target else shown(None),
        ))  # fmt: skip
    return table(*rows)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("docs/settings.md", settings_table()),
        ("docs/faults.md", faults_table()),
        ("README.md", resolutions_table()),
        ("docs/films.md", outputs_table()),
    ],
    ids=["settings", "faults", "resolutions", "outputs"],
)
def test_a_table_of_a_document_is_the_codes(document: str, expected: str) -> None:
    assert expected in (ROOT / document).read_text(), f"put this into {document}:\n{expected}"


@pytest.mark.parametrize(("section", "whole"), [("Settings", "settings"), ("Faults", "faults")])
def test_ten_rows_of_a_whole_table_stand_in_the_readme(section: str, whole: str) -> None:
    rows = re.findall(r"^\|.*$", part(section), re.MULTILINE)
    assert len(rows) == 2 + 10
    assert set(rows) <= set((ROOT / "docs" / f"{whole}.md").read_text().splitlines())


def test_every_disposition_is_explained() -> None:
    explained = (ROOT / "docs" / "faults.md").read_text().partition("| where |")[0]
    for disposition in Disposition:
        assert f"| {disposition}" in explained, disposition


def test_the_contents_name_every_section() -> None:
    contents = re.findall(r"\[([^\]]+)\]\(#([a-z-]+)\)", README.partition("\n## ")[0])
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert [title for title, _ in contents] == titles
    for title, anchor in contents:
        assert re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "-") == anchor


def test_the_pictures_are_there_and_small() -> None:
    named = re.findall(r'<img src="([^"]+)"', README)
    assert named
    for name in named:
        with Image.open(ROOT / name) as picture:
            assert picture.width > 600
        assert (ROOT / name).stat().st_size < 150_000, name


def test_the_columns_of_the_contract_are_the_databases(database_url: str) -> None:
    rows = re.findall(r"^\| (`.+?) \|", part("The contract"), re.MULTILINE)
    named = {column for row in rows for column in re.findall(r"`(\w+)`", row)}
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "select column_name from information_schema.columns"
            " where table_schema = 'public' and table_name = 'video_generation_tasks'"
        ).fetchall()
    assert named == {column for (column,) in columns}


def test_the_columns_of_a_scene_are_those_that_the_migrations_make(database_url: str) -> None:
    rows = re.findall(r"^\| (`.+?) \|", part("A client"), re.MULTILINE)
    named = {column for row in rows for column in re.findall(r"`(\w+)`", row)}
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "select column_name from information_schema.columns"
            " where table_schema = 'public' and table_name = 'video_scenes'"
        ).fetchall()
    assert {column for (column,) in columns} - named == {"id", "created_at", "updated_at"}


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
