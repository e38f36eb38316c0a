"""The command line: what it prints, how it ends, and that it never answers with a traceback."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Database
from tests.support.commands import Cli, Result, cli, complete, connected, findings
from vidgen_worker import __version__
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.config import Settings
from vidgen_worker.database.remedies import CONNECT_REMEDIES, explain_connect
from vidgen_worker.films.fonts import Fonts
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.sandbox.postgres.places import free_port

__all__ = ["cli", "complete", "connected"]


@dataclass(frozen=True)
class Scene:
    user: uuid.UUID
    scene: uuid.UUID


@pytest.fixture
def scene(database_url: str) -> Scene:
    made = Scene(uuid.uuid4(), uuid.uuid4())
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into video_scenes (id, user_id, scenario_id, visual_prompt)"
            " values (%s, %s, gen_random_uuid(), 'A bottle')",
            [made.scene, made.user],
        )
    return made


def enqueue(cli: Cli, scene: Scene, *options: object) -> Result:
    return cli("enqueue", "--scene", scene.scene, "--user", scene.user, *options)


def test_the_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"vidgen-worker {__version__}"


def test_help_documents_every_exit_code(cli: Cli) -> None:
    said = " ".join(cli("--help").out.split())
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in said


@pytest.mark.parametrize(
    "verb",
    [
        ["migrate"],
        ["tasks", "list"],
        ["credits", "audit"],
        ["enqueue", "--scene", str(uuid.uuid4()), "--user", str(uuid.uuid4())],
    ],
)
def test_without_a_database_url_only_that_is_reported_missing(cli: Cli, verb: list[str]) -> None:
    result = cli(*verb)
    assert result.code == ExitCode.CONFIGURATION
    assert "DATABASE_URL: missing; find it in Supabase dashboard" in result.err
    assert "RUNWAYML" not in result.err
    assert "vidgen-worker demo" in result.err


@pytest.mark.parametrize("verb", ["run", "check"])
def test_without_settings_all_that_is_missing_is_reported(cli: Cli, verb: str) -> None:
    result = cli(verb)
    assert result.code == ExitCode.CONFIGURATION
    for name in (
        "DATABASE_URL",
        "SUPABASE_URL",
        "SUPABASE_SERVICE_ROLE_KEY",
        "RUNWAYML_API_SECRET",
    ):
        assert f"{name}: missing; find it in " in result.err


def test_a_database_that_is_away_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://postgres:hunter22@127.0.0.1:{free_port()}/postgres"
    monkeypatch.setenv("DATABASE_URL", url)
    result = cli("tasks", "list")
    assert result.code == ExitCode.UNAVAILABLE
    assert "Nothing listens there" in result.err
    assert "hunter22" not in result.err


def test_a_wrong_password_is_reported(connected: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    url = os.environ["DATABASE_URL"]
    monkeypatch.setenv("DATABASE_URL", re.sub(r"//postgres:[^@]*@", "//postgres:hunter22@", url))
    result = connected("tasks", "list")
    assert result.code == ExitCode.UNAVAILABLE
    assert "The password or the user name is wrong" in result.err
    assert "hunter22" not in result.err


def test_an_unreadable_url_is_refused_without_showing_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres:hun%ter22@host/db")
    result = cli("tasks", "list")
    assert result.code == ExitCode.CONFIGURATION
    assert "Percent-encode" in result.err
    assert "ter22" not in result.err


@pytest.mark.parametrize("needles", [needles for needles, _ in CONNECT_REMEDIES])
def test_every_known_way_to_fail_to_connect_has_a_remedy(needles: tuple[str, ...]) -> None:
    for needle in needles:
        said = explain_connect(f"connection failed: {needle}\nmore", "postgresql://u:pw@h:1/d")
        assert "u@h:1/d" in said
        assert "pw" not in said
        assert not said.endswith("Check DATABASE_URL.")


def test_migrate_applies_once_and_says_what(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bare_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", bare_database_url)
    assert "Run: vidgen-worker migrate" in cli("tasks", "list").err
    planned = cli("migrate", "--dry-run", "--json").json
    assert planned
    applied = cli("migrate")
    assert applied.code == ExitCode.OK
    assert [f"Applied {version}" for version in planned] == applied.out.splitlines()
    assert cli("migrate").out == "The database is up to date.\n"
    assert cli("migrate", "--json").json == []


def test_migrate_says_what_stands_in_its_way(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bare_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", bare_database_url)
    with psycopg.connect(bare_database_url) as connection:
        connection.execute("create table user_credits (id integer)")
    result = cli("migrate")
    assert result.code == ExitCode.FAILED
    assert "public.user_credits" in result.err
    assert "Rename yours" in result.err


def test_enqueue_makes_a_task_that_list_and_show_find(connected: Cli, scene: Scene) -> None:
    made = enqueue(connected, scene, "--priority", 3, "--json").json
    assert made["status"] == "pending"
    assert made["priority"] == 3
    listed = connected("tasks", "list", "--user", scene.user, "--status", "pending", "--json").json
    assert [task["id"] for task in listed] == [made["task_id"]]
    assert made["task_id"][:8] in connected("tasks", "list").out
    shown = connected("tasks", "show", made["task_id"], "--json").json
    assert shown["submissions"] == []
    assert "Initializing" in connected("tasks", "show", made["task_id"]).out
    assert connected("tasks", "list", "--user", uuid.uuid4()).out == "No tasks.\n"


@pytest.mark.parametrize("when", ["15m", "2099-12-24T18:00:00", "2099-12-24T18:00:00+01:00"])
def test_a_task_can_wait(connected: Cli, scene: Scene, when: str) -> None:
    made = enqueue(connected, scene, "--run-after", when, "--json").json
    assert made["run_after"] > made["created_at"]


def test_a_time_that_is_none_is_refused(connected: Cli, scene: Scene) -> None:
    result = enqueue(connected, scene, "--run-after", "tomorrow")
    assert result.code == ExitCode.USAGE
    assert "nor a duration" in " ".join(result.err.replace("│", " ").split())


def test_a_strangers_scene_is_refused(connected: Cli, scene: Scene) -> None:
    result = connected("enqueue", "--scene", scene.scene, "--user", uuid.uuid4())
    assert result.code == ExitCode.FAILED
    assert "only its owner" in result.err


def test_an_unknown_task_is_reported(connected: Cli) -> None:
    for verb in ("show", "cancel", "retry"):
        result = connected("tasks", verb, uuid.uuid4())
        assert result.code == ExitCode.FAILED
        assert "tasks list" in result.err


def test_cancel_and_retry_say_what_they_will_do_and_need_yes(connected: Cli, scene: Scene) -> None:
    task = enqueue(connected, scene, "--json").json["task_id"]

    def status() -> str:
        return str(connected("tasks", "show", task, "--json").json["status"])

    refused = connected("tasks", "cancel", task)
    assert refused.code == ExitCode.USAGE
    assert "Nothing was done" in refused.err
    assert status() == "pending"
    assert "is cancelled" in connected("tasks", "cancel", task, "--yes").out
    assert status() == "cancelled"
    assert "ended already" in connected("tasks", "cancel", task, "--yes").err
    assert connected("tasks", "retry", task).code == ExitCode.USAGE
    assert status() == "cancelled"
    assert connected("tasks", "retry", task, "--yes").code == ExitCode.OK
    assert status() == "pending"
    again = connected("tasks", "retry", task, "--yes")
    assert again.code == ExitCode.FAILED
    assert "only a failed or cancelled task" in again.err


def test_watching_shows_the_task_until_it_has_ended(
    connected: Cli, scene: Scene, database_url: str
) -> None:
    def cancel_it() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not connection.execute(
                "select cancel_video_generation_task(id) from video_generation_tasks"
            ).fetchall():
                continue

    canceller = threading.Thread(target=cancel_it)
    canceller.start()
    result = enqueue(connected, scene, "--watch")
    canceller.join()
    assert result.code == ExitCode.FAILED
    assert "cancelled" in result.out


def signed_up(database_url: str) -> uuid.UUID:
    user = uuid.uuid4()
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into auth.users (id) values (%s)", [user])
    return user


def test_a_grant_needs_yes_and_is_made_once_per_reference(
    connected: Cli, database_url: str
) -> None:
    user = signed_up(database_url)
    planned = connected("credits", "grant", user, 50)
    assert planned.code == ExitCode.USAGE
    assert "Grant 50 credits" in planned.err
    assert connected("credits", "show", user, "--json").json["balance"] == 0
    grant = ("credits", "grant", user, 50, "--reference", f"order-{user}", "--yes")
    assert "0 → 50" in connected(*grant).out
    assert "granted before" in connected(*grant).out
    shown = connected("credits", "show", user, "--json").json
    assert (shown["balance"], shown["held"], len(shown["entries"])) == (50, 0, 1)
    assert "order-" in connected("credits", "show", user).out
    second = signed_up(database_url)
    other = connected("credits", "grant", second, 50, "--reference", f"order-{user}", "--yes")
    assert other.code == ExitCode.FAILED
    assert "one reference per payment" in other.err
    stranger = connected("credits", "grant", uuid.uuid4(), 50, "--yes")
    assert stranger.code == ExitCode.FAILED
    assert "There is no user" in stranger.err


def test_the_audit_finds_a_balance_that_somebody_wrote_by_hand(
    connected: Cli, database_url: str
) -> None:
    user = signed_up(database_url)
    connected("credits", "grant", user, 50, "--yes")
    assert connected("credits", "audit").code == ExitCode.OK
    with psycopg.connect(database_url) as connection:
        connection.execute("update user_credits set balance = 999")
    result = connected("credits", "audit")
    assert result.code == ExitCode.FAILED
    assert str(user) in result.out
    assert connected("credits", "audit", "--json").code == ExitCode.FAILED


def test_hostile_text_in_a_row_is_printed_as_text(
    connected: Cli, scene: Scene, database_url: str
) -> None:
    task = enqueue(connected, scene, "--json").json["task_id"]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "update video_generation_tasks set message = %s", ["[red]a[/nope] \x1b[31m"]
        )
    shown = connected("tasks", "show", task).out
    assert "[red]a[/nope]" in shown
    assert "\x1b[31m" not in shown


def test_check_is_green_when_all_is_well(complete: Cli) -> None:
    result = complete("check", "--json")
    assert result.code == ExitCode.OK
    found = findings(result)
    for what in ("PostgreSQL", "Clock", "Schema", "Rights", "LISTEN", "Storage", "Runway"):
        assert found[what]["state"] == "ok", found[what]
    assert found["Bucket video-files"]["state"] == "note"
    assert found["Model gen4_turbo"]["state"] == "ok"
    assert list(result.json["settings"]) == [name.upper() for name in Settings.model_fields]
    assert os.environ["RUNWAYML_API_SECRET"] not in result.out


def test_check_says_in_which_scripts_captions_can_be_written(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (fonts := Fonts()).files:
        pytest.skip("there is no font on this machine")
    ((_, font),) = fonts.runs("Lamp")
    monkeypatch.setenv("VIDGEN_FONTS", f"{tmp_path}:{font}")
    result = complete("check", "--json")
    assert result.code == ExitCode.OK
    found = findings(result)["Fonts"]
    assert found["state"] == "note"
    assert f"1 file(s) in {tmp_path}:{font} cover Latin" in found["said"]
    assert "captions in " in found["said"]
    assert "Japanese" in found["said"].partition("captions in ")[2]
    assert "VIDGEN_FONTS" in found["remedy"]


def test_check_shows_settings_and_findings_to_people(complete: Cli) -> None:
    result = complete("check")
    assert re.search(r"VIDGEN_CONCURRENCY +20 +Tasks at once", result.out)
    assert "✓ PostgreSQL" in result.out
    assert os.environ["SUPABASE_SERVICE_ROLE_KEY"] not in result.out


@pytest.mark.parametrize(
    ("name", "value", "red"),
    [
        ("DATABASE_URL", "postgresql://postgres:x@127.0.0.1:1/postgres", "PostgreSQL"),
        ("SUPABASE_URL", "http://127.0.0.1:1", "Storage"),
        ("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_0f8b2d61c7", "Storage"),
        ("RUNWAYML_API_SECRET", "key_that_is_none", "Runway"),
    ],
)
def test_check_is_red_where_something_is_wrong_and_goes_on(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, red: str
) -> None:
    monkeypatch.setenv(name, value)
    result = complete("check", "--json")
    assert result.code == ExitCode.FAILED
    found = findings(result)
    assert [what for what, finding in found.items() if finding["state"] == "bad"] == [red]
    assert {"PostgreSQL", "Storage", "Runway"} <= set(found)


EXPOSED = {
    "a trigger on scenes": (
        "grant all on all tables in schema public to authenticated",
        "authenticated may put triggers on public.video_scenes",
    ),
    "functions in schema public": (
        "grant create on schema public to public",
        "public may create functions in schema public",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", EXPOSED)
def test_check_is_red_where_a_client_could_act_with_our_rights(
    complete: Cli, database: Database, how: str
) -> None:
    """The remedy that it prints makes it green."""
    mistake, said = EXPOSED[how]
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(mistake.encode())
        red = [f for f in complete("check", "--json").json["findings"] if f["state"] == "bad"]
        assert {finding["what"] for finding in red} == {"Client rights"}
        assert any(said in finding["said"] for finding in red)
        for finding in red:
            connection.execute(finding["remedy"].partition(": ")[2].encode())
    result = complete("check", "--json")
    assert result.code == ExitCode.OK
    assert findings(result)["Client rights"]["state"] == "ok"


@pytest.mark.parametrize("inherits", ["inherit", "noinherit"])
def test_check_is_red_where_a_login_of_a_users_could_put_a_trigger_on_storage(
    complete: Cli, database: Database, inherits: str
) -> None:
    """Supabase grants TRIGGER there to its clients: PostgREST can't use it, who has SQL can."""
    login = f"reporter_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(f"create role {login} login {inherits} in role authenticated".encode())
        try:
            result = complete("check", "--json")
            assert result.code == ExitCode.FAILED
            found = findings(result)["Client rights"]
            assert f"the logins {login} may put triggers on storage.objects" in found["said"]
            assert found["remedy"].startswith("Run as supabase_storage_admin: revoke trigger on ")
            remedy = found["remedy"].partition(": ")[2].partition(".  ")[0].partition(". Hosted")[0]
            connection.execute("set role supabase_storage_admin")
            connection.execute(remedy.encode())
            connection.execute("reset role")
            assert complete("check", "--json").code == ExitCode.OK
        finally:
            connection.execute(f"drop role {login}".encode())


def test_check_is_red_where_row_level_security_hides_scenes(
    complete: Cli, database: Database
) -> None:
    owner = f"owner_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(f"create role {owner}".encode())
        try:
            connection.execute(
                f"alter table public.video_generation_tasks owner to {owner}".encode()
            )
            found = findings(complete("check", "--json"))["Scenes"]
            assert found["state"] == "bad"
            assert "SCENE_NOT_FOUND" in found["said"]
            for _ in ("scenarios", "scenes"):
                remedy = findings(complete("check", "--json"))["Scenes"]["remedy"]
                connection.execute(remedy.partition(": ")[2].encode())
            assert "Scenes" not in findings(complete("check", "--json"))
        finally:
            connection.execute(f"reassign owned by {owner} to postgres".encode())
            connection.execute(f"drop owned by {owner}; drop role {owner}".encode())


def test_check_reports_missing_migrations(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, bare_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", bare_database_url)
    found = findings(complete("check", "--json"))
    assert found["Schema"]["state"] == "bad"
    assert found["Schema"]["remedy"] == "Run: vidgen-worker migrate"


def test_run_refuses_a_database_without_the_migrations(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, bare_database_url: str, tmp_path: Path
) -> None:
    # As a process, because it sets up the log of the process it runs in.
    environment = {**os.environ, "DATABASE_URL": bare_database_url}
    del complete, monkeypatch
    done = subprocess.run(
        [sys.executable, "-m", "vidgen_worker", "run"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.FAILED
    assert "Run: vidgen-worker migrate" in done.stderr


def test_a_reader_that_leaves_early_gets_no_traceback(connected: Cli, scene: Scene) -> None:
    enqueue(connected, scene)
    reader, writer = os.pipe()
    os.close(reader)  # it has left before the first line
    done = subprocess.run(
        [sys.executable, "-m", "vidgen_worker", "tasks", "list", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["check", "run", "prune"])
def test_the_publishable_key_is_refused_before_anything_is_asked(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, storage: StorageControl, verb: str
) -> None:
    for key, said in ((storage.keys.publishable, "publishable"), (storage.keys.anon, "'anon'")):
        monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", key)
        result = complete(verb)
        assert result.code == ExitCode.CONFIGURATION
        assert said in result.err
        assert "API Keys → secret key" in result.err
        assert key not in result.err


def test_a_key_that_ends_in_a_line_end_is_used_without_it(
    complete: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SUPABASE_SERVICE_ROLE_KEY", "RUNWAYML_API_SECRET", "DATABASE_URL"):
        monkeypatch.setenv(name, f'"{os.environ[name]}"\n')
    assert complete("check").code == ExitCode.OK


@pytest.mark.parametrize("of", ["database", "role"])
def test_check_is_red_for_a_database_that_was_made_read_only(
    complete: Cli, admin_database_url: str, database: Database, of: str
) -> None:
    target = sql.SQL("database {0}" if of == "database" else "role postgres in database {0}")
    with psycopg.connect(admin_database_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("alter {} set default_transaction_read_only = on").format(
                target.format(sql.Identifier(database.name))
            )
        )
    result = complete("check", "--json")
    assert result.code == ExitCode.FAILED
    found = findings(result)["PostgreSQL"]
    assert found["state"] == "bad"
    assert "read-only" in found["said"]
    assert "disk is full" in found["remedy"]


@contextmanager
def web_server(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """Something that answers, and is no Supabase Storage."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (404, b'{"message":"Route GET:/x not found"}', "SUPABASE_URL"),
        (200, b"<html>", "SUPABASE_URL"),
        (200, b'{"a":1}', "SUPABASE_URL"),
        (200, b"[1]", "SUPABASE_URL"),
        (200, b"\xff", "SUPABASE_URL"),
        (401, b"no", "SUPABASE_SERVICE_ROLE_KEY"),
        (400, b'{"statusCode": "403"}', "SUPABASE_SERVICE_ROLE_KEY"),
        (301, b"", "https://there.example"),
        (540, b"paused", "dashboard"),
    ],
)
def test_check_names_what_is_wrong_with_storage(
    complete: Cli, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, remedy: str
) -> None:
    with web_server(status, body, Location="https://there.example") as url:
        monkeypatch.setenv("SUPABASE_URL", url)
        result = complete("check", "--json")
    assert result.code == ExitCode.FAILED
    found = findings(result)["Storage"]
    assert found["state"] == "bad"
    assert remedy in found["remedy"]


def test_check_says_that_a_proxy_is_in_between(
    complete: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://u:hunter22@127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    result = complete("check", "--json")
    assert "the proxy of HTTP_PROXY" in findings(result)["Storage"]["remedy"]
    assert "hunter22" not in result.out + result.err


def test_check_tries_the_second_host_of_a_url_too(
    complete: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = re.sub(
        r"@([^/:]+):(\d+)/", rf"@127.0.0.1:{free_port()},\1:\2/", os.environ["DATABASE_URL"]
    )
    monkeypatch.setenv("DATABASE_URL", url)
    assert complete("check").code == ExitCode.OK
    assert complete("tasks", "list").code == ExitCode.OK


def test_a_taken_port_of_the_metrics_is_reported_in_a_sentence(
    complete: Cli, tmp_path: Path
) -> None:
    del complete
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "vidgen_worker", "run"],
            env={**os.environ, "VIDGEN_METRICS_PORT": str(port)},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == ExitCode.FAILED
    assert f"VIDGEN_METRICS_PORT: port {port} of 127.0.0.1 can't be used" in done.stderr
    assert "Traceback" not in done.stderr
