"""What an operator reads and removes: stats, workers, a task's story, pruning, the SQL views."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.hands import STAGE, Ground, Held
from tests.support.world import World, told, vidgen
from vidgen_worker.cli.exit_codes import ExitCode

VIEWS = (
    "queue_health", "stats_hourly", "consumption_by_user", "consumption_by_model",
)  # fmt: skip


def aged(world: World, task: UUID, days: int = 100) -> None:
    """Let a task have ended long ago."""
    with world.admin() as conn:
        conn.execute("alter table public.video_generation_tasks disable trigger user")
        conn.execute(
            "update public.video_generation_tasks"
            "   set completed_at = now() - make_interval(days => %s) where id = %s",
            [days, task],
        )
        conn.execute("alter table public.video_generation_tasks enable trigger user")


# Looking.


async def test_stats_show_what_runs_what_failed_and_what_it_cost(world: World) -> None:
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
        rejected = world.scene(user, image_prompt=f"[[fail SAFETY.INPUT.TEXT]] {uuid4()}")
        await world.until(world.order(user, rejected))
        # Beside the worker, which has to go on beating meanwhile.
        found = await asyncio.to_thread(told, world, "stats")
        shown = (await asyncio.to_thread(vidgen, world, "stats")).stdout
        listed = await asyncio.to_thread(told, world, "workers")
    day = {row["label"]: row for row in found["throughput"]}["24 hours"]
    assert (day["completed"], day["failed"], day["submissions"]) == (1, 1, 3)
    assert day["credits_charged"] == 30
    assert float(day["provider_cost"]) > 0
    assert [(row["code"], row["tasks"]) for row in found["failures"]] == [("CONTENT_REJECTED", 1)]
    assert found["queue"]["workers_alive"] == 1
    assert found["slots"] == [
        {"account": "default", "model": "gen4_image", "slots": 10, "taken": 0},
        {"account": "default", "model": "gen4_turbo", "slots": 10, "taken": 0},
    ]
    assert [row["state"] in {"settling", "steady"} for row in listed] == [True]
    assert listed[0]["concurrency"] == found["queue"]["slots"] == 20
    for part in ("all open", "100.0 %", "CONTENT_REJECTED", str(listed[0]["pid"])):
        assert part in shown


def test_stats_count_what_waits_and_for_how_long(ground: Ground, world: World) -> None:
    hand = ground.worker()
    ground.held(hand, "start_task", *STAGE[:2])
    ground.orders(ground.user(), 3)
    ground.order(due=timedelta(hours=1))
    ground.sql("alter table public.video_generation_tasks disable trigger user")
    ground.sql(
        "update public.video_generation_tasks set created_at = now() - interval '2 hours',"
        " run_after = now() - interval '90 seconds' where status = 'pending' and run_after <= now()"
    )
    found = told(world, "stats")
    queue = found["queue"]
    assert (queue["pending"], queue["scheduled"], queue["processing"]) == (3, 1, 1)
    assert 90 <= queue["oldest_seconds"] < 120
    assert [(f["stage"], f["state"], f["tasks"]) for f in found["in_flight"]] == [
        ("image", "generating", 1)
    ]


def test_stats_name_closed_gates(world: World) -> None:
    vidgen(world, "gate", "close", "gen4_turbo", "--yes")
    assert "OPERATOR" in vidgen(world, "stats").stdout
    assert "Gate closed: gen4_turbo, OPERATOR" in vidgen(world, "tasks", "list").stderr
    unknown = vidgen(world, "gate", "open", "gen4_turb", "--yes")
    assert unknown.returncode == ExitCode.USAGE
    assert unknown.stderr == "There is no model 'gen4_turb'. Did you mean gen4_turbo?\n"


def test_a_waiting_task_names_the_gates_that_it_may_meet_and_no_others(
    ground: Ground, world: World
) -> None:
    hand = ground.worker()
    user = ground.user()
    before = ground.held(hand, "start_task", *STAGE, user_id=user)
    clip = Held(before.id, before.attempt, before.worker_id)
    hand.walk(clip, *STAGE[:2], stage="video")
    task = ground.order(user)
    for scope, model in (("*", "gen4_turbo"), ("key:key", "*"), ("*", "veo3.1"),
                         ("key:another", "gen4_turbo")):  # fmt: skip
        ground.sql(
            "insert into vidgen.gates (provider, scope, model, reason, message)"
            " values ('runway', %s, %s, 'OPERATOR', 'x')", scope, model,
        )  # fmt: skip

    def named(task_id: object) -> list[tuple[str, str]]:
        waits = told(world, "tasks", "show", str(task_id))["waits"]
        return [re.findall(r"closed: (.+?), OPERATOR, scope (\S+)", one)[0] for one in waits]

    assert named(task) == [("gen4_turbo", "*"), ("all models", "key:key")]
    # Its clip is under way: it has nothing left to submit.
    ground.sql("delete from vidgen.gates where model = '*'")
    ground.sql("alter table public.video_generation_tasks disable trigger user")
    ground.sql(
        "update public.video_generation_tasks set status = 'pending', worker_id = null,"
        " expected_at = null"
        " where id = %s", before.id,
    )  # fmt: skip
    assert named(before.id) == []


def test_what_nobody_reads_or_can_be_written_nowhere_is_no_failed_check(world: World) -> None:
    """Exit code 1 would say that something could not be done."""
    for verb in ("--help", "stats"):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "vidgen_worker", verb]
        environment = {**os.environ, **world.env()}
        left = subprocess.run(
            command, env=environment, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (left.returncode, left.stderr) == (ExitCode.READER_LEFT, b""), verb
        with Path("/dev/full").open("wb") as full:
            lost = subprocess.run(
                command, env=environment, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert lost.returncode == ExitCode.FAILED, verb
        assert lost.stderr.startswith(b"What is printed can't be written: No space left"), verb


@contextmanager
def watching(world: World) -> Iterator["subprocess.Popen[str]"]:
    """`stats --watch` as a process, on a pipe."""
    with subprocess.Popen(
        [sys.executable, "-m", "vidgen_worker", "stats", "--watch", "--every", "0.2"],
        env={"PATH": "/usr/bin:/bin", "FORCE_COLOR": "1", "TERM": "xterm", **world.env()},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_stats_watch_refreshes_until_it_is_interrupted(world: World) -> None:
    with watching(world) as process:
        assert process.stdout is not None
        looks = 0
        closing = threading.Timer(60, process.kill)
        closing.start()
        for line in process.stdout:
            looks += "waiting" in line
            if looks == 3:
                break
        closing.cancel()
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
        del out
        assert looks == 3
        assert process.returncode == 130
        assert "Traceback" not in err


async def test_a_task_is_shown_with_its_whole_story(world: World) -> None:
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt=f"[[drop-after-accept]] {uuid4()}"))
    async with world.worker():
        await world.until(task)
    found = told(world, "tasks", "show", str(task))
    happened = [(step["what"], step["stage"]) for step in found["story"]]
    assert happened[0] == ("ordered", None)
    assert happened[-1][0] == "completed" or ("completed", None) in happened[-3:]
    for step in (
        ("first claimed", None), ("credits held", None), ("submitted", "image"),
        ("counted as possibly paid", "image"), ("accepted", "image"), ("stored", "image"),
        ("charged", "image"), ("accepted", "video"), ("generation succeeded", "video"),
        ("charged", "video"), ("rest of the hold released", None),
    ):  # fmt: skip
        assert step in happened, step
    assert (found["money"]["charged"], found["money"]["held"]) == (30, 0)
    assert float(found["money"]["provider_cost"]) > 0
    assert [s["attempt"] for s in found["story"] if s["what"] == "submitted"] == [1, 2, 2]
    shown = vidgen(world, "tasks", "show", str(task)).stdout
    assert "counted as possibly paid" in shown


def test_tasks_are_found_by_every_filter(ground: Ground, world: World) -> None:
    hand = ground.worker()
    running = ground.held(hand)
    other = ground.order()
    user = ground.one(
        "select user_id, scene_id from public.video_generation_tasks where id = %s", running.id
    )
    for option, value, expected in (
        ("--user", user["user_id"], [running.id]),
        ("--scene", user["scene_id"], [running.id]),
        ("--worker", hand.worker_id, [running.id]),
        ("--status", "pending", [other]),
        ("--code", "CONTENT_REJECTED", []),
        ("--since", "1h", [running.id, other]),
    ):
        rows = told(world, "tasks", "list", option, str(value))
        assert {row["id"] for row in rows} == {str(task) for task in expected}, option
    refused = vidgen(world, "tasks", "list", "--since", "yesterday")
    assert refused.returncode == 2


def test_workers_are_told_apart_by_their_state(ground: Ground, world: World) -> None:
    steady, settling, silent, dead = (ground.worker() for _ in range(4))
    # A lease that two commands don't outlast, however busy the machine.
    ground.sql("update vidgen.workers set lease = '1 hour'")
    for hand, change in (
        (steady, "steady_since = now() - interval '2 hours'"),
        (silent, "heartbeat_at = now() - interval '2 hours'"),
        (dead, "dead_at = now()"),
    ):
        ground.sql(f"update vidgen.workers set {change} where id = %s", hand.worker_id)
    states = {row["id"]: row["state"] for row in told(world, "workers")}
    assert states == {
        str(steady.worker_id): "steady", str(settling.worker_id): "settling",
        str(silent.worker_id): "silent", str(dead.worker_id): "dead",
    }  # fmt: skip
    assert "settling" in vidgen(world, "workers").stdout


# Pruning.


async def finished(world: World, count: int = 1) -> list[UUID]:
    """Completed tasks."""
    user = world.user()
    tasks = [world.order(user, world.scene(user)) for _ in range(count)]
    async with world.worker():
        for task in tasks:
            await world.until(task)
    return tasks


async def test_pruning_removes_the_old_and_keeps_the_books(world: World) -> None:
    old, young = await finished(world, 2)
    aged(world, old)
    waiting = world.order(user := world.user(), world.scene(user))
    books = "select task_id, stage from vidgen.charges order by 1, 2"
    before = world.sql(books), world.sql("select id from vidgen.submissions order by 1")
    planned = vidgen(world, "prune")
    assert planned.returncode == 2
    assert "Remove 1 task(s)" in planned.stderr
    assert world.task(old)["status"] == "completed"
    said = told(world, "prune", "--yes")
    assert (said["tasks"], said["files"], said["left"]) == (1, 0, {})
    left = {row["id"] for row in world.sql("select id from public.video_generation_tasks")}
    assert left == {young, waiting}
    assert world.sql("select * from vidgen.checkpoints where task_id = %s", old) == []
    assert (world.sql(books), world.sql("select id from vidgen.submissions order by 1")) == before
    assert world.books_balance()
    assert told(world, "prune", "--yes")["tasks"] == 0


async def test_a_pruned_id_can_not_be_used_again(world: World) -> None:
    (old,) = await finished(world)
    aged(world, old)
    told(world, "prune", "--yes")
    user = world.user()
    scene = world.scene(user)
    with pytest.raises(psycopg.Error, match="has been pruned") as refused:
        world.as_user(
            user,
            "insert into public.video_generation_tasks (id, scene_id, user_id) values (%s, %s, %s)",
            old, scene, user,
        )  # fmt: skip
    assert refused.value.sqlstate == "PT409"
    assert "id of its own" in str(refused.value.diag.message_hint)


def test_the_unfinished_are_never_pruned(ground: Ground, world: World) -> None:
    """However old; and neither is an ended one whose generation nobody has closed yet."""
    hand = ground.worker()
    ground.held(hand, "start_task", *STAGE[:2])
    stray = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(stray, "cancel")
    ground.order()
    with ground.admin.transaction():
        ground.sql("alter table public.video_generation_tasks disable trigger user")
        ground.sql(
            "update public.video_generation_tasks set created_at = now() - interval '1 year',"
            " completed_at = case when status = 'cancelled' then now() - interval '1 year' end"
        )
        ground.sql("alter table public.video_generation_tasks enable trigger user")
    assert told(world, "prune", "--yes")["tasks"] == 0
    assert len(ground.sql("select id from public.video_generation_tasks")) == 3
    ground.sql("update vidgen.submissions set ended_at = now(), ended_state = 'cancelled'")
    assert told(world, "prune", "--yes")["tasks"] == 1
    assert len(ground.sql("select id from public.video_generation_tasks")) == 2


async def test_files_go_only_if_asked_and_also_later(world: World) -> None:
    """A first run keeps them; the tombstone names them; a run that is refused is repeated."""
    tasks = await finished(world, 2)
    for task in tasks:
        aged(world, task)
    told(world, "prune", "--batch", "1", "--yes")
    assert len(world.storage.objects()) == 4
    plan = vidgen(world, "prune", "--objects")
    assert "2 task(s) pruned earlier" in plan.stderr
    world.storage.fail("remove", status=403)
    refused = vidgen(world, "prune", "--objects", "--yes")
    assert refused.returncode == 1, refused.stdout
    assert "Run the same command again" in refused.stderr
    assert len(world.storage.objects()) == 4
    done = vidgen(world, "prune", "--objects", "--yes")
    assert done.stdout.strip() == "Removed 0 task(s) and 4 file(s)."
    assert world.storage.objects() == []
    assert told(world, "prune", "--objects", "--yes")["files"] == 0


def test_pruning_yesterday_is_refused(world: World) -> None:
    for age in ("1h", "soon"):
        refused = vidgen(world, "prune", "--older-than", age, "--yes")
        assert refused.returncode == 2
        assert "Traceback" not in refused.stderr


# The views.


@pytest.mark.parametrize("view", VIEWS)
def test_only_workers_and_operators_read_a_view(ground: Ground, view: str) -> None:
    ground.sql("set role vidgen_worker")
    ground.sql(f"select * from vidgen.{view}")
    ground.sql("reset role")
    for role in ("anon", "authenticated"):
        ground.sql(f"set role {role}")
        with pytest.raises(psycopg.Error, match="permission denied"):
            ground.sql(f"select * from vidgen.{view}")
        ground.sql("reset role")


async def test_consumption_is_reported_by_user_and_by_model(world: World) -> None:
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
    (used,) = world.sql("select * from vidgen.consumption_by_user where user_id = %s", user)
    assert (used["submissions"], used["credits_charged"]) == (2, 30)
    models = world.sql("select * from vidgen.consumption_by_model order by model")
    assert [(m["model"], m["stage"], m["succeeded"]) for m in models] == [
        ("gen4_image", "image", 1), ("gen4_turbo", "video", 1),
    ]  # fmt: skip
    assert used["provider_cost"] == sum(m["provider_cost"] for m in models) > 0


def plan_of(ground: Ground, statement: str) -> str:
    rows = ground.sql(f"explain (analyze, costs off, timing off, summary off) {statement}")
    return "\n".join(row["QUERY PLAN"] for row in rows)


def test_the_last_hours_cost_no_more_than_themselves(ground: Ground) -> None:
    """The condition on `hour` reaches the series of hours, each of which is an index range."""
    ground.sql("set enable_seqscan = off")  # the tables of a test are too small for an index
    day = plan_of(
        ground, "select * from vidgen.stats_hourly where hour >= date_trunc('hour', now())"
    )
    assert "Index Cond: ((completed_at >= hours.hour)" in day.replace("hours_1.hour", "hours.hour")
    assert "Seq Scan" not in day
    looks = [int(n) for n in re.findall(r"Aggregate \(actual rows=\S+ loops=(\d+)\)", day)]
    assert looks == [1, 1, 1], day
    week = plan_of(ground, "select * from vidgen.stats_hourly")
    looks = [int(n) for n in re.findall(r"Aggregate \(actual rows=\S+ loops=(\d+)\)", week)]
    assert looks == [169, 169, 169], week


async def test_an_hour_without_anything_is_left_out(world: World) -> None:
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
    hours = world.sql("select * from vidgen.stats_hourly order by hour")
    assert len(hours) in {1, 2}, "two where it ran over a full hour"
    assert sum(row["completed"] for row in hours) == 1
    assert sum(row["submissions"] for row in hours) == 2
    assert sum(row["credits_charged"] for row in hours) == 30
