"""The examples, run as they stand: against the real database, the worker and the sandbox's project.

REST, Realtime and Storage are the sandbox's, the clients are the real ones. The Node script runs,
and is checked against the types that the Supabase CLI makes of the real database, where `make
tools` has put its packages.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import av
import httpx
import pytest

from tests.conftest import Database
from tests.support.films import size_of
from tests.support.projects import Served, served
from tests.support.world import World
from vidgen_worker.sandbox.control import RunwayControl
from vidgen_worker.sandbox.music import music
from vidgen_worker.sandbox.postgres.places import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TOOLS = ROOT / ".tools" / "node_modules"
NEVER = str(10**9)
PATIENCE = 60.0
COMMANDS = {"py": sys.executable, "sh": "bash", "mjs": "node"}


@dataclass
class Project(World):
    """A world whose SUPABASE_URL has REST and Realtime beside Storage."""

    served: Served = field(kw_only=True)


@pytest.fixture
def project(database: Database, runway: RunwayControl, tmp_path: Path) -> Iterator[Project]:
    """Provide a world as a client sees it."""
    with (
        served(database, tmp_path) as found,
        contextlib.closing(Project(database, runway, found.storage, served=found)) as project,
    ):
        yield project


def environment(project: Project, user: UUID) -> dict[str, str]:
    """The environment of a signed-in user's program."""
    return {
        "PATH": os.environ["PATH"],
        "SUPABASE_URL": project.storage.url,
        "SUPABASE_KEY": project.storage.keys.anon,
        "ACCESS_TOKEN": project.storage.keys.user_token(user),
        "REFETCH_SECONDS": "0.2",
        "REFETCH_MS": "200",
    }


def node_tool(name: str) -> Path:
    """A package that `make tools` brings, or a reason to skip."""
    if shutil.which("node") is None or not (TOOLS / name).exists():
        pytest.skip("there is no Node here, or its packages are not installed: make tools")
    return TOOLS / name


def command(example: str, folder: Path) -> list[str]:
    """The example in a folder of its own, with its packages beside it."""
    kind = example.rpartition(".")[2]
    if kind == "mjs":
        node_tool("@supabase/supabase-js")
        (folder / "node_modules").symlink_to(TOOLS)
    shutil.copy(EXAMPLES / example, folder)
    return [COMMANDS[kind], example]


@asynccontextmanager
async def started(
    words: Sequence[str], env: dict[str, str], folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that is running, and is ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *words, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def end_of(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Wait for a program's end: its status and what it said."""
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def run(words: Sequence[str], env: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Run a program to its end."""
    async with started(words, env, folder) as process:
        return await end_of(process)


async def clip_of(out: str) -> str:
    """The URL that an example has printed, once it has given a clip."""
    url: str = re.findall(r"^video (\S+)$", out, re.MULTILINE)[0]
    async with httpx.AsyncClient() as http:
        assert (await http.get(url)).content[4:8] == b"ftyp"
    return url


EVERY_CLIENT = pytest.mark.parametrize("example", ["generate.py", "generate.sh", "generate.mjs"])


@EVERY_CLIENT
async def test_a_client_orders_watches_and_signs(
    project: Project, tmp_path: Path, example: str
) -> None:
    words = command(example, tmp_path)
    user = project.user()
    scene = str(project.scene(user))
    async with project.worker():
        code, out, err = await run([*words, scene], environment(project, user), tmp_path)
    assert code == 0, (out, err)
    await clip_of(out)


@EVERY_CLIENT
async def test_a_client_is_told_why_it_is_refused(
    project: Project, tmp_path: Path, example: str
) -> None:
    words = command(example, tmp_path)
    user, other = project.user(), project.user()
    scene = str(project.scene(other))
    code, out, err = await run([*words, scene], environment(project, user), tmp_path)
    assert code != 0
    assert "row-level security" in out + err
    assert project.sql("select id from video_generation_tasks") == []


@EVERY_CLIENT
async def test_ctrl_c_cancels_the_order(project: Project, tmp_path: Path, example: str) -> None:
    words = command(example, tmp_path)
    user = project.user()
    scene = str(project.scene(user))
    async with started([*words, scene], environment(project, user), tmp_path) as process:
        await asyncio.to_thread(project.served.heard.next, "read")
        process.send_signal(signal.SIGINT)
        code, out, err = await end_of(process)
    assert code in {1, 130}, (out, err)
    assert project.one("select status from video_generation_tasks")["status"] == "cancelled"


# The Node script and Realtime.


async def test_the_rows_changes_reach_the_node_script_by_realtime(
    project: Project, tmp_path: Path
) -> None:
    """The program never reads again by itself: after its first read it only gets events."""
    words = command("generate.mjs", tmp_path)
    user = project.user()
    env = environment(project, user) | {"REFETCH_MS": NEVER}
    async with started([*words, str(project.scene(user))], env, tmp_path) as process:
        claims = await asyncio.to_thread(project.served.heard.next, "subscribed")
        assert claims["sub"] == str(user)
        async with project.worker():
            code, out, err = await end_of(process)
    assert code == 0, (out, err)
    shown = [int(line[:3]) for line in out.splitlines() if " %  " in line]
    assert shown == sorted(shown)
    assert {0, 5, 15, 35, 75, 100} <= set(shown)
    assert {change["type"] for change in project.served.heard.sent} == {"UPDATE"}


async def test_the_node_script_reads_again_what_it_missed_while_it_was_cut_off(
    project: Project, tmp_path: Path
) -> None:
    """Realtime never sends what happened in between: the last word comes from the read alone."""
    words = command("generate.mjs", tmp_path)
    user = project.user()
    env = environment(project, user) | {"REFETCH_MS": NEVER}
    async with started([*words, str(project.scene(user))], env, tmp_path) as process:
        await asyncio.to_thread(project.served.heard.next, "subscribed")
        task = project.one("select id from video_generation_tasks")["id"]
        project.served.project.realtime.cut()
        async with project.worker():
            await project.until(task)
        project.served.project.realtime.back()
        code, out, err = await end_of(process)
    assert code == 0, (out, err)
    await clip_of(out)
    assert project.served.heard.sent == []


async def test_realtime_sends_a_stranger_nothing(project: Project, tmp_path: Path) -> None:
    """The double's own control: who may not read the row hears no change of it."""
    words = command("generate.mjs", tmp_path)
    user, stranger = project.user(), project.user()
    scene = str(project.scene(user))
    env = environment(project, user) | {"REFETCH_MS": NEVER}
    async with started([*words, scene], env, tmp_path):
        await asyncio.to_thread(project.served.heard.next, "subscribed")
        project.sql("update video_generation_tasks set user_id = %s, progress = 7", stranger)
        kept = await asyncio.to_thread(project.served.heard.next, "withheld")
        assert kept.new["user_id"] == str(stranger)
    assert project.served.heard.sent == []


async def test_after_the_hour_the_owner_signs_again(project: Project, tmp_path: Path) -> None:
    words = command("generate.mjs", tmp_path)
    user = project.user()
    with project.admin() as conn:
        conn.execute("""
            create function public.an_hour_later() returns trigger language plpgsql as
              $$ begin
                new.video_url := 'http://gone.test/'; new.video_url_expires_at := now();
                return new;
              end $$;
            create trigger an_hour_later before update on public.video_generation_tasks
              for each row when (new.status = 'completed')
              execute function public.an_hour_later();
        """)
    async with project.worker():
        code, out, err = await run(
            [*words, str(project.scene(user))], environment(project, user), tmp_path
        )
    assert code == 0, (out, err)
    await clip_of(out)


# A film.


async def test_a_film_of_a_scenario_comes_in_three_formats_with_music(
    project: Project, tmp_path: Path
) -> None:
    words = command("film.mjs", tmp_path)
    user = project.user()
    scene = project.scene(user)
    scenario = project.one("select scenario_id from video_scenes where id = %s", scene)
    project.sql("insert into storage.buckets (id, name) values ('film-assets', 'film-assets')")
    (tmp_path / "warm.m4a").write_bytes(music())
    async with project.worker(VIDGEN_RENDERS="1"):
        code, out, err = await run(
            [*words, str(scenario["scenario_id"]), "warm.m4a"], environment(project, user), tmp_path
        )
    assert code == 0, (out, err)
    await clip_of(out)
    with av.open(str(tmp_path / "film-web.mp4")) as container:
        assert {stream.type for stream in container.streams} >= {"video", "audio"}
        assert float(container.duration or 0) / av.time_base == pytest.approx(2, abs=0.1)
    sizes = {
        name: size_of((tmp_path / f"film-{name}").read_bytes())
        for name in ("web.mp4", "vertical.mp4", "square.mp4", "poster.jpg")
    }
    assert sizes == {
        "web.mp4": "1280:720", "vertical.mp4": "720:1280", "square.mp4": "720:720",
        "poster.jpg": "1280:720",
    }  # fmt: skip


async def test_the_client_of_a_film_is_told_what_is_wrong_in_its_cut(
    project: Project, tmp_path: Path
) -> None:
    words = command("film.mjs", tmp_path)
    user = project.user()
    async with project.worker(VIDGEN_RENDERS="1"):
        code, out, err = await run([*words, str(uuid4())], environment(project, user), tmp_path)
    assert code == 1, (out, err)
    assert "failed INVALID_REQUEST" in out
    assert "/scenario" in out


TYPED = (
    "--strict", "--noEmit", "--allowJs", "--checkJs", "--skipLibCheck",
    "--target", "es2023", "--module", "nodenext", "--types", "node",
)  # fmt: skip


def test_the_node_scripts_agree_with_the_generated_types(
    database: Database, tmp_path: Path
) -> None:
    """The documented command, on the real database, then TypeScript; a wrong name is found."""
    words = command("generate.mjs", tmp_path)
    film = Path(shutil.copy(EXAMPLES / "film.mjs", tmp_path))
    documented = re.findall(
        r"^supabase (gen types .*)$", (ROOT / "docs/clients.md").read_text(), re.MULTILINE
    )
    (generate,) = documented
    supabase, tsc = node_tool(".bin/supabase"), node_tool(".bin/tsc")
    env = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABASE_URL": database.url,
        # A project of Supabase's has TLS; of one without it the CLI warns on stdout.
        "PGSSLMODE": "disable", "SUPABASE_TELEMETRY_DISABLED": "1",
    }  # fmt: skip
    subprocess.run(
        ["bash", "-c", f"{supabase} {generate}"],
        check=True,
        cwd=tmp_path,
        env=env,
        timeout=PATIENCE,
    )
    script = tmp_path / words[1]

    def errors() -> str:
        done = subprocess.run(
            [tsc, *TYPED, script, film], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (not done.stdout), done.stderr
        return done.stdout

    assert errors() == ""
    for name in (script, film):
        name.write_text(name.read_text().replace("row.current_step", "row.current_stage"))
        assert name.name in (said := errors())
        assert "current_stage" in said
        shutil.copy(EXAMPLES / name.name, tmp_path)


@pytest.mark.parametrize("example", ["generate.mjs", "film.mjs"])
def test_a_node_script_is_well_formed(example: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no Node here")
    subprocess.run(["node", "--check", EXAMPLES / example], check=True)


OLD_CLIENT = """
import {{ createClient }} from '@supabase/supabase-js'
import ws from 'ws'
const env = process.env
const supabase = createClient(env.SUPABASE_URL, env.SUPABASE_KEY, {{
  accessToken: async () => env.ACCESS_TOKEN, realtime: {{ transport: ws }},
}})
const scene_id = process.argv[2]
const generate = await supabase.{generate}
const id = generate.data?.id
const task = await supabase.{task}
const tasks = await supabase.{tasks}
console.log(JSON.stringify([generate, task, tasks]))
"""


async def test_the_old_apis_three_calls_are_those_of_the_table(
    project: Project, tmp_path: Path
) -> None:
    """Each as it stands in the document, by the real client."""
    text = (ROOT / "docs" / "clients.md").read_text()
    calls = {
        name: re.findall(rf"^\| `{re.escape(old)}`.*? \| `(from\(.*?\))`", text, re.MULTILINE)[0]
        for name, old in {
            "generate": "POST /api/video/generate",
            "task": "GET /api/video/generate/tasks/{task_id}",
            "tasks": "GET /api/video/generate/tasks",
        }.items()
    }
    words = command("generate.mjs", tmp_path)
    (tmp_path / words[1]).write_text(OLD_CLIENT.format(**calls))
    user = project.user()
    project.order(user, project.scene(user))
    scene = str(project.scene(user))
    code, out, err = await run([*words, scene], environment(project, user), tmp_path)
    assert code == 0, (out, err)
    generate, task, tasks = json.loads(out)
    assert (task["data"]["id"], task["data"]["scene_id"]) == (generate["data"]["id"], scene)
    assert tasks["data"][0]["id"] == generate["data"]["id"]
    assert len(tasks["data"]) == 2


def test_a_payment_counts_once(project: Project) -> None:
    """The payment is sent twice, for another amount, and by a stranger."""
    user, port = uuid4(), free_port()
    env = {
        "SUPABASE_URL": project.storage.url,
        "SUPABASE_SECRET_KEY": project.storage.keys.secret,
        "WEBHOOK_SECRET": "shared",
    }
    webhook = EXAMPLES / "payment_webhook.py"

    def pay(http: httpx.Client, cents: int, secret: bytes = b"shared") -> tuple[int, object]:
        body = json.dumps({"user_id": str(user), "amount_cents": cents, "id": "pay_1"})
        signature = hmac.new(secret, body.encode(), hashlib.sha256).hexdigest()
        answer = http.post("/", content=body, headers={"x-signature": signature})
        return answer.status_code, answer.json().get("balance")

    with (
        subprocess.Popen([sys.executable, webhook, str(port)], env=env) as server,
        # It is repeated until the program listens.
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=6)
        ) as http,
    ):
        try:
            answers = [
                pay(http, 500), pay(http, 500), pay(http, 501), pay(http, 500, b"guessed"),
            ]  # fmt: skip
            odd = http.post("/", content=b"{}", headers={b"x-signature": b"\xff"})
        finally:
            server.terminate()
    assert answers == [(200, 500), (200, 500), (409, None), (401, None)]
    assert odd.status_code == 401
    assert project.credits(user) == (500, 0)


def test_the_sql_runs_as_it_stands(project: Project) -> None:
    user = project.user()
    scene = project.scene(user)
    text = (EXAMPLES / "generate.sql").read_text().partition("\n\n")[2]
    values = {"scene": str(scene), "owner": str(user)}
    with project.admin() as conn:
        for part in re.split(r";\n|\\gset\n", text):
            names = re.findall(r":'(\w+)'", part)
            statement = re.sub(r":'(\w+)'", r"%(\1)s", part)
            if not statement.strip():
                continue
            cursor = conn.execute(statement.encode(), {n: values[n] for n in names})
            if "as task" in part:
                values["task"] = str(cursor.fetchall()[0]["task"])
    assert project.task(UUID(values["task"]))["status"] == "pending"
