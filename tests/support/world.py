"""A small world for whole-pipeline tests: real PostgreSQL, the doubles over HTTP, real workers.

It acts as an application would: rows are inserted as role `authenticated` with a user's claims. It
waits for what happens (a row's NOTIFY, an event), never for time to pass.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import httpx
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.support.application import Application
from tests.support.hands import Ground, ground_of, refuse
from tests.support.sessions import Sessions
from vidgen_worker.config import Settings
from vidgen_worker.pipeline.stages import PIPELINE, Stage
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.telemetry import bus
from vidgen_worker.worker.serve import build_worker
from vidgen_worker.worker.worker import Worker

PATIENCE = 60.0
"""Seconds after which a thing that should happen has not: only ever reached by a failing test."""

_TELL = """
create or replace function public.tell_the_test() returns trigger language plpgsql as $$
begin
  perform pg_notify('test_rows', new.id::text || ' ' || new.status || ' ' || new.attempt);
  return null;
end $$;
create or replace trigger tell_the_test after insert or update on public.video_generation_tasks
  for each row execute function public.tell_the_test();
create or replace function public.tell_of_a_beat() returns trigger language plpgsql as $$
begin
  perform pg_notify('test_beats', new.id::text);
  return null;
end $$;
create or replace trigger tell_of_a_beat after update on vidgen.workers
  for each row execute function public.tell_of_a_beat();
"""

Row = dict[str, Any]


@dataclass
class World(Application):
    """One test's database and doubles."""

    database: Database
    runway: RunwayControl
    storage: StorageControl
    environment: dict[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = PIPELINE
    """What workers in this process walk."""

    def __post_init__(self) -> None:
        """Let every change of a task's row be heard by the test."""
        self._admins = Sessions(self.database.admin_url)
        self._users = Sessions(self.database.url)
        self.sql(_TELL)

    def close(self) -> None:
        """Close the sessions of the test's own statements."""
        self._admins.close()
        self._users.close()

    # Settings and workers.

    def env(self, **overrides: str) -> dict[str, str]:
        """The worker's environment, quick where nothing is learned from waiting."""
        return {
            "DATABASE_URL": self.database.url,
            "SUPABASE_URL": self.storage.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.storage.keys.service_role,
            "RUNWAYML_API_SECRET": self.runway.key,
            "RUNWAYML_BASE_URL": self.runway.url,
            "VIDGEN_ALLOW_LOOPBACK_ASSETS": "true",
            "VIDGEN_POLL_INTERVAL": "30ms",
            "VIDGEN_QUEUE_POLL": "200ms",
            "VIDGEN_RETRY_BACKOFF": "20ms",
            "VIDGEN_LEASE": "3s",
            "VIDGEN_GATE_PROBE": "300ms",
            "VIDGEN_RENDERS": "0",
            **self.environment,
            **overrides,
        }

    def settings(self, **overrides: str) -> Settings:
        """The same as a Settings object, whatever the machine's environment says."""
        values: dict[str, Any] = {k.lower(): v for k, v in self.env(**overrides).items()}
        return Settings(_env_file=None, **values)

    @asynccontextmanager
    async def worker(self, **overrides: str) -> AsyncIterator[Worker]:
        """A worker in this process, drained at the end of the block."""
        worker = build_worker(self.settings(**overrides), self.stages)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running

    @contextmanager
    def process(self, log: Path, **overrides: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker as a process of its own; ended at the end of the block."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDGEN_")}
        with (
            log.open("ab") as out,
            subprocess.Popen(
                [sys.executable, "-m", "vidgen_worker", "run"],
                env=environment | self.env(**overrides), stdout=out, stderr=out, cwd=log.parent,
            ) as process,
        ):  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
                    process.wait(PATIENCE)

    # The application.

    def admin(self) -> psycopg.Connection[Row]:
        """A superuser's connection, in autocommit."""
        return psycopg.connect(self.database.admin_url, autocommit=True, row_factory=dict_row)

    def sql(self, statement: str, *parameters: object) -> list[Row]:
        """Run one statement as superuser."""
        with self._admins.one() as conn:
            cursor = conn.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def scene(
        self, user_id: UUID, *, resolution: str | None = "1280:720", **columns: object
    ) -> UUID:
        """A scene of the user, in a scenario of its own (None: the scenario is missing)."""
        scenario_id, scene_id = uuid4(), uuid4()
        if resolution is not None:
            self.sql(
                "insert into video_scenarios (id, resolution) values (%s, %s)",
                scenario_id, resolution,
            )  # fmt: skip
        # The prompts name the scene: the double's generations are told apart by it.
        scene = {
            "id": scene_id, "scenario_id": scenario_id, "duration": 2,
            "image_prompt": f"A bottle on a stone {scene_id}",
            "visual_prompt": f"The camera moves around it {scene_id}",
        }  # fmt: skip
        return self.insert_scene(user_id, **{**scene, **columns})

    def as_user(self, user_id: UUID, statement: LiteralString, *parameters: object) -> list[Row]:
        """Run one statement as PostgREST would for a signed-in user."""
        with self._users.one() as conn, conn.transaction():
            conn.execute("set local role authenticated")
            conn.execute(
                "select set_config('request.jwt.claims', %s::text, true)",
                (Jsonb({"sub": str(user_id), "role": "authenticated"}),),
            )
            cursor = conn.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def order(self, user_id: UUID, scene_id: UUID) -> UUID:
        """Insert a task as its user."""
        task_id = uuid4()
        self.as_user(
            user_id,
            "insert into public.video_generation_tasks (id, scene_id, user_id) values (%s, %s, %s)",
            task_id, scene_id, user_id,
        )  # fmt: skip
        return task_id

    def ground(self) -> AbstractContextManager[Ground]:
        """The same database for the SQL's own hands."""
        return ground_of(self.database)

    def none_lives(self, task_id: UUID) -> bool:
        """Whether the provider has nothing under way of this task."""
        ids = {str(row["generation_id"]) for row in self.sql(
            "select generation_id from vidgen.submissions where task_id = %s", task_id
        )}  # fmt: skip
        return not [
            one for one in self.runway.generations()
            if one["id"] in ids and one["state"].upper() in ("THROTTLED", "PENDING", "RUNNING")
        ]  # fmt: skip

    # Waiting for what happens.

    async def until(
        self, task_id: UUID, *statuses: str, attempt: int = 0, patience: float = PATIENCE
    ) -> Row:
        """Wait until the row has one of these statuses (by default: has ended)."""
        wanted = statuses or ("completed", "failed", "cancelled")
        async with await psycopg.AsyncConnection.connect(
            self.database.admin_url, autocommit=True
        ) as conn:
            await conn.execute("listen test_rows")
            async with asyncio.timeout(patience):
                while True:
                    row = await asyncio.to_thread(self.task, task_id)
                    if row["status"] in wanted and row["attempt"] >= attempt:
                        return row
                    async for _ in conn.notifies(timeout=patience, stop_after=1):
                        pass

    async def beats(self, count: int = 2) -> None:
        """Wait for so many heartbeats: by then a worker had every reason to do what it does."""
        async with await psycopg.AsyncConnection.connect(
            self.database.admin_url, autocommit=True
        ) as conn:
            await conn.execute("listen test_beats")
            async with asyncio.timeout(PATIENCE):
                async for _ in conn.notifies(stop_after=count):
                    pass


@contextmanager
def recorded() -> Iterator[list[bus.Event]]:
    """Every event inside the block."""
    heard: list[bus.Event] = []
    with bus.subscribed(heard.append):
        yield heard


@asynccontextmanager
async def hearing(kind: type[bus.Event]) -> AsyncIterator[asyncio.Event]:
    """An asyncio.Event that is set when such an event happens."""
    happened = asyncio.Event()

    def hear(event: bus.Event) -> None:
        if isinstance(event, kind):
            happened.set()

    with bus.subscribed(hear):
        yield happened


def posts(world: World) -> tuple[int, int]:
    """How many paid POSTs the provider has seen, for the still and for the clip."""
    paths = [request["path"] for request in world.runway.requests()]
    return paths.count("/v1/text_to_image"), paths.count("/v1/image_to_video")


def submissions(world: World) -> list[dict[str, Any]]:
    return world.sql("select * from vidgen.submissions order by sent_at")


def crowd(world: World, count: int, words: str = "") -> list[UUID]:
    """Tasks of as many users."""
    tasks = []
    for _ in range(count):
        user = world.user()
        tasks.append(world.order(user, world.scene(user, image_prompt=f"{words} {uuid4()}")))
    return tasks


def probe_now(world: World) -> None:
    """Let the time of the next probe come."""
    world.sql("update vidgen.gates set probe_at = now()")


def many(world: World, count: int, words: str = "") -> list[UUID]:
    """So many tasks of one user, each with a scene of its own, in one INSERT."""
    user = world.user(count * 30)
    world.sql(
        """
        with s as (
          insert into video_scenes
            (id, user_id, scenario_id, image_prompt, visual_prompt, duration)
          select g, %s, gen_random_uuid(), %s || 'A bottle ' || g, 'Around it ' || g, 2
            from (select gen_random_uuid() as g from generate_series(1, %s)) as ids
          returning id, user_id
        )
        select count(*) from s
        """, user, words, count,
    )  # fmt: skip
    rows = world.sql(
        "insert into video_generation_tasks (scene_id, user_id) "
        "select id, user_id from video_scenes where user_id = %s returning id", user,
    )  # fmt: skip
    return [row["id"] for row in rows]


def cancel(world: World, user: UUID, task: UUID) -> Row:
    """Ask as the task's owner does."""
    (row,) = world.as_user(user, "select * from public.cancel_video_generation_task(%s)", task)
    return row


def vidgen(
    world: World, *arguments: str, **overrides: str
) -> "subprocess.CompletedProcess[str]":  # fmt: skip
    """Run the command line as an operator would."""
    return subprocess.run(
        [sys.executable, "-m", "vidgen_worker", *arguments],
        env={
            "PATH": "/usr/bin:/bin", "COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[2]),
            **world.env(**overrides),
        },
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def told(world: World, *arguments: str) -> Any:  # noqa: ANN401 - whatever was printed
    """The JSON of a verb that went well."""
    done = vidgen(world, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refuse_one(world: World, task_id: UUID, when: str) -> None:
    """As `refuse`, in a world."""
    with world.ground() as ground:
        refuse(ground, task_id, when=when)


def reasons(world: World) -> list[tuple[str, str]]:
    """Kind of scope and reason of every closed gate."""
    rows = world.sql("select scope, reason from vidgen.gates order by reason")
    return [(row["scope"].partition(":")[0], row["reason"]) for row in rows]


def set_bucket(world: World, name: str, **settings: object) -> None:
    """Change a bucket's settings, as the dashboard does."""
    key = world.storage.keys.service_role
    answer = httpx.put(
        f"{world.storage.url}/storage/v1/bucket/{name}", json=settings,
        headers={"apikey": key, "authorization": f"Bearer {key}"},
    )  # fmt: skip
    answer.raise_for_status()


def make_buckets(world: World) -> None:
    """Make both buckets as a worker would, before any worker looks."""
    world.sql(
        "insert into storage.buckets (id, name, public) values "
        "('generated-content', 'generated-content', true), ('video-files', 'video-files', false)"
    )


def forget(world: World) -> None:
    """Let the time be over for which a successor waits for the answer."""
    world.sql("update vidgen.submissions set sent_at = sent_at - interval '1 hour'")
