"""The examples, run as they stand: against the real database, the worker and the doubles.

The REST API is `tests/rest.py`; there is no Realtime server, so what watches falls back on reading
again. The Node script runs where its packages are installed (npm install in examples/, or in the
folder that holds the Supabase CLI), and is checked for its syntax wherever there is Node.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from tests.conftest import Database
from tests.rest import Rest
from tests.world import World
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres import free_port
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.storage import StorageDouble

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MODULES = (EXAMPLES / "node_modules", ROOT / ".tools" / "node_modules")


@pytest.fixture
def project(database: Database, runway: RunwayControl, tmp_path: Path) -> Iterator[World]:
    """A world whose SUPABASE_URL has REST beside Storage."""
    double = StorageDouble(tmp_path / "storage", database.admin_url)
    double.app.router.routes.extend(Rest(database.admin_url, double.keys).routes())
    with BackgroundServer(double.app) as server:
        yield World(database, runway, StorageControl(server.url, double.keys))


def environment(project: World, user: UUID) -> dict[str, str]:
    """What a signed-in user's program is given."""
    return {
        "PATH": os.environ["PATH"],
        "SUPABASE_URL": project.storage.url,
        "SUPABASE_KEY": project.storage.keys.anon,
        "ACCESS_TOKEN": project.storage.keys.user_token(user),
        "REFETCH_SECONDS": "0.2",
        "REFETCH_MS": "200",
    }


async def run(
    command: Sequence[str], env: dict[str, str], cwd: Path = EXAMPLES
) -> tuple[int, str, str]:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def node_modules() -> Path:
    """Where the Node script's packages are, or a reason to skip."""
    if shutil.which("node") is None:
        pytest.skip("there is no Node here")
    for folder in MODULES:
        if (folder / "@supabase" / "supabase-js").is_dir() and (folder / "ws").is_dir():
            return folder
    pytest.skip("the packages are not installed: npm install in examples/")


@pytest.mark.parametrize("example", ["generate.py", "generate.sh", "generate.mjs"])
async def test_a_client_orders_watches_and_signs(
    project: World, tmp_path: Path, example: str
) -> None:
    script = tmp_path / example
    shutil.copy(EXAMPLES / example, script)
    command = {"py": sys.executable, "sh": "bash", "mjs": "node"}[example.rpartition(".")[2]]
    if command == "node":
        (tmp_path / "node_modules").symlink_to(node_modules())
    user = project.user()
    scene = project.scene(user)
    async with project.worker():
        code, out, err = await run(
            [command, str(script), str(scene)], environment(project, user), tmp_path
        )
    assert code == 0, (out, err)
    url = re.findall(r"^video (\S+)$", out, re.MULTILINE)[0]
    async with httpx.AsyncClient() as http:
        assert (await http.get(url)).content[4:8] == b"ftyp"


@pytest.mark.parametrize("example", ["generate.py", "generate.sh", "generate.mjs"])
async def test_a_client_is_told_why_it_is_refused(
    project: World, tmp_path: Path, example: str
) -> None:
    shutil.copy(EXAMPLES / example, tmp_path)
    command = {"py": sys.executable, "sh": "bash", "mjs": "node"}[example.rpartition(".")[2]]
    if command == "node":
        (tmp_path / "node_modules").symlink_to(node_modules())
    user, other = project.user(), project.user()
    code, out, err = await run(
        [command, example, str(project.scene(other))], environment(project, user), tmp_path
    )
    assert code != 0
    assert "row-level security" in out + err
    assert project.sql("select id from video_generation_tasks") == []


def test_the_node_script_is_well_formed() -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no Node here")
    subprocess.run(["node", "--check", EXAMPLES / "generate.mjs"], check=True)


def test_a_payment_counts_once(project: World) -> None:
    """Sent twice by the payment provider, for another amount, and by somebody else."""
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
        # It tries again until the program listens.
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=6)
        ) as http,
    ):
        try:
            answers = [
                pay(http, 500), pay(http, 500), pay(http, 501), pay(http, 500, b"guessed"),
            ]  # fmt: skip
        finally:
            server.terminate()
    assert answers == [(200, 500), (200, 500), (409, None), (401, None)]
    assert project.credits(user) == (500, 0)


def test_the_sql_runs_as_it_stands(project: World) -> None:
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


def test_squawk_has_nothing_to_say() -> None:
    """Every rule that is off has its reason in .squawk.toml."""
    config = tomllib.loads((ROOT / ".squawk.toml").read_text())
    assert config["pg_version"] == "15.0"
    squawk = Path(sys.executable).with_name("squawk")
    if not squawk.exists():
        pytest.skip("squawk-cli is not installed: pip install squawk-cli")
    files = sorted((ROOT / "migrations").glob("*.sql"))
    done = subprocess.run(
        [squawk, "--config", ROOT / ".squawk.toml", *files],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
