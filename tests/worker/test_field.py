"""What trying the worker by hand has found: one test per finding, each of the very thing seen.

Further members of each kind are tested where they belong.
"""

import asyncio
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from PIL import Image
from psycopg import sql

from tests.support.answering import bomb, refusing_runway, server
from tests.support.films import (
    BLUE,
    GREEN,
    RED,
    SIZE,
    WHITE,
    Looking,
    corners,
    film,
    frames,
    pure,
    trimmed,
)
from tests.support.hands import IMAGE_PRICE, VIDEO_PRICE, Ground, aged, completed
from tests.support.proxy import proxy
from tests.support.watching import ENDED, frozen, until, until_true, watch
from tests.support.world import (
    PATIENCE,
    World,
    cancel,
    crowd,
    hearing,
    make_buckets,
    many,
    posts,
    probe_now,
    reasons,
    recorded,
    refuse_one,
    set_bucket,
    submissions,
    vidgen,
)
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.domain.faults import ALLOWANCE
from vidgen_worker.telemetry import events

ROOMY = {"VIDGEN_IMAGE_SLOTS": "100", "VIDGEN_VIDEO_SLOTS": "100"}
WAITS_BRIEFLY = {"VIDGEN_WAIT_DEADLINE": "500ms", "VIDGEN_RETRY_BACKOFF_MAX": "200ms"}
ENDS_SOON = {
    "VIDGEN_STAGE_DEADLINE": "100ms", "VIDGEN_STAGE_HARD_DEADLINE": "300ms",
    "VIDGEN_POLL_INTERVAL": "10ms",
}  # fmt: skip
BOTH = IMAGE_PRICE + VIDEO_PRICE
LIVES = "select exists (select from vidgen.checkpoints where state = 'generating')"
LIVE = "select count(*) = %s from vidgen.checkpoints where state = 'generating'"


async def registered(world: World) -> None:
    """Wait until a worker process has begun to work."""
    await until(world, lambda: bool(world.sql("select id from vidgen.workers")))


# A0. One bad row, one bad machine, one bad neighbour.
# 1.


async def test_a_scene_deleted_in_front_of_its_generation_frees_the_only_place(
    world: World,
) -> None:
    watch(world)
    user, other = world.user(), world.user()
    scene = world.scene(user, image_prompt="[[slow 300s]] of a bottle")
    task = world.order(user, scene)
    tier = {"VIDGEN_IMAGE_SLOTS": "1", "VIDGEN_VIDEO_SLOTS": "1"}
    async with world.worker(**tier):
        await until_true(world, LIVES)
    world.sql("delete from video_scenes where id = %s", scene)
    async with world.worker(**tier) as worker:
        assert (await world.until(task))["error_code"] == "SCENE_NOT_FOUND"
        waiting = world.order(other, world.scene(other))
        world.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'")
        await worker.janitor.strays.end()
        assert (await world.until(waiting))["status"] == "completed"
    first, *_ = submissions(world)
    assert (first["ended_state"], first["ended_at"] is not None) == ("cancelled", True)
    booked = world.one(
        "select coalesce(cost, estimated_cost) as cost from vidgen.submissions where task_id = %s",
        task,
    )
    assert booked["cost"] is not None, "the estimate, where the provider tells nothing any more"
    assert world.none_lives(task)
    assert world.credits(user) == (1000, 0)
    assert world.books_balance()


# 2.


async def test_a_deleted_account_whose_notification_fails_stops_nobody(world: World) -> None:
    """An application's trigger after `update of status`, and one account deleted meanwhile."""
    watch(world)
    users = [world.user() for _ in range(6)]
    with world.admin() as conn:
        conn.execute(
            "create table public.accounts (id uuid primary key);"
            "create table public.notifications ("
            "  user_id uuid references public.accounts (id) on delete cascade, said text);"
            "create function public.notify_user() returns trigger language plpgsql"
            " security definer as $$ begin"
            "  insert into public.notifications values (new.user_id, new.status); return null;"
            " end $$;"
            "create trigger notify_user after update of status on public.video_generation_tasks"
            "  for each row execute function public.notify_user();"
        )
        for user in users:
            conn.execute("insert into public.accounts values (%s)", [user])
    scenes = [world.scene(user, image_prompt=f"[[slow 2s]] of {user}") for user in users]
    gone = world.order(users[0], scenes[0])
    with recorded() as heard:
        async with world.worker():
            await until_true(world, LIVES)
            world.sql("delete from public.accounts where id = %s", users[0])
            others = [world.order(*pair) for pair in zip(users[1:], scenes[1:], strict=True)]
            for task in others:
                assert (await world.until(task))["status"] == "completed"
            await until_true(world, "select exists (select from vidgen.refusals)")
    assert not [event for event in heard if isinstance(event, events.WorkerDeclaredDead)]
    assert world.one("select task_id from vidgen.refusals")["task_id"] == gone
    assert world.none_lives(gone)


# 3.


async def test_an_error_while_concluding_pays_once_and_is_somebody_s(world: World) -> None:
    """A prompt is rejected, and the row can't become failed: no attempt pays for it again."""
    watch(world)
    world.sql("update vidgen.settings set refusal_pause = '20 milliseconds'")
    user = world.user()
    scene = world.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]] of a bottle")
    task = world.order(user, scene)
    refuse_one(world, task, "new.status = 'failed'")
    with recorded() as heard:
        async with world.worker():
            await until_true(world, "select exists (select from vidgen.refusals where tries >= 5)")
            assert len(world.runway.requests()) == 1
            world.sql("drop trigger application_refuses on public.video_generation_tasks")
            row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("failed", "CONTENT_REJECTED")
    assert len(world.runway.requests()) == 1
    assert world.credits(user) == (1000, 0)
    refused = [event for event in heard if isinstance(event, events.RowRefused)]
    assert refused
    assert all("notifications_user_id_fkey" in event.error for event in refused)


# 4.


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a folder of 28 KB", "a bucket that answers 413"])
async def test_what_can_not_be_kept_stops_the_next_purchases_and_heals_by_itself(
    world: World, tmp_path: Path, place: str
) -> None:
    settings = ROOMY | {"VIDGEN_CONCURRENCY": "2", "VIDGEN_RETRY_BACKOFF_MAX": "1s"}
    with world.process(tmp_path / "worker.log", **settings) as process:
        await registered(world)
        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        if place == "a folder of 28 KB":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (28_000, before[1]))
        else:
            world.storage.fail("upload", times=1_000_000, status=413)
        tasks = crowd(world, 8)
        await until(world, lambda: bool(reasons(world)))
        await world.beats(2)
        assert sum(posts(world)) <= 2 + ALLOWANCE
        assert {world.task(task)["status"] for task in tasks} <= {"pending", "processing"}
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
        world.storage.heal()
        probe_now(world)
        rows = [await world.until(task) for task in tasks]
    assert {(row["status"], row["failures"]) for row in rows} == {("completed", 0)}
    assert posts(world) == (8, 8)


# 5.


def test_a_new_column_breaks_no_call_of_a_client(world: World) -> None:
    world.sql("alter table video_generation_tasks add column note text default 'a note'")
    world.sql("alter table user_credits add column note text default 'a note'")
    user = world.user()
    world.sql("select public.grant_video_credits(%s, 5, 'a payment')", user)
    task = world.order(user, world.scene(user))
    assert cancel(world, user, task)["status"] == "cancelled"
    (retried,) = world.as_user(user, "select * from public.retry_video_generation_task(%s)", task)
    assert (retried["id"], retried["status"]) == (task, "pending")
    (listed,) = world.as_user(user, "select * from public.video_generation_tasks")
    assert (listed["id"], listed["note"]) == (task, "a note")
    assert world.credits(user) == (1005, 0)


# 6.


async def test_an_audit_that_hangs_keeps_no_gate_from_being_probed(world: World) -> None:
    watch(world)
    user = world.user()
    waits = (
        "select exists (select from pg_locks where not granted"
        " and relation = 'vidgen.audited'::regclass)"
    )
    with world.admin() as books, books.transaction():
        books.execute("lock table vidgen.audited in access exclusive mode")
        async with world.worker():
            await until(world, lambda: bool(world.one(waits)["exists"]))
            world.runway.set(key_disabled=True)
            task = world.order(user, world.scene(user))
            await until_true(world, "select exists (select from vidgen.gates)")
            world.runway.set(key_disabled=False)
            assert (await world.until(task))["status"] == "completed"


# 7.


async def test_one_machine_with_a_wrong_key_of_supabase_stops_nobody_else(world: World) -> None:
    wrong = {"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_" + "x" * 40}
    settings = ROOMY | {"VIDGEN_GATE_PROBE": "1h"}
    async with (
        world.worker(**settings | wrong) as bad,
        world.worker(**settings), world.worker(**settings),
    ):  # fmt: skip
        tasks = crowd(world, 12)
        rows = [await world.until(task) for task in tasks]
        assert bad.process.held.tasks == {}
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (12, 12)


# 8.


async def test_a_cancel_ends_though_every_answer_about_its_generation_is_503(world: World) -> None:
    watch(world)
    user, other = world.user(), world.user()
    unseen = world.scene(other, image_prompt="[[expire-urls x999]] a bottle")
    settings = ROOMY | WAITS_BRIEFLY | {
        "VIDGEN_RETRY_BACKOFF": "200ms", "VIDGEN_CANCEL_DEADLINE": "1s",
    }  # fmt: skip
    async with world.worker(**settings):
        # An output that stays 403.
        row = await world.until(world.order(other, unseen))
        assert (row["status"], row["error_code"]) == ("failed", "OUTPUT_UNAVAILABLE")
        task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
        await until_true(world, LIVES)
        world.runway.set(outage=True)
        with recorded() as heard:
            cancel(world, user, task)
            assert (await world.until(task))["status"] == "cancelled"
        world.runway.set(outage=False)
    assert len([event for event in heard if isinstance(event, events.TaskRequeued)]) <= 4
    assert world.credits(user) == (1000, 0)


# 9.


async def test_a_suspect_that_is_only_polled_keeps_nobody_waiting(world: World) -> None:
    """Alone is for the code that kills workers; a generation may take hours."""
    watch(world)
    async with world.worker(), hearing(events.SubmissionRecorded) as submitted:
        (task,) = crowd(world, 1, "[[stall]]")
        await submitted.wait()
    world.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)
    async with world.worker():
        await world.until(task, "processing", attempt=2)
        rows = [await world.until(other) for other in crowd(world, 5)]
        assert world.task(task)["status"] == "processing"
    assert {row["status"] for row in rows} == {"completed"}


# 10.


@pytest.mark.slow
async def test_generations_of_another_account_are_neither_lost_nor_paid_again(
    world: World, tmp_path: Path
) -> None:
    """Two processes, two keys of two accounts, kill -9: what is taken over is left alone."""
    watch(world)
    world.environment = dict(ROOMY)
    other = world.runway.another_key("other")
    with world.process(tmp_path / "one.log") as one:
        tasks = crowd(world, 5, "[[slow 3s]]")
        await until_true(world, LIVE, 5)
        one.kill()
        with world.process(tmp_path / "other.log", RUNWAYML_API_SECRET=other):
            await until_true(
                world,
                "select count(*) = 5 from video_generation_tasks"
                " where status = 'pending' and attempt > 0",
            )
            with world.process(tmp_path / "again.log"):
                rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (5, 5)


# 11.


async def test_a_worker_killed_before_the_clock_stepped_back_is_taken_over(
    world: World, tmp_path: Path
) -> None:
    """Its last heartbeat is an hour ahead, and nobody waits for that hour."""
    user = world.user()
    world.runway.set(image_seconds=60)
    task = world.order(user, world.scene(user))
    with world.process(tmp_path / "log") as process:
        running = await world.until(task, "processing")
        process.kill()
        process.wait()
    world.sql(
        "update vidgen.workers set heartbeat_at = now() + interval '1 hour' where id = %s",
        running["worker_id"],
    )
    async with hearing(events.TaskStarted) as started, world.worker():
        await world.until(task, "processing", attempt=2)
        await asyncio.wait_for(started.wait(), 60)  # said after the row is written


# 12.


async def test_a_drain_waits_for_nobody_s_lock(world: World) -> None:
    watch(world)
    with psycopg.connect(world.database.admin_url) as client:
        async with world.worker() as worker:
            locked, free = many(world, 2, "[[stall]] ")
            await until_true(world, LIVE, 2)
            client.execute("select from video_generation_tasks where id = %s for update", [locked])
            began = time.monotonic()
            worker.stop()
        assert time.monotonic() - began < PATIENCE / 4
        assert world.task(free)["status"] == "pending"
        client.rollback()
    async with world.worker():
        await world.until(locked, "processing", attempt=2)


# 13.


async def test_what_an_application_does_beneath_a_task_costs_neither_side(world: World) -> None:
    """It deletes a balance, edits a prompt, orders a scene twice, and uses an id again."""
    watch(world)
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[slow 1s]] a bottle")
    task = world.order(user, scene)
    async with world.worker():
        await until_true(world, LIVES)
        world.sql("delete from user_credits where user_id = %s", user)
        world.sql("update video_scenes set visual_prompt = 'It flies' where id = %s", scene)
        row = await world.until(task)
        assert world.credits(user) == (100 - BOTH, 0)
        world.sql(
            "update video_scenes set image_prompt = '[[fail SAFETY.INPUT.TEXT]]' where id = %s",
            scene,
        )
        second = world.order(user, scene)
        assert (await world.until(second))["status"] == "failed"
    assert row["status"] == "completed"
    (clip,) = [one for one in world.runway.requests() if one["path"].endswith("image_to_video")]
    assert clip["body"]["promptText"] == "It flies"
    shown = world.one("select status, generated_video_url from video_scenes where id = %s", scene)
    assert shown == {"status": "completed", "generated_video_url": row["video_url"]}
    world.sql("delete from video_generation_tasks where id = %s", task)
    with pytest.raises(psycopg.Error, match="pruned or deleted"):
        world.as_user(
            user,
            "insert into video_generation_tasks (id, scene_id, user_id) values (%s, %s, %s)",
            task, scene, user,
        )  # fmt: skip
    assert world.books_balance()


# 14.


async def test_a_gzip_bomb_as_an_answer_is_refused_before_it_is_unpacked(world: World) -> None:
    body = await asyncio.to_thread(bomb)
    head = f"content-encoding: gzip\r\ncontent-length: {len(body)}".encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with (
        server(head, body) as url,
        hearing(events.LimitsUnread) as unread,
        world.worker(RUNWAYML_BASE_URL=url),
    ):
        await asyncio.wait_for(unread.wait(), PATIENCE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.slow
async def test_a_process_frozen_in_its_post_attaches_to_the_answer_on_waking(
    world: World, tmp_path: Path
) -> None:
    user = world.user(100)
    log = tmp_path / "worker.log"
    settings = {"VIDGEN_SUBMIT_TIMEOUT": "2s", "VIDGEN_LEASE": "1m"}
    with world.process(log, **settings) as process:
        scene = world.scene(user, image_prompt="[[late 1s]] a bottle")
        task = world.order(user, scene)
        await frozen(world, process.pid, 4)
        process.send_signal(signal.SIGCONT)
        row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0), log.read_text()
    assert posts(world) == (1, 1)
    assert [one["answer"] for one in submissions(world)] == ["generation", "generation"]


# 15.


async def test_a_worker_forgets_private_rows_by_itself_and_keeps_the_ledger(
    world: World, ground: Ground
) -> None:
    user = ground.user()
    held = completed(ground, ground.worker(), user)
    aged(ground)
    books = "select to_jsonb(e) as entry from public.credit_entries as e order by id"
    before = world.sql(books)
    async with hearing(events.TasksForgotten) as forgotten, world.worker() as worker:
        await world.beats(1)
        await worker.janitor.forget()
        assert forgotten.is_set()
    for table in ("submissions", "checkpoints", "holds", "charges", "budgets"):
        assert ground.none(f"select from vidgen.{table}"), table
    assert world.sql(books) == before
    assert world.task(held.id)["status"] == "completed"
    assert world.credits(user) == (1000 - BOTH, 0)


# A. Money
# 1.


async def test_a_pooler_s_error_while_an_answer_is_recorded_pays_once(world: World) -> None:
    watch(world)
    with world.admin() as conn:
        conn.execute("create sequence public.tries")
        conn.execute(
            "create function public.check_out() returns trigger language plpgsql security definer"
            " as $$ begin if nextval('public.tries') = 1 then raise exception"
            " '(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms'"
            " using errcode = 'XX000'; end if; return new; end $$;"
            "create trigger check_out before insert or update on vidgen.checkpoints for each row"
            " when (new.state = 'generating') execute function public.check_out()"
        )
    (task,) = crowd(world, 1)
    async with world.worker():
        row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert world.one("select last_value from public.tries")["last_value"] > 1
    assert posts(world) == (1, 1)


# 2.


async def test_half_an_emoji_in_a_refusal_is_a_refusal_and_is_posted_once(world: World) -> None:
    answer = rb'{"error":"promptText: Invalid text \"A bottle \ud83d...\""}'
    user = world.user()
    async with refusing_runway(answer) as (url, posted), world.worker(RUNWAYML_BASE_URL=url):
        row = await world.until(world.order(user, world.scene(user)))
    assert (row["status"], row["error_code"]) == ("failed", "INVALID_REQUEST")
    assert len(posted) == 1
    assert [one["answer"] for one in submissions(world)] == ["refused"]


# 3.


async def test_a_key_that_ends_in_a_newline_works_and_is_never_shown(
    world: World, tmp_path: Path
) -> None:
    key, log = world.storage.keys.service_role, tmp_path / "worker.log"
    world.environment = {"SUPABASE_SERVICE_ROLE_KEY": f"{key}\n"}
    with world.process(log):
        (task,) = crowd(world, 1)
        assert (await world.until(task))["status"] == "completed"
    done = await asyncio.to_thread(vidgen, world, "check")
    assert done.returncode == ExitCode.OK, done.stdout
    assert key not in log.read_text() + done.stdout + done.stderr


# 4.


async def test_a_bucket_of_a_hundred_bytes_is_found_before_anything_is_paid(world: World) -> None:
    make_buckets(world)
    set_bucket(world, "generated-content", file_size_limit=100)
    done = await asyncio.to_thread(vidgen, world, "check")
    assert done.returncode == ExitCode.FAILED
    assert "file_size_limit" in done.stdout
    tasks = crowd(world, 3)
    async with world.worker(**ROOMY):
        await until(world, lambda: reasons(world) == [("storage", "STORAGE_MISCONFIGURED")])
        await world.beats(3)
        assert posts(world) == (0, 0)
        set_bucket(world, "generated-content", file_size_limit=None)
        rows = [await world.until(task) for task in tasks]
    assert {(row["status"], row["failures"]) for row in rows} == {("completed", 0)}


# 5.


async def test_forty_wait_unpaid_while_the_key_is_the_publishable_one(
    world: World, tmp_path: Path
) -> None:
    """It is refused before anything is claimed, and so is one that only the store can judge."""
    make_buckets(world)
    tasks = crowd(world, 40)
    with world.process(
        tmp_path / "worker.log", SUPABASE_SERVICE_ROLE_KEY=world.storage.keys.publishable
    ) as process:
        assert await asyncio.to_thread(process.wait, PATIENCE) == ExitCode.CONFIGURATION
    assert "it is the publishable key" in (tmp_path / "worker.log").read_text()
    wrong = {"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_" + "x" * 40}
    async with hearing(events.GateClosed) as closed, world.worker(**ROOMY | wrong):
        await closed.wait()
        await world.beats(3)
        assert reasons(world) == [("storage", "STORAGE_DENIED")]
    assert {world.task(task)["attempt"] for task in tasks} == {0}
    assert posts(world) == (0, 0)


# 6.


async def test_a_generation_whose_every_get_is_500_ends_at_the_hard_deadline(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[poll-500 x999]] [[slow 20s]] a bottle")
    async with world.worker(**ENDS_SOON):
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["error_code"]) == ("failed", "GENERATION_OVERDUE")
    assert {one["ended_state"] for one in submissions(world)} == {"cancelled"}
    assert world.credits(user) == (100, 0)


# 7.


async def test_a_whole_png_under_an_odd_content_encoding_is_taken(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[odd-encoding x999]] a bottle")
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"], row["attempt"]) == ("completed", 0, 1)
    assert posts(world) == (1, 1)


# 8.


async def test_a_page_instead_of_the_file_twice_and_then_the_file_is_paid_once(
    world: World,
) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[page-download x2]] a bottle")
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert posts(world) == (1, 1)


# 9.


@pytest.mark.slow
async def test_a_scratch_folder_swept_away_costs_the_task_nothing_and_is_named(
    world: World, tmp_path: Path
) -> None:
    temp, log = tmp_path / "temp", tmp_path / "worker.log"
    temp.mkdir()
    world.environment = {"TMPDIR": str(temp)}
    done = await asyncio.to_thread(vidgen, world, "check")
    assert f"Scratch: {temp}: " in done.stdout
    with world.process(log):
        await registered(world)
        shutil.rmtree(temp)
        (first,) = crowd(world, 1)
        assert (await world.until(first))["failures"] == 0
        shutil.rmtree(temp)
        temp.write_text("a file where the folder was")
        (second,) = crowd(world, 1)
        await until(world, lambda: "SCRATCH_UNAVAILABLE" in log.read_text())
        temp.unlink()
        row = await world.until(second)
    assert str(temp) in log.read_text()
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert posts(world) == (2, 2)


# B. Start, settings, `check`
# 1.


@pytest.mark.parametrize("verb", ["migrate", "run", "check"])
def test_a_password_left_in_brackets_is_refused_in_one_sentence_without_it(
    world: World, verb: str
) -> None:
    world.environment = {
        "DATABASE_URL": "postgresql://postgres:[hunter22]@db.ref.supabase.co:5432/postgres"
    }
    done = vidgen(world, verb)
    assert done.returncode == ExitCode.CONFIGURATION
    assert done.stderr.count("DATABASE_URL: ") == 1
    assert "square brackets" in done.stderr
    assert "hunter22" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# 2.


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://h:1"), ("NO_PROXY", "[::1]"), ("SSL_CERT_FILE", "/nowhere.pem")],
)
def test_a_proxy_or_certificate_that_can_not_be_used_ends_the_start_with_its_name(
    world: World, name: str, value: str
) -> None:
    world.environment = {name: value}
    done = vidgen(world, "run")
    assert done.returncode == ExitCode.CONFIGURATION
    assert f"{name}: " in done.stderr
    assert "Traceback" not in done.stderr


# 3.


@pytest.mark.slow
def test_check_is_red_for_the_anon_key_a_read_only_database_and_a_path_in_the_url(
    world: World,
) -> None:
    make_buckets(world)
    assert vidgen(world, "check").returncode == ExitCode.OK
    world.environment = {"SUPABASE_SERVICE_ROLE_KEY": world.storage.keys.anon}
    done = vidgen(world, "check")
    assert done.returncode == ExitCode.CONFIGURATION
    assert "SUPABASE_SERVICE_ROLE_KEY: " in done.stderr
    assert "'anon'" in done.stderr
    world.environment = {"SUPABASE_URL": f"{world.storage.url}/rest/v1"}
    done = vidgen(world, "check")
    assert done.returncode == ExitCode.CONFIGURATION
    assert "SUPABASE_URL: " in done.stderr
    assert f"without a path: {world.storage.url}" in done.stderr
    world.environment = {}
    name = sql.Identifier(world.database.name)
    with world.admin() as conn:
        conn.execute(
            sql.SQL("alter database {} set default_transaction_read_only = on").format(name)
        )
    done = vidgen(world, "check")
    assert done.returncode == ExitCode.FAILED
    assert "read-only" in done.stdout


# 4.


async def test_a_role_with_a_datestyle_of_its_own_works_as_any_other(world: World) -> None:
    watch(world)
    name = sql.Identifier(world.database.name)
    with world.admin() as conn:
        conn.execute(
            sql.SQL("alter role postgres in database {} set datestyle = 'SQL, DMY'").format(name)
        )
    done = await asyncio.to_thread(vidgen, world, "check")
    assert done.returncode == ExitCode.OK, done.stdout
    async with world.worker():
        tasks = many(world, 2)
        await until_true(world, ENDED)
    rows = [world.task(task) for task in tasks]
    assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}


# 5.


@pytest.mark.slow
def test_a_taken_port_an_ascii_terminal_and_an_early_ctrl_c_bring_no_traceback(
    world: World, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        world.environment = {"VIDGEN_METRICS_PORT": port}
        done = vidgen(world, "run")
    assert done.returncode == ExitCode.FAILED
    assert f"VIDGEN_METRICS_PORT: port {port}" in done.stderr
    assert "Traceback" not in done.stderr

    world.environment = {"PYTHONIOENCODING": "ascii"}
    for verb in (("check",), ("stats",), ("tasks", "list")):
        done = vidgen(world, *verb)
        assert done.returncode == ExitCode.OK, done.stderr
        assert done.stdout.isascii()

    # Python imports this before anything of ours: the signal comes while we are being loaded.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'vidgen_worker.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    world.environment = {"PYTHONPATH": path}
    done = vidgen(world, "stats")
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "Interrupted.\n")


# 6.


async def test_an_idle_worker_stops_at_once_in_an_outage_that_is_said_in_one_line(
    world: World, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    async with proxy(world.database.url) as between:
        with world.process(log, DATABASE_URL=between.url) as process:
            await world.beats(2)
            between.cut()
            async with asyncio.timeout(PATIENCE):
                while "Can't connect" not in log.read_text():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.05)
            began = time.monotonic()
            process.terminate()
            await asyncio.to_thread(process.wait, PATIENCE)
            assert time.monotonic() - began < PATIENCE / 4
    assert process.returncode == 0
    assert log.read_text().count("Can't connect") == 1
    assert "\\n\\t" not in log.read_text()
    assert "psycopg.pool" not in log.read_text()


# D. Media


@pytest.fixture(scope="module")
def media() -> Iterator[Looking]:
    """Provide the module that looks at files, with one child for all tests."""
    looking = Looking()
    yield looking
    looking.runner.run(looking.media.aclose())
    looking.runner.close()


# The coded size taken for the shown size.


def test_a_film_of_the_right_coded_size_that_lies_on_its_side_is_cropped_as_shown(
    media: Looking, tmp_path: Path
) -> None:
    file = film(tmp_path / "a.mp4", size=(1280, 720), matrix=(0, 1, -1, 0), count=12)
    found = media.check_video(file, "1280:720", 1)
    assert ((found.width, found.height), found.conformed) == ((720, 1280), True)
    stored = frames(found.file)[-1]
    assert (stored.size, corners(stored)) == ((1280, 720), (BLUE, RED, WHITE, GREEN))


# A valid file judged broken.


def test_a_film_trimmed_by_an_edit_list_is_stored_as_a_viewer_sees_it(
    media: Looking, tmp_path: Path
) -> None:
    def colours(number: int) -> Image.Image:
        return Image.new("RGB", SIZE, RED if number < 12 else BLUE)

    file = trimmed(film(tmp_path / "a.mp4", draw=colours, count=48, options={"g": "48"}), 6144)
    found = media.check_video(file, "160:90", 2)
    assert found.conformed
    assert found.seconds == pytest.approx(1.5, abs=0.1)
    stored = [pure(image.getpixel((80, 45))) for image in frames(found.file)]  # type: ignore[arg-type]
    assert set(stored) == {BLUE}
    assert len(stored) == pytest.approx(36, abs=2)
