"""Whatever the environment holds, every verb answers in sentences and exit codes.

The cases are generated: each setting with each kind of value that somebody's machine may hold.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.settings import MANDATORY
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.client.database import ClientSettings, load_client_settings
from vidgen_worker.config import Settings, load
from vidgen_worker.domain import masking
from vidgen_worker.settings.environment import SettingsError

SECRET = "hunter22"
VERBS = ("run", "check", "migrate", "stats", "tasks list", "credits audit", "gate list", "workers")

VALUES = {
    "empty": "",
    "spaces": "  \t ",
    "a line end": "\n",
    "a line break inside": f"a\n{SECRET}",
    "a NUL's neighbour": f"\x01{SECRET}",
    "quotes": '""',
    "one quote": '"',
    "a word": "ja",
    "a negative number": "-1",
    "a fraction": "1.5",
    "not a number": "nan",
    "more than a float holds": "1e999",
    "a huge number": "9" * 400,
    "a huge duration": "9" * 400 + "d",
    "a long duration": "99999999d",
    "nearly nothing": "0.0000001s",
    "JSON": '{"a": [1]}',
    "another scheme": f"mysql://u:{SECRET}@h/d",
    "a web address": "https://example.com/a/b?c=d#e",
    "an address without an end": "http://[::1",
    "a port beyond all": "http://h:99999",
    "a port that is a word": "http://h:port",
    "a host of dots": "https://a..b",
    "a host that is too long": f"https://{'a' * 300}",
    "an address with a password": f"https://u:{SECRET}@h",
    "a path": "/etc/passwd",
    "a path upwards": "../../x",
    "Unicode": "ünïcödé 東京",
    "a bidirectional override": "abc\u202edef",
    "an invisible space": "abc\u200bdef",
    "an emoji": "🎬",
    "other digits": "١٥",  # noqa: RUF001 - that is the case
    "bytes that are no text": "\udcff\udcfe" + SECRET,
    "a megabyte": SECRET * 125_000,
    "an escape sequence": "\x1b[31mred",
    "a placeholder": "<your key here>",
}


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one case taught must not hide another's mistakes."""
    monkeypatch.setattr(masking, "_process", masking.Secrets())


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four good settings, and none of this machine's."""
    known = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if (
            name.upper() in known
            or name.upper().startswith(("VIDGEN_", "PG", "SSL_CERT", "SSLKEYLOG"))
            or name.lower().endswith("_proxy")
        ):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, value in MANDATORY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def refused(*, kind: type[Settings] | type[ClientSettings] = Settings) -> list[str]:
    """The sentences that loading ends with; none where it is fine."""
    try:
        settings = load() if kind is Settings else load_client_settings()
    except SettingsError as error:
        for problem in error.problems:
            assert problem.isprintable(), problem
            assert len(problem) < 500
            assert SECRET not in problem
            assert ": " in problem
        return error.problems
    for name in kind.model_fields:
        value = getattr(settings, name)
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        assert text.isprintable()
        assert text == text.strip()
        assert not text.startswith(('"', "'"))
    return []


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("value", VALUES)
def test_every_setting_takes_every_value_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name.upper(), VALUES[value])
    for problem in refused():
        assert problem.startswith(f"{name.upper()}: "), problem
    if name in ClientSettings.model_fields:
        for problem in refused(kind=ClientSettings):
            assert problem.startswith(f"{name.upper()}: "), problem


@pytest.mark.parametrize("name", MANDATORY)
@pytest.mark.parametrize("form", ["{}\n", " {} ", "\r\n{}\r\n", '"{}"', "'{}'", '" {} "\n'])
def test_what_surrounds_a_value_is_removed(
    monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    monkeypatch.setenv(name, form.format(MANDATORY[name]))
    value = getattr(load(), name.lower())
    assert MANDATORY[name] == (value.get_secret_value() if isinstance(value, SecretStr) else value)


@pytest.mark.parametrize("name", ["SUPABASE_SERVICE_ROLE_KEY", "RUNWAYML_API_SECRET"])
@pytest.mark.parametrize(
    "inside", ["\n", "\r\n    ", " ", "\t", "\x00"[:0] + "\x7f", "é", "\u00a0"]
)
def test_a_key_that_is_broken_inside_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, inside: str
) -> None:
    monkeypatch.setenv(name, MANDATORY[name][:12] + inside + SECRET)
    (problem,) = refused()
    assert problem.startswith(f"{name}: it holds")


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{body}.c2lnbmF0dXJlLWh1bnRlcjIy"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (jwt(role="anon"), "the key of role 'anon'"),
        (jwt(role="authenticated", sub="x"), "the key of role 'authenticated'"),
        (jwt(role="postgres"), "the key of role 'postgres'"),
        (jwt(role="anon\u202e"), "the key of role"),
        (jwt(iss="supabase"), "of no role"),
        (jwt(role=["service_role"]), "of no role"),
        ("sb_publishable_0123456789", "the publishable key"),
        ("sbp_0123456789abcdef", "no key of a Supabase project"),
        ("key_0123456789abcdef", "no key of a Supabase project"),
        ("https://example.supabase.co", "no key of a Supabase project"),
        (jwt(role="service_role", ref="another"), "a key of project 'another'"),
    ],
)
def test_a_key_that_may_not_store_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", key)
    for kind in (Settings, ClientSettings):
        (problem,) = refused(kind=kind)
        assert said in problem
        assert "API Keys → secret key" in problem


@pytest.mark.parametrize("key", [jwt(role="service_role", ref="example"), "sb_secret_0123456789"])
def test_a_services_own_key_is_taken(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", key)
    assert not refused()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.supabase.co/rest/v1", "without a path: https://example.supabase.co"),
        ("https://example.supabase.co/storage/v1/", "without a path"),
        (
            "https://supabase.com/dashboard/project/abcdefghijklmnopqrst/settings/api",
            "the project's is https://abcdefghijklmnopqrst.supabase.co",
        ),
        ("https://app.supabase.com", "the dashboard's address"),
        ("http://example.supabase.co", "write https://example.supabase.co"),
        ("https://db.example.supabase.co", "write https://example.supabase.co"),
        ("https://example.supabase.co?apikey=x", "more than a host"),
        ("https://example.supabase.co#", "more than a host"),
        ("https://example.supabase.co?", "more than a host"),
        ("https://example.supabase.co//", "more than a host"),
        ("postgresql://u:hunter22@h/d", "write a full URL"),
        ("example.supabase.co", "write a full URL"),
        ("https://<ref>.supabase.co", "write a full URL"),
        ("https://exa mple.supabase.co", "write a full URL"),
    ],
)
def test_a_url_that_is_not_the_projects_is_refused_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("SUPABASE_URL", url)
    (problem,) = refused()
    assert problem.startswith("SUPABASE_URL: ")
    assert said in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNWAYML_API_SECRET", jwt(role="service_role")),
        ("RUNWAYML_API_SECRET", "sb_secret_0123456789"),
        ("RUNWAYML_BASE_URL", "https://api.dev.runwayml.com/v1"),
        ("RUNWAYML_BASE_URL", "http://api.dev.runwayml.com"),
        ("STORAGE_BUCKET_IMAGES", "a/b"),
        ("STORAGE_BUCKET_IMAGES", ".."),
        ("STORAGE_BUCKET_VIDEOS", "generated-content"),
        ("STORAGE_BUCKET_VIDEOS", "x" * 101),
    ],
)
def test_what_belongs_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    (problem,) = refused()
    assert problem.startswith(f"{name}: ")


PROXIES = {
    "ALL_PROXY": ["socks5://h:1", "socks4://h:1", f"http://u:{SECRET}@h:x", "http://h:99999"],
    "https_proxy": ["ftp://h", f"http://{SECRET}@[::1", "http://", "http://h:0"],
    "HTTP_PROXY": ["\udcff", "://h"],
    "NO_PROXY": ["[::1]", "fe80::/10", "h:port"],
    "SSL_CERT_FILE": ["/nowhere", "/", "/etc/passwd", "\udcff", "a" * 5000],
    "SSL_CERT_DIR": ["/nowhere", "/etc/passwd", "/usr"],
    "SSLKEYLOGFILE": ["/nowhere/x", "/"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in PROXIES.items() for value in values]
)
def test_a_proxy_or_certificate_that_can_not_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    (problem,) = refused()
    assert problem.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTPS_PROXY", f"http://u:{SECRET}@h:1"), ("NO_PROXY", "localhost,::1,10.0.0.0/8,.x.org")],
)
def test_a_proxy_that_can_be_used_is_used_and_its_password_hidden(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not refused()
    assert SECRET not in masking.masked(value)


# Places that settings come from.


def test_a_folder_called_dotenv_is_skipped_and_named_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").mkdir()  # a virtual environment, say
    assert not refused()
    monkeypatch.delenv("DATABASE_URL")
    assert any(problem.startswith(".env: it is a folder") for problem in refused())


def test_a_dotenv_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"VIDGEN_LEASE=\xff\xfe" + SECRET.encode())
    (problem,) = refused()
    assert problem == ".env: .env can't be read (it is no UTF-8 text); correct the file"


def test_a_dotenv_with_a_byte_order_mark_or_nonsense_is_read_or_refused(tmp_path: Path) -> None:
    for text in ("\ufeffVIDGEN_LEASE=1s\n", "= = =\n'", "VIDGEN_LEASE='1s\n\n", "\0\0\0"):
        (tmp_path / ".env").write_text(text)
        refused()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_dotenv_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").touch(0)
    (problem,) = refused()
    assert problem.startswith(".env: .env can't be read (Permission denied)")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\nb", b"a\0b"])
def test_a_credential_that_is_no_text_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "RUNWAYML_API_SECRET").write_bytes(content)
    monkeypatch.delenv("RUNWAYML_API_SECRET")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (problem,) = refused()
    assert problem.startswith("RUNWAYML_API_SECRET: ")


@pytest.mark.parametrize("folder", ["/nowhere", "/etc/passwd", "\udcff", "x" * 5000])
def test_a_folder_of_credentials_that_is_none_is_said_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    monkeypatch.delenv("DATABASE_URL")
    assert any(
        problem.startswith(("CREDENTIALS_DIRECTORY: ", "DATABASE_URL: ")) for problem in refused()
    )


# Real processes.


def run(verb: str, *, shell: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a verb as the console script does, with this environment beside the good settings."""
    command = [sys.executable, "-m", "vidgen_worker", *verb.split()]
    if shell:
        command = ["sh", "-c", f'"$@" {shell}', "sh", *command]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


@pytest.fixture
def nobody() -> Iterator[None]:
    """Services that refuse every connection at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", f"postgresql://u:{SECRET}@127.0.0.1:1/d")
        patch.setenv("SUPABASE_URL", "http://127.0.0.1:1")
        patch.setenv("RUNWAYML_BASE_URL", "http://127.0.0.1:1")
        yield


def answered(done: "subprocess.CompletedProcess[str]", *codes: int) -> None:
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert SECRET not in said
    assert done.returncode in codes, (done.returncode, said)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_url_of_the_database_in_one_sentence(verb: str) -> None:
    url = f"postgresql://postgres:[{SECRET}]@db.ref.supabase.co:5432/postgres"
    done = run(verb, DATABASE_URL=url)
    answered(done, ExitCode.CONFIGURATION)
    assert done.stderr.count("DATABASE_URL: ") == 1


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONWARNINGS": "error"},
        {"PGSSLMODE": "nonsense"},
        {"PGSERVICE": "nowhere"},
        {"COLUMNS": "1"},
        {"COLUMNS": "none", "TERM": "nonsense"},
        {"PSYCOPG_IMPL": "nonsense"},
        {"RUNWAYML_LOG": "debug"},
        {"WATCHDOG_USEC": "²", "NOTIFY_SOCKET": "/nowhere"},
        {"TMPDIR": "/nowhere", "HOME": "/nowhere", "TZ": "nonsense"},
    ],
    ids=str,
)
def test_check_answers_whatever_else_the_environment_holds(environment: dict[str, str]) -> None:
    answered(run("check", **environment), ExitCode.FAILED)


@pytest.mark.usefixtures("nobody")
def test_a_check_is_readable_in_ascii() -> None:
    done = run("check", PYTHONIOENCODING="ascii")
    assert "x PostgreSQL: Can't connect" in done.stdout
    assert "    -> " in done.stdout
    assert done.stdout.isascii()


@pytest.mark.usefixtures("nobody")
def test_json_stays_json_in_ascii() -> None:
    done = run("check --json", PYTHONIOENCODING="ascii")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["findings"]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("verb", "code"),
    [("check", ExitCode.FAILED), ("run", ExitCode.UNAVAILABLE)],
)
def test_closed_streams_change_no_exit_code(verb: str, code: int, closed: str) -> None:
    answered(run(verb, shell=closed), code)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("verb", ["check", "check --json", "stats 2>&1"])
def test_a_reader_that_leaves_ends_a_verb_quietly(verb: str) -> None:
    verb, _, redirect = verb.partition(" 2>")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "vidgen_worker", *verb.split()],
        stdout=writer, stderr=writer if redirect else subprocess.PIPE, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert not done.stderr
    assert done.returncode


IMPORTING = "import sys, os, signal\n\nclass Watch:\n    def find_spec(self, name, *_):\n"
IMPORTING += (
    '        if name == os.environ["AT"]:\n            os.kill(os.getpid(), signal.SIGINT)\n'
)
IMPORTING += "\nsys.meta_path.insert(0, Watch())\n"


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("verb", "moment"),
    [
        ("check", "vidgen_worker.cli"), ("check", "psycopg"), ("run", "typer"),
        ("stats", "pydantic"), ("demo", "rich.console"), ("migrate", "vidgen_worker.config"),
    ],
)  # fmt: skip
def test_ctrl_c_while_a_verb_is_being_loaded_ends_it_with_one_line(
    tmp_path: Path, verb: str, moment: str
) -> None:
    """The signal falls into an import: the longest part of the first half second."""
    (tmp_path / "sitecustomize.py").write_text(IMPORTING)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run(verb, PYTHONPATH=path, AT=moment)
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    assert done.stderr == "Interrupted.\n"


def test_ctrl_c_while_a_verb_waits_for_the_database_says_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/d"
        with subprocess.Popen(
            [sys.executable, "-m", "vidgen_worker", "stats"],
            env={**os.environ, "DATABASE_URL": url}, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            connection.close()
    assert process.returncode == ExitCode.INTERRUPTED
    assert said == "Interrupted.\n"


def test_the_console_script_goes_through_the_same_guard() -> None:
    script = Path(sys.executable).with_name("vidgen-worker").read_text()
    assert "from vidgen_worker.__main__ import main" in script
