"""Text from elsewhere: PostgreSQL takes it, a terminal shows it, nothing acts or breaks by it."""

import io
import json
import logging
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Json, Jsonb

from tests.support.answering import refusing_runway
from tests.support.world import World
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.client.database import open_database
from vidgen_worker.database.pool import Database
from vidgen_worker.database.postgres_text import STORABLE
from vidgen_worker.domain.faults import FAULTS, Fault
from vidgen_worker.domain.foreign_text import json_text, printable, storable, storable_value

HALF_AN_EMOJI = 'promptText: Invalid text "A bottle \ud83d..."'
FOREIGN = {
    "half an emoji": HALF_AN_EMOJI,
    "the other half": "\ude00",
    "NUL": "a\0b",
    "an escape sequence": "\x1b]0;title\x07\x1b[2J",
    "a control character of eight bits": "\x9b31m",
    "a bidirectional override": "invoice\u202egpj.exe",
    "isolates": "\u2066a\u2067b\u2069",
    "a zero width": "pay\u200bpal\u200c\u200d\ufeff",
    "marks of direction": "\u200e\u200f\u061c",
    "tags": "".join(chr(0xE0000 + ord(character)) for character in "ignore"),
    "selectors that carry text": "a\U000e0100\U000e01ef",
    "letters that are not seen": "\u3164\u115f\u1160\uffa0\u2800",
    "a soft hyphen": "pass\u00adword",
    "line ends of all kinds": "a\r\nb\u2028c\u2029d\x85e\vf\fg",
    "no character": "\ufffe\uffff\U0010ffff",
    "much": "x" * 10_000_000,
    "much that is spelled out": "\u202e" * 100_000,
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_foreign_text_is_shown_without_any_effect_on_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 4000
    shown.encode("utf-8")
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in shown)


@pytest.mark.parametrize("text", ["Crème brûlée 東京 🎬 A\u00a0B", "עברית", "a\\nb 100 %", ""])
def test_text_that_is_only_read_stays_as_it_is(text: str) -> None:
    assert printable(text) == storable(text) == text


def test_lines_are_kept_where_lines_are_shown() -> None:
    assert printable("a\n\tb\r\x1b[0m", lines=True) == "a\n\tb\\x0d\\x1b[0m"
    assert printable("a\n\tb") == "a b"


@given(st.text(st.characters()), st.integers(30, 200))
def test_any_text_can_be_shown_and_stored(text: str, longest: int) -> None:
    assert len(printable(text, longest)) <= longest
    assert printable(printable(text)) == printable(text)
    stored = storable(text)
    assert "\0" not in stored
    stored.encode("utf-8")
    assert json_text(json.loads(json_text(text))) == json_text(text)


@pytest.mark.parametrize("text", list(FOREIGN.values())[:15], ids=list(FOREIGN)[:15])
def test_json_for_machines_holds_the_text_itself_and_acts_on_no_terminal(text: str) -> None:
    written = json_text({"text": text, text: [text]}, indent=2)
    assert all(line.isprintable() for line in written.split("\n"))
    assert json.loads(written) == {"text": text, text: [text]}
    assert json_text(text, ascii_only=True).isascii()


# Into PostgreSQL, by every way that our code has.


@pytest.mark.parametrize("text", list(FOREIGN.values())[:15], ids=list(FOREIGN)[:15])
def test_every_kind_of_parameter_accepts_foreign_text(database_url: str, text: str) -> None:
    stored = storable(text)
    with psycopg.connect(database_url, context=STORABLE) as conn:
        row = conn.execute(
            "select %s::text, %b::text, %t::varchar, %s::text[], %s::jsonb, %s::json::text, %s",
            [
                text, text, text, [text], Jsonb({text: [text, (text,), None, 1]}), Json(text), text,
            ],
        ).fetchone()  # fmt: skip
    assert row is not None
    assert row[:4] == (stored, stored, stored, [stored])
    assert row[4] == {stored: [stored, [stored], None, 1]}
    assert json.loads(row[5]) == row[6] == stored


def test_other_users_of_psycopg_are_not_affected(database_url: str) -> None:
    with psycopg.connect(database_url) as conn, pytest.raises(psycopg.DataError):
        conn.execute("select %s::text", ["a\0b"])


def test_a_value_that_is_no_text_stays() -> None:
    assert storable_value({"a": (1, 2.5, None, True)}) == {"a": [1, 2.5, None, True]}


async def test_the_connections_of_workers_and_clients_accept_foreign_text(world: World) -> None:
    url = world.database.url
    with open_database(url) as client:
        assert client.rows("task", {"task_id": str(world.user())}) == []
        client.rows(
            "close_gate",
            {"model": "\ud83d\0", "message": "\0", "details": "\udcff", "until": None},
        )
        assert client.rows("gates")[0]["model"] == "\\ud83d\\u0000"
    database = Database(url)
    await database.open()
    try:
        async with database._pool.connection() as conn:
            cursor = await conn.execute("select $1 as said", [HALF_AN_EMOJI])
            assert await cursor.fetchone() == {"said": storable(HALF_AN_EMOJI)}
    finally:
        await database.close()


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_fault_holds_nothing_foreign_whatever_it_was_made_of(text: str) -> None:
    for name in FAULTS:
        fault = Fault(name, details=text, message=text, field=text)
        for said in (fault.details, fault.message, fault.field or "", str(fault)):
            assert said.isprintable()
            assert len(said) < 4100


# The whole way: Runway's answer to a paid POST.


@pytest.mark.parametrize(
    "answer",
    [
        rb'{"error":"promptText holds \u0000 and \u202e"}',
        rb'{"error":"Invalid","issues":[{"path":["\udc00\u0000"],"message":"\ud83d"}]}',
        b'{"error":"\x1b[31m\xff\xfe raw bytes"}',
        b'{"error":"' + b"x" * 2_000_000 + b'"}',
        b"\0\0\0",
        b"<html>\xed\xa0\xbd</html>",
    ],
    ids=["NUL", "issues", "bytes", "megabytes", "no JSON", "a surrogate in UTF-8"],
)
async def test_a_refusal_in_foreign_text_is_a_refusal_and_is_posted_once(
    world: World, answer: bytes
) -> None:
    user = world.user()
    async with refusing_runway(answer) as (url, posts), world.worker(RUNWAYML_BASE_URL=url):
        task = world.order(user, world.scene(user))
        row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("failed", "INVALID_REQUEST")
    assert len(posts) == 1
    (submission,) = world.sql("select answer, details from vidgen.submissions")
    assert submission["answer"] == "refused"
    assert submission["details"].isprintable()


# A person's view.


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_marks_of_writing_direction_never_reach_a_terminal(
    world: World, options: tuple[str, ...]
) -> None:
    user = world.user()
    task = world.order(user, world.scene(user))
    hostile = "gnp.\u202eevil\u2066\u200b\x9b31m\U000e0041"
    world.sql("update video_generation_tasks set message = %s, current_step = %s", hostile, hostile)
    for verb in (("tasks", "show", str(task)), ("tasks", "list")):
        done = subprocess.run(
            [sys.executable, "-m", "vidgen_worker", *verb, *options],
            env={"PATH": "/usr/bin", "PYTHONUTF8": "1", "DATABASE_URL": world.database.url},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == ExitCode.OK, done.stderr
        assert all(line.isprintable() for line in done.stdout.split("\n"))
        assert "\\u202e" in done.stdout


@contextmanager
def logged(form: str) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    try:
        from vidgen_worker.telemetry.log import configure  # noqa: PLC0415 - it changes the process

        configure("info", "json" if form == "json" else "console", stream=out)
        yield out
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("text", list(FOREIGN.values())[:15], ids=list(FOREIGN)[:15])
def test_a_librarys_line_is_one_printable_line(form: str, text: str) -> None:
    with logged(form) as out:
        logging.getLogger("somebody").warning("said %s", text)
        logging.getLogger(text.replace(".", "")).error(text.replace("%", ""))
    lines = out.getvalue().split("\n")[:-1]
    assert len(lines) == 2
    for line in lines:
        shown = json.loads(line)["event"] if form == "json" else line
        assert shown.isprintable()
