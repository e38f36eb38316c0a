"""The documents against the code: every command, option, path, setting, status and view exists."""

import re
from pathlib import Path

import psycopg
import pytest
import yaml
from typer.main import get_command

from vidgen_worker.cli import app
from vidgen_worker.config import Settings
from vidgen_worker.errors import FAULTS
from vidgen_worker.storm import PROVIDER_STORM

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
EVERYTHING = "\n".join(TEXTS.values())


def commands() -> list[str]:
    return sorted(set(re.findall(r"`vidgen-worker ([^`]+)`", EVERYTHING)))


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line: str) -> None:
    """Its verb and options are parsed as they would be; capitals stand for a value."""
    command = get_command(app)
    words = line.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word in options, line
    assert not hasattr(command, "commands") or words[0].startswith("--"), line


def test_sql_runs(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        for block in re.findall(r"```sql\n(.*?)```", EVERYTHING, re.DOTALL):
            conn.execute(block.encode())


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_settings_exist(name: str) -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXTS[name]):
        assert (DOCS / target).exists(), target
    for setting in re.findall(r"\bVIDGEN_[A-Z_]+|\bRUNWAYML_[A-Z_]+", TEXTS[name]):
        assert setting.lower() in Settings.model_fields, setting


def test_every_fault_that_is_named_exists() -> None:
    codes = {rule.code for rule in FAULTS.values()} | {PROVIDER_STORM}
    for code in re.findall(r"`((?:PROVIDER|STORAGE|RESOLUTION|CONTENT)_\w+)`", EVERYTHING):
        assert code in codes or code.lower() in Settings.model_fields, code


def test_the_alert_rules_are_yaml_of_the_known_shape() -> None:
    (group,) = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["expr"]
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"page", "warn"}
