"""The soak: four workers, kill -9 every three seconds, Postgres restarted, everything misbehaves.

`python -m tests.soak.run --seed N` plays one run, prints what happened as tables, and exits 1 on a
violation. A seed decides the tasks, their faults and their cancels; the scheduler decides the rest.
What must be true at the end is asked in `audit.py`. It never touches a database not its own.
"""

import argparse
import asyncio
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.soak.audit import SLOTS, Report, audit
from tests.soak.faults import TroubledStorage
from tests.soak.plan import Order, Plan, orders_of
from tests.support.mortal import Mortal, Mortals, mortals
from tests.support.world import World
from vidgen_worker.database.migrate import migrate
from vidgen_worker.domain.task import StageName
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap
from vidgen_worker.worker.serve import build_worker

LOOK_EVERY = 0.5
LAST_START = 30.0
CREDITS_OF_A_USER = 1_000_000
ENDED = ("completed", "failed", "cancelled")
MENDED_AT = 0.8
"""The application mends its trigger when this share of the tasks has ended."""
APPLICATION = """
create table public.refusing (task_id uuid primary key, what text not null);
create function public.application_refuses() returns trigger
language plpgsql security definer as $$
declare
  what text;
begin
  select r.what into what from public.refusing as r where r.task_id = new.id;
  if what in (new.status, 'anything')
     or (what = 'still' and new.image_path is not null)
     or (what = 'clip' and new.video_path is not null)
     or (what = 'progress' and new.progress > 36) then
    raise foreign_key_violation using message = 'notifications_user_id_fkey';
  end if;
  return null;
end
$$;
create trigger application_refuses after update on public.video_generation_tasks
  for each row execute function public.application_refuses();
"""
"""An application's own trigger, which refuses some rows."""
POOLER = """
create function public.pooler_breaks() returns trigger language plpgsql as $$
begin
  if random() < {share} then
    raise exception '(EDBHANDLEREXITED) connection to database closed' using errcode = 'XX000';
  end if;
  return null;
end
$$;
"""
BREAKS = """
create trigger pooler_breaks after insert or update on {}
  for each statement execute function public.pooler_breaks()
"""
WRITTEN_IN_PAIN = ("submissions", "checkpoints", "holds", "budgets", "charges")
"""Tables whose writes a pooler's error meets now and then."""
DISK_FULL_AT = 0.2
"""The disk is full from the moment when this share of the tasks has ended."""
NOT_THE_KEY = "sb_secret_this_is_another_project_s_key_0000"
ENVIRONMENT = {
    "VIDGEN_LEASE": "3s", "VIDGEN_SUBMIT_TIMEOUT": "4s", "VIDGEN_STORAGE_TIMEOUT": "2s",
    "VIDGEN_POLL_INTERVAL": "150ms", "VIDGEN_RETRY_BACKOFF_MAX": "1s",
    "VIDGEN_STAGE_DEADLINE": "4s", "VIDGEN_STAGE_HARD_DEADLINE": "8s",
    "VIDGEN_LOG_FORMAT": "json",
    "VIDGEN_IMAGE_SLOTS": str(SLOTS), "VIDGEN_VIDEO_SLOTS": str(SLOTS),
}  # fmt: skip


# The clients.


@dataclass
class Clients:
    """The application: it inserts, cancels, and tries again while Postgres is away."""

    world: World
    orders: list[Order]
    chance: random.Random
    asked: set[UUID] = field(default_factory=set)
    """Tasks whose cancel was accepted."""
    scenes_deleted: int = 0
    inserted: int = 0

    def prepare(self) -> None:
        """Users with credits, scenarios and scenes."""
        with self.world.admin() as conn, conn.transaction():
            cursor = conn.cursor()
            # Faults cost the operator money that no user pays: the daily limit is another test's.
            conn.execute(
                "update vidgen.settings set max_unbilled_cost_per_user = 1000000,"
                " refusal_pause = '200 milliseconds'"
            )
            conn.execute(APPLICATION)
            cursor.executemany(
                "insert into public.refusing (task_id, what) values (%s, %s)",
                [(o.task_id, o.refuses) for o in self.orders if o.refuses],
            )
            cursor.executemany(
                "select public.grant_video_credits(%s, %s, %s)",
                [(u, CREDITS_OF_A_USER, f"soak {u}") for u in {o.user_id for o in self.orders}],
            )
            cursor.executemany(
                "insert into video_scenarios (id, resolution) values (%s, '1280:720')",
                [(order.scene_id,) for order in self.orders],
            )
            cursor.executemany(
                "insert into video_scenes (id, user_id, scenario_id, image_prompt, visual_prompt, "
                "duration) values (%s, %s, %s, %s, %s, 2)",
                [(o.scene_id, o.user_id, o.scene_id, o.prompt(StageName("image")),
                  o.prompt(StageName("video"))) for o in self.orders],
            )  # fmt: skip

    def insert(self, orders: list[Order]) -> None:
        """Insert tasks as their users do; an id that is there is an answer that was lost."""
        for user_id in {order.user_id for order in orders}:
            own = [(o.task_id, o.scene_id) for o in orders if o.user_id == user_id]
            with psycopg.connect(self.world.database.url) as conn, conn.transaction():
                _become(conn, user_id)
                known = {
                    row[0]
                    for row in conn.execute(
                        "select id from public.video_generation_tasks where id = any(%s)",
                        ([task_id for task_id, _ in own],),
                    )
                }
                conn.cursor().executemany(
                    "insert into public.video_generation_tasks (id, scene_id) values (%s, %s)",
                    [pair for pair in own if pair[0] not in known],
                )
        self.inserted += len(orders)

    def cancel_some(self) -> None:
        """Cancel some of those that are to be: rather one that runs than one that waits."""
        left = {
            o.task_id: o.user_id
            for o in self.orders if o.cancel and o.task_id not in self.asked
        }  # fmt: skip
        rows = self.world.sql(
            "select id, status from public.video_generation_tasks "
            "where id = any(%s) and status in ('pending', 'processing')",
            list(left),
        )
        for row in rows:
            likely = 0.3 if row["status"] == "processing" else 0.01
            if self.chance.random() < likely:
                with psycopg.connect(self.world.database.url) as conn, conn.transaction():
                    _become(conn, left[row["id"]])
                    # Noted first: an answer that is lost may have been obeyed.
                    self.asked.add(row["id"])
                    conn.execute(
                        "select from public.cancel_video_generation_task(%s)", (row["id"],)
                    )

    def delete_some_scenes(self) -> None:
        """Delete scenes of tasks that wait or run, as their owners may at any moment."""
        doomed = [o.scene_id for o in self.orders if o.deletes_scene]
        rows = self.world.sql(
            "delete from public.video_scenes as s using public.video_generation_tasks as t"
            " where t.scene_id = s.id and s.id = any(%s) and t.status in ('pending', 'processing')"
            "   and random() < 0.05 returning s.id",
            doomed,
        )
        self.scenes_deleted += len(rows)

    def mend(self) -> None:
        """The application mends its trigger: its rows take changes again.

        Rows that refused even their end are asked once an hour: that hour is over.
        """
        self.world.sql("delete from public.refusing")
        self.world.sql("update vidgen.refusals set until = now() where statement = 'end'")

    async def keep_deleting(self, stop: asyncio.Event) -> None:
        """Delete scenes now and then until the end."""
        while not await _stopped(stop, 0.2):
            await _persistently(self.delete_some_scenes, stop)

    async def keep_inserting(self, wave: int, pause: float, stop: asyncio.Event) -> None:
        """Insert everything, in waves."""
        for start in range(0, len(self.orders), wave):
            await _persistently(partial(self.insert, self.orders[start : start + wave]), stop)
            if await _stopped(stop, pause):
                return

    async def keep_cancelling(self, stop: asyncio.Event) -> None:
        """Cancel now and then until the end."""
        while not await _stopped(stop, 0.3):
            await _persistently(self.cancel_some, stop)


def _become(conn: psycopg.Connection[tuple[object, ...]], user_id: UUID) -> None:
    conn.execute("set local role authenticated")
    conn.execute(
        "select set_config('request.jwt.claims', %s::text, true)",
        (Jsonb({"sub": str(user_id), "role": "authenticated"}),),
    )


async def _persistently(work: Callable[[], None], stop: asyncio.Event) -> None:
    """Do this until Postgres answers: it is restarted under the clients' feet too."""
    while not stop.is_set():
        try:
            await asyncio.to_thread(work)
        except (psycopg.OperationalError, psycopg.InternalError):  # the second: a pooler's own
            await _stopped(stop, 0.2)
        else:
            return


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; whether the end came meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


# The workers.


class Fleet:
    """Workers, each with a fork server of its own, so that a new life starts at once."""

    def __init__(self, servers: list[Mortals], settings: list[dict[str, str]]) -> None:
        self._servers = servers
        self._settings = settings
        self._lives: list[Mortal] = []
        self.kills = 0
        self.strange_ends: list[str] = []

    async def start(self) -> None:
        """Start all of them."""
        self._lives = [
            await server.start(settings)
            for server, settings in zip(self._servers, self._settings, strict=True)
        ]

    async def kill(self, number: int) -> None:
        """Kill one by SIGKILL and start it anew."""
        if await self._end(number, signal.SIGKILL, -signal.SIGKILL):
            self.kills += 1
        self._lives[number] = await self._servers[number].start(self._settings[number])

    async def keep_killing(self, every: float, chance: random.Random, stop: asyncio.Event) -> None:
        """Kill one now and then, until the end."""
        while not await _stopped(stop, every):
            await self.kill(chance.randrange(len(self._lives)))

    async def drain(self, world: World) -> None:
        """End all of them in good order, once the youngest has begun: it must heed a signal."""
        pids = [life.pid for life in self._lives]
        deadline = time.monotonic() + LAST_START
        while time.monotonic() < deadline:
            (row,) = world.sql(
                "select count(distinct pid) as begun from vidgen.workers where pid = any(%s)", pids
            )
            if row["begun"] == len(pids):
                break
            await asyncio.sleep(LOOK_EVERY)
        await asyncio.gather(
            *(self._end(number, signal.SIGTERM, 0) for number in range(len(self._lives)))
        )

    async def _end(self, number: int, by: signal.Signals, expected: int) -> bool:
        try:
            self._lives[number].signal(by)
        except ProcessLookupError:
            self.strange_ends.append(f"worker {number} was gone before its {by.name}")
        status = await self._lives[number].ended()
        if status != expected:
            self.strange_ends.append(f"worker {number} ended with {status} after {by.name}")
        return status == expected


# The run.


@dataclass
class Stage:
    """Everything a run plays on."""

    world: World
    server: EmbeddedPostgres
    runway: RunwayDouble
    storage: TroubledStorage
    log: Path


@asynccontextmanager
async def _staged(plan: Plan, folder: Path) -> AsyncIterator[Stage]:
    with EmbeddedPostgres.start(durable=False) as server:
        bootstrap(server.admin_url())
        migrate(server.url())
        runway = RunwayDouble(
            folder / "runway",
            RunwaySettings(
                image_seconds=0.3, video_seconds=0.6, render="cached", unlimited=True
            ),
        )  # fmt: skip
        runway.generations.credits_left = 100 * plan.tasks
        storage = TroubledStorage(
            folder / "storage", server.admin_url(), plan.storage_share, plan.seed
        )
        with BackgroundServer(runway.app) as provider, BackgroundServer(storage.app) as store:
            world = World(
                Database("postgres", server.url(), server.admin_url()),
                RunwayControl(provider.url, runway.key),
                StorageControl(store.url, storage.keys),
                dict(ENVIRONMENT, VIDGEN_CONCURRENCY=str(plan.concurrency)),
            )
            with closing(world):
                yield Stage(world, server, runway, storage, folder / "workers.log")


async def soak(plan: Plan, folder: Path, say: Callable[[str], None]) -> Report:
    """Play one run and audit it."""
    orders = orders_of(plan)
    began = time.monotonic()
    async with _staged(plan, folder) as stage:
        with ExitStack() as stack:
            disk = Disk(folder / "disk")
            servers = [
                stack.enter_context(mortals(stage.log, disk.folder if number == 0 else None))
                for number in range(plan.workers + 1)
            ]
            # The last one is a machine with another project's key: it must harm nobody.
            settings = [stage.world.env()] * plan.workers
            settings.append(stage.world.env(SUPABASE_SERVICE_ROLE_KEY=NOT_THE_KEY))
            fleet = Fleet(servers, settings)
            clients = Clients(stage.world, orders, random.Random(f"clients {plan.seed}"))
            clients.prepare()
            _let_the_pooler_break(stage.world, plan.pooler_share)
            stack.callback(disk.heal)
            restarts = await _play(plan, stage, fleet, clients, disk, say)
            stage.world.sql("drop function public.pooler_breaks() cascade")
            await fleet.drain(stage.world)
        await _sweep(stage.world)
        return audit(
            stage.world, stage.runway, stage.storage, orders, clients.asked,
            happened={"kill -9": fleet.kills, "PostgreSQL restarts": restarts,
                      "scenes deleted": clients.scenes_deleted, "full disks": disk.times,
                      "seconds": round(time.monotonic() - began)},
            strange=fleet.strange_ends, log=stage.log,
        )  # fmt: skip


def _let_the_pooler_break(world: World, share: float) -> None:
    with world.admin() as conn:
        conn.execute(psycopg.sql.SQL(POOLER).format(share=psycopg.sql.Literal(share)))
        for table in WRITTEN_IN_PAIN:
            conn.execute(psycopg.sql.SQL(BREAKS).format(psycopg.sql.Identifier("vidgen", table)))


@dataclass
class Disk:
    """Where the first worker keeps its downloads: full for a while, or gone."""

    folder: Path
    times: int = 0
    _mounted: bool = False

    def __post_init__(self) -> None:
        """Make it."""
        self.folder.mkdir()

    def fill(self) -> None:
        """Leave no room: a file system of 64 KiB over it, or, without root, a file in its place."""
        self.times += 1
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self.folder)],
            capture_output=True, check=False,
        )  # fmt: skip
        self._mounted = done.returncode == 0
        if not self._mounted:
            shutil.rmtree(self.folder)
            self.folder.write_text("no folder")

    def heal(self) -> None:
        """Give the room back."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self._mounted = False
        elif self.folder.is_file():
            self.folder.unlink()
            self.folder.mkdir()

    async def be_full(self, seconds: float, stop: asyncio.Event) -> None:
        """Be full for so long, or until the end."""
        self.fill()
        await _stopped(stop, seconds)
        self.heal()


async def _play(  # noqa: PLR0913, PLR0917 - the players
    plan: Plan, stage: Stage, fleet: Fleet, clients: Clients, disk: Disk,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """From the first task to the end of the last, or of the patience; counts the restarts."""
    stop = asyncio.Event()
    await fleet.start()
    waves = 20
    wave = -(-plan.tasks // waves)
    loops = [
        asyncio.create_task(work)
        for work in (
            clients.keep_inserting(wave, 0.5, stop),
            clients.keep_cancelling(stop),
            clients.keep_deleting(stop),
            fleet.keep_killing(plan.kill_every, random.Random(f"kills {plan.seed}"), stop),
        )
    ]
    try:
        return await _until_ended(plan, stage, loops, clients, disk, stop, say)
    finally:
        stop.set()
        await asyncio.gather(*loops)


async def _until_ended(  # noqa: PLR0913, PLR0917 - the players
    plan: Plan, stage: Stage, loops: list[asyncio.Task[None]], clients: Clients, disk: Disk,
    stop: asyncio.Event, say: Callable[[str], None],
) -> int:  # fmt: skip
    restarts: Iterator[tuple[int, float]] = iter(enumerate(plan.restarts))
    upcoming = next(restarts, None)
    deadline = time.monotonic() + plan.patience
    done = 0
    while time.monotonic() < deadline:
        for loop in loops:
            if loop.done():
                loop.result()
        counts = {
            row["status"]: row["rows"]
            for row in stage.world.sql(
                "select status, count(*) as rows from public.video_generation_tasks group by 1"
            )
        }
        say(", ".join(f"{counts.get(s, 0)} {s}" for s in ("pending", "processing", *ENDED)))
        ended = sum(counts.get(status, 0) for status in ENDED)
        if upcoming is not None and ended >= upcoming[1] * plan.tasks:
            if upcoming[0] % 2:
                stage.server.kill()
            await asyncio.to_thread(stage.server.restart)
            done += 1
            upcoming = next(restarts, None)
        if ended >= DISK_FULL_AT * plan.tasks and not disk.times:
            loops.append(asyncio.create_task(disk.be_full(plan.disk_full_seconds, stop)))
        if ended >= MENDED_AT * plan.tasks:
            await _persistently(clients.mend, asyncio.Event())
        if ended == plan.tasks:
            break
        await asyncio.sleep(LOOK_EVERY)
    return done


async def _sweep(world: World) -> None:
    """The janitor's sweep a minute later, on aged rows: generations whose answer came too late."""
    world.sql(
        "update vidgen.submissions set answered_at = answered_at - interval '2 minutes',"
        " sent_at = sent_at - interval '10 minutes' where ended_at is null"
    )
    # Those of submissions without an answer are free once whatever they began must be over.
    world.sql("update vidgen.slots set taken_at = taken_at - interval '10 minutes'")
    worker = build_worker(world.settings())
    await worker.process.databases.work.open()
    try:
        while world.one(
            "select exists (select from vidgen.submissions"
            " where answer = 'generation' and ended_at is null) as open"
        )["open"]:
            world.sql("update vidgen.submissions set looked_at = null where ended_at is null")
            await worker.janitor.sweep()
        await worker.janitor.sweep()
    finally:
        await worker.process.databases.work.close()
        await worker.process.storage.aclose()
        await worker.process.media.aclose()
        await worker.process.provider.aclose()


def main() -> int:
    """Play one run from the command line."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    plan = Plan(0)
    parser.add_argument("--tasks", type=int, default=plan.tasks)
    parser.add_argument("--users", type=int, default=plan.users)
    parser.add_argument("--workers", type=int, default=plan.workers)
    parser.add_argument("--patience", type=float, default=plan.patience, help="seconds")
    parser.add_argument("--keep", type=Path, help="keep the workers' log in this folder")
    given = parser.parse_args()
    plan = replace(
        plan, seed=given.seed, tasks=given.tasks, users=given.users, workers=given.workers,
        patience=given.patience,
    )  # fmt: skip
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)  # noqa: T201 - a program

    say(f"seed {plan.seed}: repeat with  make soak ARGS='--seed {plan.seed}'")
    # Clients of the doubles are killed, and their Postgres goes away: what they say of it is noise.
    for name in ("uvicorn.error", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="vidgen-soak-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(soak(plan, folder, say))
    report.show()
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
