"""The command line answers at once: a verb imports only what it needs itself."""

import json
import subprocess
import sys
import uuid

import pytest

from vidgen_worker.cli.verbs import VERBS, Family, Later, Verb, commands
from vidgen_worker.sandbox.control import RunwayControl

WHAT_IT_IS = [["--version"], ["--help"]]
WHAT_ELSE_THERE_IS = [["tasks", "--help"], ["gate"], ["nonsense"]]
THAT_READ = [
    ["tasks", "list"], ["tasks", "show", str(uuid.uuid4())], ["stats"], ["workers"],
    ["gate", "list"], ["credits", "show", str(uuid.uuid4())], ["credits", "audit"],
    ["limits", "list"], ["limits", "show", str(uuid.uuid4())],
]  # fmt: skip

ELSEWHERE = {"runwayml", "httpx", "aiohttp", "supabase", "storage3", "av", "structlog", "tenacity",
             "prometheus_client", "starlette", "jinja2", "psycopg_pool", "rich.progress",
             "rich.markdown"}  # fmt: skip
"""What only the worker, or a verb that asks services, needs."""
FOR_ORDERS = {"vidgen_worker.client.service", "vidgen_worker.films", "vidgen_worker.cli.errors"}
"""What of ours only a verb that orders needs, or one that fails."""
BY_HTTPX = {"httpx", "tenacity", "rich.progress", "rich.markdown"}
"""What one free request takes; httpx brings the pictures of its own command line."""
BELOW = ELSEWHERE | {"rich", "psycopg", "asyncio", "vidgen_worker.config"}
"""What no verb needs to say what it is."""

PROBE = """
import atexit, json, sys
sys.argv = ["vidgen-worker", *json.loads(sys.argv[1])]
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from vidgen_worker.__main__ import main
main()
"""


def imported(verb: list[str]) -> set[str]:
    """Run a verb in a process of its own; return the modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(verb)], capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("verb", WHAT_IT_IS, ids=" ".join)
def test_what_the_command_line_is_is_said_without_any_box_below(verb: list[str]) -> None:
    assert not imported(verb) & (BELOW | {"pydantic"})


@pytest.mark.parametrize("verb", WHAT_ELSE_THERE_IS, ids=" ".join)
def test_a_list_of_verbs_needs_none_of_them(verb: list[str]) -> None:
    assert not imported(verb) & BELOW  # typer takes pydantic for the options before them


def test_a_verb_that_reads_imports_no_service(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    for verb in THAT_READ:
        found = imported(verb)
        assert "psycopg" in found, verb  # it did ask the database
        assert not found & (ELSEWHERE | FOR_ORDERS), verb


def test_reconcile_imports_no_sdk_and_not_what_the_worker_reads_with(
    database_url: str, runway: RunwayControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("RUNWAYML_API_SECRET", runway.key)
    monkeypatch.setenv("RUNWAYML_BASE_URL", runway.url)
    found = imported(["reconcile"])
    assert "httpx" in found  # it did ask Runway
    assert not found & (ELSEWHERE - BY_HTTPX)


def test_every_verb_is_where_the_table_says_and_its_line_is_whole_at_80_columns() -> None:
    longest = 80 - 6 - max(map(len, VERBS))
    for name, entry in VERBS.items():
        for verb in entry.verbs.values() if isinstance(entry, Family) else [entry]:
            assert len(verb.line) <= longest, verb.line
        assert len(entry.line) <= longest, entry.line
        command = commands()[name]
        for word, later in getattr(command, "commands", {name: command}).items():
            assert isinstance(later, Later)
            assert later.load().name == word
    assert isinstance(VERBS["stats"], Verb)
