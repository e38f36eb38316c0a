"""`vidgen-worker sandbox` as a person has it: what it prints works when pasted, and is kept."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.support.commands import Cli, cli
from tests.support.sandboxes import ROOT, TOOLS, Running, fresh, sandbox
from vidgen_worker.cli import sandbox as sandbox_verb
from vidgen_worker.cli import stack
from vidgen_worker.cli.stack import Place
from vidgen_worker.sandbox.control import RunwayControl
from vidgen_worker.sandbox.state import free

README = (ROOT / "README.md").read_text()
US = f"{sys.executable} -m vidgen_worker"
__all__ = ["cli"]
NAMES = {
    "SUPABASE_URL", "SUPABASE_ANON_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_KEY",
    "DATABASE_URL", "RUNWAYML_BASE_URL", "RUNWAYML_API_SECRET", "ACCESS_TOKEN", "DEMO_EMAIL",
    "DEMO_PASSWORD", "DEMO_USER_ID", "DEMO_SCENE_ID", "SUPABASE_SECRET_KEY", "WEBHOOK_SECRET",
}  # fmt: skip


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Provide a folder that PostgreSQL's account may enter."""
    with tempfile.TemporaryDirectory(prefix="vidgen-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Running]:
    """Provide a sandbox that keeps nothing."""
    with sandbox(home, "--env-file", ".env.sandbox") as found:
        yield found


def shell(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """What a person pastes into a fresh shell."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail"], input=script, cwd=folder,
        env=fresh(REFETCH_SECONDS="0.2"),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def sign_in(settings: dict[str, str]) -> httpx.Response:
    return httpx.post(
        f"{settings['SUPABASE_URL']}/auth/v1/token?grant_type=password",
        json={"email": settings["DEMO_EMAIL"], "password": settings["DEMO_PASSWORD"]},
        headers={"apikey": settings["SUPABASE_ANON_KEY"]},
    )


@pytest.mark.slow
def test_every_line_that_it_prints_to_be_typed_works_in_a_fresh_shell(
    running: Running, home: Path
) -> None:
    """All of them, in their order; the worker that they start makes the demo's video."""
    assert running.settings.keys() >= NAMES
    runway = RunwayControl(running.settings["RUNWAYML_BASE_URL"], "")
    runway.set(image_seconds=0, video_seconds=0)
    lines = re.findall(r"^  (\S.*)$", running.said, re.MULTILINE)
    assert len(lines) >= 5
    done = shell("\n".join([*lines, "kill %1; wait %1 || true"]), home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Video generation completed" in done.stdout
    assert '"status":"completed"' in done.stdout.replace(" ", "")
    # `credits show`: what the enqueue above has cost.
    assert re.search(r"\b70\b", done.stdout), done.stdout


CLIENT = re.findall(r"^```(js|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_readmes_clients_order_and_get_their_videos(running: Running, home: Path) -> None:
    """Both as they stand there; the worker is a process of its own."""
    if shutil.which("node") is None or not (TOOLS / "@supabase" / "supabase-js").exists():
        pytest.skip("there is no Node here, or its packages are not installed: make tools")
    RunwayControl(running.settings["RUNWAYML_BASE_URL"], "").set(image_seconds=0, video_seconds=0)
    (home / "node_modules").symlink_to(TOOLS)
    (language, script), (other, program) = CLIENT
    assert (language, other) == ("js", "python")
    (home / "client.mjs").write_text(script)
    values = 'import os\nscene, user = os.environ["DEMO_SCENE_ID"], os.environ["DEMO_USER_ID"]\n'
    (home / "client.py").write_text(values + program)
    # Node 22 has a WebSocket, Node 20 behind a flag.
    (major,) = re.findall(r"^v(\d+)", subprocess.check_output(["node", "--version"], text=True))
    flag = "--experimental-websocket" if int(major) < 22 else ""
    done = shell(
        # What the two cost: other tests of the file count the demo user's credits.
        f"set -a; . .env.sandbox; set +a\n{US} credits grant $DEMO_USER_ID 60 --yes\n"
        f"{US} run 2>worker.log & trap 'kill %1; wait || true' EXIT\n"
        f"node {flag} client.mjs\n{sys.executable} client.py\n",
        home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^completed http://\S+\.mp4\?token=", done.stdout, re.MULTILINE)) == 2
    (prompt,) = re.findall(r"image_prompt: '(.+)'", script)
    with psycopg.connect(running.settings["DATABASE_URL"]) as connection:
        rows = connection.execute(
            "select t.status, t.video_path is not null from public.video_generation_tasks as t"
            "  join public.video_scenes as s on s.id = t.scene_id where s.image_prompt = %s",
            [prompt],
        ).fetchall()
    assert rows == [("completed", True)]
    assert re.search(r"^\d+ % [A-Z]\w+", done.stdout, re.MULTILINE)


def test_what_it_prints_without_a_file_can_be_pasted_whole(running: Running, home: Path) -> None:
    """`set -a`, the settings, `set +a`: the printed form where no file is asked for."""
    from vidgen_worker.cli.sandbox import usage  # noqa: PLC0415 - the command line's own

    said = usage(running.settings)
    block = said.partition("set +a")[0] + "set +a\n"
    asked = shell(block + "python3 -c \"import os; print(os.environ['DEMO_USER_ID'])\"", home)
    assert asked.stdout.strip() == running.settings["DEMO_USER_ID"], asked.stderr


def test_its_dashboard_runs_along_and_its_link_is_printed(running: Running) -> None:
    (link,) = re.findall(r"^# See it in a browser: (\S+)$", running.said, re.MULTILINE)
    with httpx.Client(follow_redirects=True) as client:
        answer = client.get(link)
    assert answer.status_code == 200
    assert running.settings["SUPABASE_URL"] in answer.headers["content-security-policy"]


def test_its_user_brings_the_assets_of_films_before_any_worker_runs(running: Running) -> None:
    """Into the user's own folder of the bucket, what the bucket takes, and nowhere else."""
    said = running.settings
    token = sign_in(said).json()["access_token"]
    mine, another = said["DEMO_USER_ID"], uuid4()

    def bring(folder: object, media_type: str) -> int:
        answer = httpx.post(
            f"{said['SUPABASE_URL']}/storage/v1/object/film-assets/{folder}/music/warm.m4a",
            content=b"sound",
            headers={
                "apikey": said["SUPABASE_ANON_KEY"], "authorization": f"Bearer {token}",
                "content-type": media_type,
            },
        )  # fmt: skip
        return int(answer.json().get("statusCode", answer.status_code))

    assert bring(another, "audio/mp4") == 403
    assert bring(mine, "video/mp4") == 415
    assert bring(mine, "audio/mp4") == 200


def test_a_token_is_renewed_by_address_and_id_and_for_nobody_else(
    running: Running, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in running.settings.items():
        monkeypatch.setenv(name, value)
    email = running.settings["DEMO_EMAIL"]
    for user in (email, email.upper(), running.settings["DEMO_USER_ID"]):
        token = cli("sandbox", "token", user)
        answer = httpx.get(
            f"{running.settings['SUPABASE_URL']}/auth/v1/user",
            headers={
                "apikey": running.settings["SUPABASE_KEY"],
                "authorization": f"Bearer {token.out.strip()}",
            },
        )
        assert answer.json()["id"] == running.settings["DEMO_USER_ID"], token.err
    stranger = cli("sandbox", "token", "nobody@example.com")
    assert (stranger.code, stranger.out) == (1, "")
    assert "There is no user 'nobody@example.com'" in stranger.err
    monkeypatch.setenv("SUPABASE_URL", "https://abc.supabase.co")
    hosted = cli("sandbox", "token", "x")
    assert hosted.code == 78
    assert "no other project makes tokens" in hosted.err


def test_without_its_packages_each_verb_says_which_and_how_to_get_them(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "SANDBOX_PACKAGES", ("no_such_package",))
    for verb in (["sandbox"], ["sandbox", "token", "x"], ["demo"]):
        done = cli(*verb)
        assert done.code == 78
        assert "not installed: no_such_package" in done.err
        assert "pip install 'vidgen-worker[sandbox]'" in done.err


def test_a_file_that_is_somebodys_own_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("KEEP=me\n")
    done = cli("sandbox", "--env-file", "mine")
    assert done.code == 78
    assert "was not written by a sandbox" in done.err
    assert (tmp_path / "mine").read_text() == "KEEP=me\n"
    done = cli("sandbox", "--env-file", "nowhere/.env")
    assert (done.code, done.out) == (78, "")
    assert "there is no such folder" in done.err
    assert "Starting" not in done.err


def test_a_link_for_its_file_of_settings_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    sandbox_verb._write(tmp_path / "link", {"NAME": "value"})
    assert (tmp_path / "link").is_symlink()
    assert "NAME=value" in (tmp_path / "real").read_text()


def test_a_folder_of_other_files_is_refused_before_anything_starts(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = cli("sandbox", "--data", ".")
    assert done.code == 1
    assert "holds what is no sandbox's (thesis.txt)" in " ".join(done.err.split())
    done = cli("sandbox", "--data", "thesis.txt")
    assert "is a file: give a folder" in " ".join(done.err.split())


def test_a_taken_port_is_reported_in_a_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free(port) == 0
        done = shell(f"{US} sandbox --port {port}", home)
    assert done.returncode == 1
    assert f"can't start on port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_that_start_at_the_same_moment_take_ports_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both see the usual ports free; whoever is slower takes others."""
    monkeypatch.setattr(stack, "SANDBOX_PORT", free_port())
    monkeypatch.setattr(stack, "POSTGRES_PORT", free_port())
    with ThreadPoolExecutor(2) as pool:
        started = [one.result() for one in [pool.submit(stack._started, Place()) for _ in "ab"]]
    for one in started:
        one.stop()
    assert len({one.url for one in started}) == len({one.postgres.port for one in started}) == 2


def test_a_folder_keeps_database_users_objects_keys_and_ports(home: Path) -> None:
    arguments = ("--data", "kept", "--port", str(free_port()))
    with sandbox(home, *arguments) as first:
        before = first.settings
        service = {
            "apikey": before["SUPABASE_SERVICE_ROLE_KEY"],
            "authorization": f"Bearer {before['SUPABASE_SERVICE_ROLE_KEY']}",
        }
        storage = f"{before['SUPABASE_URL']}/storage/v1"
        made = httpx.post(f"{storage}/bucket", json={"name": "kept"}, headers=service)
        put = httpx.post(f"{storage}/object/kept/a.txt", content=b"kept", headers=service)
        signed = httpx.post(
            f"{storage}/object/sign/kept/a.txt", json={"expiresIn": 3600}, headers=service
        )
        assert [made.status_code, put.status_code] == [200, 200]
        with psycopg.connect(before["DATABASE_URL"]) as connection:
            connection.execute("update video_scenes set visual_prompt = 'kept'")
        # As if it had been ended between the first save of its file and the demo's user.
        user = f"{before['SUPABASE_URL']}/auth/v1/admin/users/{before['DEMO_USER_ID']}"
        assert httpx.delete(user, headers=service).status_code == 200
    with sandbox(home, "--data", "kept") as second:
        after = second.settings
        renewed = {"ACCESS_TOKEN"}
        assert {n: v for n, v in after.items() if n not in renewed} == {
            n: v for n, v in before.items() if n not in renewed
        }
        assert sign_in(after).status_code == 200
        assert httpx.get(f"{storage}{signed.json()['signedURL']}").content == b"kept"
        with psycopg.connect(after["DATABASE_URL"]) as connection:
            rows = connection.execute("select visual_prompt from video_scenes").fetchall()
            balance = connection.execute("select balance from user_credits").fetchall()
        assert (rows, balance) == ([("kept",)], [(100,)])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
