"""The command line, run in this process, with no setting, a database, or all of them."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vidgen_worker.cli import app
from vidgen_worker.config import Settings
from vidgen_worker.sandbox.control import RunwayControl, StorageControl


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was printed
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Provide the command line, run in this process, with none of this machine's settings."""
    known = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if name.upper() in known or name.upper().startswith("VIDGEN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["vidgen-worker", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app(prog_name="vidgen-worker")
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Result(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def connected(cli: Cli, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Cli:
    """Provide the command line with DATABASE_URL, and no other setting."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return cli


@pytest.fixture
def complete(
    connected: Cli, monkeypatch: pytest.MonkeyPatch, runway: RunwayControl, storage: StorageControl
) -> Cli:
    """Provide the command line with every mandatory setting."""
    monkeypatch.setenv("SUPABASE_URL", storage.url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", storage.keys.service_role)
    monkeypatch.setenv("RUNWAYML_API_SECRET", runway.key)
    monkeypatch.setenv("RUNWAYML_BASE_URL", runway.url)
    return connected


def findings(result: Result) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in result.json["findings"]}
