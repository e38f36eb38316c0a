"""The daemon's own role: the whole pipeline with exactly its rights, on new and on adopted scenes.

`create role … login in role vidgen_worker` is the documented step. Nothing here runs a worker as
postgres; what the role may not do besides is in test_policies.py.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql

from tests.conftest import Database, PostgresServer
from tests.support.world import World, hearing, recorded, vidgen
from vidgen_worker.database.migrate import migrate
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.storage import StorageDouble
from vidgen_worker.telemetry import events

AS_DOCUMENTED = "create role {} login password {} in role vidgen_worker"


@pytest.fixture
def login(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The documented step, done by role postgres; the role ends with the test."""
    assert migrated_template, "the migrations make the role that this one is a member of"
    name = f"video_daemon_{uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as conn:
        password = conn.info.password or "unused"
        conn.execute(sql.SQL(AS_DOCUMENTED).format(sql.Identifier(name), password))
    yield name
    with psycopg.connect(postgres_server.admin_url(), autocommit=True) as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.fixture
def humble(world: World, login: str, postgres_server: PostgresServer) -> World:
    """A world whose workers connect as that role."""
    world.environment["DATABASE_URL"] = postgres_server.url(world.database.name, login)
    return world


def sessions(world: World, login: str) -> int:
    """How many sessions the role has now."""
    row = world.one("select count(*) as sessions from pg_stat_activity where usename = %s", login)
    return int(row["sessions"])


async def test_the_whole_pipeline_runs_under_its_own_role(humble: World, login: str) -> None:
    user = humble.user(100)
    async with humble.worker():
        row = await humble.until(humble.order(user, humble.scene(user)))
        assert sessions(humble, login) > 0
    assert row["status"] == "completed", row["error"]
    assert humble.credits(user) == (70, 0)
    assert humble.books_balance()
    scene = humble.one("select status, image_url, generated_video_url from video_scenes")
    assert scene == {
        "status": "completed", "image_url": row["image_url"],
        "generated_video_url": row["video_url"],
    }  # fmt: skip


async def test_a_process_runs_under_its_own_role(humble: World, tmp_path: Path) -> None:
    user = humble.user(100)
    log = tmp_path / "worker.log"
    with humble.process(log):
        row = await humble.until(humble.order(user, humble.scene(user)))
    assert row["status"] == "completed", log.read_text()
    assert "permission denied" not in log.read_text()


async def test_a_worker_whose_clips_could_not_be_signed_waits_for_an_operator(
    humble: World,
) -> None:
    """The role may not change the storage policy's bucket; until then no task is claimed."""
    user = humble.user(100)
    task = humble.order(user, humble.scene(user))
    with recorded() as heard:
        async with (
            hearing(events.LoopFailed) as refused,
            humble.worker(STORAGE_BUCKET_VIDEOS="our-clips"),
        ):
            await asyncio.wait_for(refused.wait(), 60)
            assert humble.task(task)["attempt"] == 0
            humble.sql("select vidgen.share_buckets('generated-content', 'our-clips')")
            assert (await humble.until(task))["status"] == "completed"
    failed = [event for event in heard if isinstance(event, events.LoopFailed)]
    assert {event.loop for event in failed} == {"register"}
    assert "vidgen-worker migrate" in failed[0].error


def test_migrate_points_the_storage_policy_at_the_buckets_that_are_set(world: World) -> None:
    """A bucket that is not set in its environment stays as it is."""
    shown = "select images_bucket, videos_bucket from vidgen.settings"
    done = vidgen(world, "migrate", STORAGE_BUCKET_VIDEOS="our-clips")
    assert done.returncode == 0, done.stderr
    assert world.one(shown) == {
        "images_bucket": "generated-content", "videos_bucket": "our-clips",
    }  # fmt: skip
    assert vidgen(world, "migrate").returncode == 0
    assert world.one(shown)["videos_bucket"] == "our-clips"


async def test_failures_cancels_and_retries_need_no_more_rights(humble: World) -> None:
    user = humble.user(100)
    failing = humble.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]] x")
    unlucky = humble.scene(user, image_prompt="[[fail INTERNAL.BAD_OUTPUT.CODE01 x1]] x")
    stuck = humble.scene(user, visual_prompt="[[throttle 600s]] x")
    async with humble.worker():
        failed = humble.order(user, failing)
        assert (await humble.until(failed))["error_code"] == "CONTENT_REJECTED"
        assert (await humble.until(humble.order(user, unlucky)))["status"] == "completed"
        task = humble.order(user, stuck)
        async with on_the_way_to_the_clip(humble, task):
            humble.as_user(user, "select public.cancel_video_generation_task(%s)", task)
        assert (await humble.until(task))["status"] == "cancelled"
        humble.sql("update video_scenes set visual_prompt = 'calm' where id = %s", stuck)
        humble.as_user(user, "select public.retry_video_generation_task(%s)", task)
        assert (await humble.until(task, "completed"))["progress"] == 100
    assert humble.books_balance()


class on_the_way_to_the_clip:  # noqa: N801 - reads as the phrase it is
    """Waits until the clip of a task has been submitted."""

    def __init__(self, world: World, task_id: UUID) -> None:
        self.world, self.task_id = world, task_id

    async def __aenter__(self) -> None:
        """Wait for it."""
        async with await psycopg.AsyncConnection.connect(
            self.world.database.admin_url, autocommit=True
        ) as conn:
            await conn.execute("listen test_rows")
            while not self.world.sql(
                "select 1 as yes from vidgen.checkpoints"
                " where task_id = %s and stage = 'video' and state = 'generating'",
                self.task_id,
            ):
                async for _ in conn.notifies(timeout=1, stop_after=1):
                    pass

    async def __aexit__(self, *_: object) -> None:
        """Nothing to end."""


async def test_a_dead_workers_task_is_taken_over(humble: World, tmp_path: Path) -> None:
    user = humble.user(100)
    scene = humble.scene(user, visual_prompt="[[throttle 2s]] x")
    with humble.process(tmp_path / "first.log") as first:
        task = humble.order(user, scene)
        async with on_the_way_to_the_clip(humble, task):
            first.kill()
            first.wait(10)
    async with humble.worker():
        row = await humble.until(task)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert humble.books_balance()


def test_the_role_has_no_way_around_row_level_security(humble: World, login: str) -> None:
    role = humble.one(
        "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication"
        " from pg_roles where rolname = %s",
        login,
    )
    assert not any(role.values())
    url = humble.environment["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as conn:
        for refused in (
            "select * from public.video_scenes",
            "insert into public.video_generation_tasks (scene_id) values (gen_random_uuid())",
            "delete from public.video_generation_tasks",
            "delete from vidgen.submissions",
            "update public.user_credits set balance = 1000000",
            "update public.credit_entries set amount = 1",
            "select public.grant_video_credits(gen_random_uuid(), 1, 'x')",
            "update vidgen.settings set max_retries = 100",
            "create table public.mine (id int)",
            "set role service_role",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                conn.execute(refused)


def test_the_step_to_a_role_of_its_own_is_the_documented_one() -> None:
    documented = AS_DOCUMENTED.format("video_daemon", "'…'")
    assert documented in (Path(__file__).parents[2] / "docs" / "clients.md").read_text()


# Adoption: an application that was there before us.

APPLICATION = """
create type public.scene_status as enum ('draft', 'pending', 'processing', 'done');
create table public.projects (id uuid primary key default gen_random_uuid(), owner uuid not null);
create table public.video_scenarios (
  id uuid primary key default gen_random_uuid(),
  project_id uuid references public.projects (id) on delete cascade,
  resolution text not null check (resolution ~ '^[0-9]+:[0-9]+$'),
  title text not null default 'untitled'
);
create table public.video_scenes (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  scenario_id uuid not null references public.video_scenarios (id) on delete cascade,
  position integer not null default 0,
  image_prompt text, visual_prompt text not null check (length(visual_prompt) < 5000),
  product_reference_image_url text, duration numeric(4, 1) default 5,
  image_url text, generated_video_url text check (generated_video_url ~ '^https?://'),
  status text default 'draft' check (status in ('draft', 'pending', 'processing', 'completed')),
  notes jsonb not null default '{}'
);
alter table public.video_scenarios enable row level security;
alter table public.video_scenes enable row level security;
alter table public.video_scenes force row level security;
create policy "mine" on public.video_scenes to authenticated
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
grant select, insert, update, delete on public.video_scenes to authenticated;
create table public.scene_views (scene_id uuid references public.video_scenes (id));
create function public.stamp() returns trigger language plpgsql as $$
begin new.notes := new.notes || jsonb_build_object('touched', now()); return new; end $$;
create trigger stamp before update on public.video_scenes
  for each row execute function public.stamp();
"""
"""Columns of its own, a CHECK without `failed`, no `updated_at`, forced RLS, triggers, keys."""


@pytest.fixture
def adopted(
    bare_database: Database,
    runway: RunwayControl,
    tmp_path: Path,
    login: str,
    postgres_server: PostgresServer,
) -> Iterator[World]:
    """An application's database that our migrations came to, and workers of the humble role."""
    with psycopg.connect(bare_database.url, autocommit=True) as conn:
        conn.execute(APPLICATION)
    migrate(bare_database.url)
    double = StorageDouble(tmp_path / "storage", bare_database.admin_url)
    with BackgroundServer(double.app) as server:
        stored = StorageControl(server.url, double.keys)
        with closing(World(bare_database, runway, stored)) as world:
            world.environment["DATABASE_URL"] = postgres_server.url(bare_database.name, login)
            yield world


def adopted_scene(world: World, user_id: UUID) -> UUID:
    """A scene as that application makes it."""
    world.sql("insert into auth.users (id) values (%s)", user_id)
    scenario = world.one(
        "insert into video_scenarios (resolution) values ('960:960') returning id"
    )["id"]
    row = world.one(
        "insert into video_scenes (user_id, scenario_id, visual_prompt, image_prompt, duration)"
        " values (%s, %s, 'around the bottle', 'a bottle', 2) returning id",
        user_id, scenario,
    )  # fmt: skip
    scene_id: UUID = row["id"]
    return scene_id


async def test_an_applications_own_scenes_become_videos(adopted: World) -> None:
    user = adopted.user(100)
    scene = adopted_scene(adopted, user)
    with recorded() as heard:
        async with adopted.worker():
            row = await adopted.until(adopted.order(user, scene))
    assert (row["status"], row["resolution"]) == ("completed", "960:960"), row["error"]
    assert adopted.books_balance()
    # Without updated_at our write is refused in its savepoint and reported; nothing stops.
    assert any(isinstance(event, events.SceneWriteRefused) for event in heard)


async def test_an_applications_own_rules_stop_no_failure_either(adopted: World) -> None:
    user = adopted.user(100)
    scene = adopted_scene(adopted, user)
    adopted.sql("alter table video_scenes add updated_at timestamp")
    adopted.sql("update video_scenes set image_prompt = '[[fail SAFETY.INPUT.TEXT]] x'")
    with recorded() as heard:
        async with adopted.worker(), hearing(events.TaskFailed) as failed:
            row = await adopted.until(adopted.order(user, scene))
            await failed.wait()  # a drain may cut an attempt between its end and its report
    assert (row["status"], row["error_code"]) == ("failed", "CONTENT_REJECTED")
    refused = [event for event in heard if isinstance(event, events.SceneWriteRefused)]
    assert [event for event in refused if "video_scenes_status_check" in str(event)]
    status = adopted.one("select status, notes ? 'touched' as touched from video_scenes")
    assert status == {"status": "processing", "touched": True}


def test_an_applications_own_policies_and_grants_are_left_alone(adopted: World) -> None:
    rows = adopted.sql("select policyname from pg_policies where tablename = 'video_scenes'")
    assert [row["policyname"] for row in rows] == ["mine"]
    row = adopted.one(
        "select has_table_privilege('authenticated', 'public.video_scenes', 'update') as theirs,"
        " has_table_privilege('service_role', 'public.video_scenes', 'select') as ours"
    )
    assert row == {"theirs": True, "ours": False}


def test_an_adopted_scene_that_is_hidden_from_its_user_can_still_be_ordered(
    adopted: World,
) -> None:
    """owns_scene asks who owns it, not whether the application lets its user read it."""
    user = adopted.user(100)
    scene = adopted_scene(adopted, user)
    adopted.sql("revoke all on video_scenes from authenticated")
    adopted.order(user, scene)
    stranger = adopted.user(100)
    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
        adopted.order(stranger, scene)


OWN_CREDITS = """
create table public.wallets (user_id uuid primary key, coins integer not null check (coins >= 0));
create table public.reserved (task_id uuid primary key, user_id uuid, coins integer not null);
create or replace function vidgen.hold_credits(task_id uuid, user_id uuid, prices jsonb)
  returns boolean language plpgsql security definer set search_path = '' as $$
declare
  total integer := (select coalesce(sum(p.value::integer), 0) from jsonb_each_text(prices) as p);
begin
  if exists (select from public.reserved as r where r.task_id = hold_credits.task_id) then
    return true;
  end if;
  update public.wallets as w set coins = coins - total
   where w.user_id = hold_credits.user_id and coins >= total;
  if not found then return false; end if;
  insert into public.reserved values (hold_credits.task_id, hold_credits.user_id, total);
  return true;
end $$;
create or replace function vidgen.settle_credits(task_id uuid, stage text) returns void
  language sql security definer set search_path = '' as $$
  update public.reserved as r
     set coins = coins - (select p.credits from public.credit_prices as p
                           join vidgen.stages as s on s.action = p.action
                          where s.name = settle_credits.stage)
   where r.task_id = settle_credits.task_id $$;
create or replace function vidgen.release_credits(task_id uuid) returns void
  language sql security definer set search_path = '' as $$
  with gone as (delete from public.reserved as r where r.task_id = release_credits.task_id
                returning r.user_id, r.coins)
  update public.wallets as w set coins = w.coins + gone.coins from gone
   where w.user_id = gone.user_id $$;
"""


async def test_an_applications_own_credits_are_held_settled_and_released(humble: World) -> None:
    with psycopg.connect(humble.database.url, autocommit=True) as conn:
        conn.execute(OWN_CREDITS)
    user, poor = humble.user(0), humble.user(0)
    humble.sql("insert into wallets values (%s, 100), (%s, 29)", user, poor)
    bad = humble.scene(user, visual_prompt="[[fail SAFETY.INPUT.TEXT]] x")
    async with humble.worker():
        good = await humble.until(humble.order(user, humble.scene(user)))
        failed = await humble.until(humble.order(user, bad))
        refused = await humble.until(humble.order(poor, humble.scene(poor)))
    assert (good["status"], failed["status"], refused["error_code"]) == (
        "completed", "failed", "INSUFFICIENT_CREDITS",
    )  # fmt: skip
    # A video, and the still of one that failed.
    assert humble.one("select coins from wallets where user_id = %s", user)["coins"] == 100 - 30 - 5
    assert humble.one("select coins from wallets where user_id = %s", poor)["coins"] == 29
    assert humble.sql("select * from reserved") == []
    assert humble.sql("select * from user_credits") == []


async def test_without_credits_a_video_does_not_count_as_wasted(humble: World) -> None:
    """Nothing is ever charged then: what ended in a video must not add up to the limit."""
    user = humble.user(0)
    humble.sql("update vidgen.settings set max_unbilled_cost_per_user = 1")
    async with humble.worker(VIDGEN_CREDITS="off"):
        for _ in range(2):
            row = await humble.until(humble.order(user, humble.scene(user)))
            assert row["status"] == "completed", row["error"]
    assert humble.sql("select * from vidgen.holds") == []
