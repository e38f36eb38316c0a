"""Films as batches: several scenes ordered as one, with real workers beside the doubles."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.hands import let_go
from tests.support.watching import until_true, watch
from tests.support.world import World, cancel, hearing, posts, refuse_one, told, vidgen
from vidgen_worker.telemetry import events

Row = dict[str, Any]
PRICE, IMAGE_PRICE = 30, 5
TASKS = "public.video_generation_tasks"


def order_film(world: World, user: UUID, cut: dict[str, Any]) -> UUID:
    """Insert a film as its user."""
    film = uuid4()
    world.as_user(
        user, "insert into public.video_generation_tasks (id, user_id, cut) values (%s, %s, %s)",
        film, user, Jsonb(cut),
    )  # fmt: skip
    return film


def of_scenes(*scenes: UUID, on_failure: str = "fail") -> dict[str, Any]:
    return {"parts": [{"scene": str(scene)} for scene in scenes], "on_failure": on_failure}


def scenes_of(world: World, user: UUID, count: int) -> list[UUID]:
    return [world.scene(user) for _ in range(count)]


def parts_of(world: World, film: UUID) -> list[Row]:
    with world.ground() as ground:
        return ground.parts(film)


def refused_scene(world: World, user: UUID) -> UUID:
    """A scene that content rules reject."""
    return world.scene(user, image_prompt=f"[[fail SAFETY.INPUT.TEXT]] {uuid4()}")


def retry(world: World, user: UUID, task: UUID) -> Row:
    (row,) = world.as_user(user, "select * from public.retry_video_generation_task(%s)", task)
    return row


async def test_five_scenes_become_one_film_whose_progress_only_grows(world: World) -> None:
    user = world.user(5 * PRICE)
    scenes = scenes_of(world, user, 5)
    world.sql("create table seen (n bigint generated always as identity, progress float8)")
    world.sql("grant all on seen to public")
    world.sql("""
        create function see() returns trigger language plpgsql as $$
        begin
          insert into public.seen (progress) values (new.progress);
          return new;
        end $$
    """)
    world.sql(
        "create trigger see before update on video_generation_tasks for each row"
        " when (new.lane = 0) execute function see()"
    )
    film = order_film(world, user, of_scenes(*scenes))
    async with world.worker():
        row = await world.until(film)
    assert (row["status"], row["error"], row["progress"]) == ("completed", None, 100)
    parts = parts_of(world, film)
    assert [part["scene_id"] for part in parts] == scenes
    assert {(part["film_id"], part["status"]) for part in parts} == {(film, "completed")}
    assert world.credits(user) == (0, 0)
    progress = [one["progress"] for one in world.sql("select progress from seen order by n")]
    assert progress == sorted(progress)
    assert {18, 31, 44, 57} & {round(one) for one in progress}
    assert world.sql("select * from vidgen.endings") == []
    assert world.books_balance()


async def test_a_balance_for_four_of_five_scenes_begins_nothing(world: World) -> None:
    user = world.user(5 * PRICE - 1)
    film = order_film(world, user, of_scenes(*scenes_of(world, user, 5)))
    async with world.worker():
        row = await world.until(film)
    assert (row["status"], row["error_code"]) == ("failed", "INSUFFICIENT_CREDITS")
    assert "none was begun" in row["error_message"]
    assert world.sql(f"select * from {TASKS} where lane > 0") == []
    assert parts_of(world, film) == []
    assert world.credits(user) == (5 * PRICE - 1, 0)
    assert posts(world) == (0, 0)


async def test_a_retry_pays_only_for_what_failed(world: World) -> None:
    """The part that failed is named; the others are kept."""
    user = world.user(3 * PRICE + 5)
    good, bad, also_good = world.scene(user), refused_scene(world, user), world.scene(user)
    film = order_film(world, user, of_scenes(good, bad, also_good))
    async with world.worker():
        row = await world.until(film)
        assert (row["status"], row["error_code"]) == ("failed", "PART_FAILED")
        assert row["error_message"].startswith(
            "Part 2 of 3 ended without a clip (CONTENT_REJECTED)"
        )
        assert row["error"]["field"] == "/parts/1"
        assert world.credits(user) == (PRICE + 5, 0)
        before = parts_of(world, film)

        retry(world, user, film)
        row = await world.until(film, attempt=row["attempt"] + 1)
        assert row["error_code"] == "PART_FAILED"
        assert "it is unchanged" in row["error_message"]

        world.sql("update video_scenes set image_prompt = %s where id = %s", f"fine {bad}", bad)
        retry(world, user, film)
        row = await world.until(film, "completed")
    assert [part["id"] for part in parts_of(world, film)] == [part["id"] for part in before]
    assert world.credits(user) == (5, 0)
    assert posts(world) == (4, 3)
    assert world.books_balance()


async def test_a_film_may_go_without_the_parts_that_fail(world: World) -> None:
    user = world.user()
    some = order_film(
        world, user, of_scenes(world.scene(user), refused_scene(world, user), on_failure="skip")
    )
    none = order_film(world, user, of_scenes(refused_scene(world, user), on_failure="skip"))
    async with world.worker():
        assert (await world.until(some))["status"] == "completed"
        row = await world.until(none)
    assert (row["status"], row["error_code"]) == ("failed", "PART_FAILED")


async def test_a_cancel_takes_along_what_only_this_film_needs(world: World) -> None:
    """A part that another unfinished film uses goes on, and so does one that was ordered before."""
    watch(world)
    user = world.user()
    held = "[[slow 60s]]"
    scenes = [world.scene(user, image_prompt=f"{held} {uuid4()}") for _ in range(3)]
    own = world.order(user, scenes[0])
    async with world.worker(VIDGEN_CONCURRENCY="1"):
        first = order_film(world, user, {"parts": [
            {"task": str(own)}, {"scene": str(scenes[1])}, {"scene": str(scenes[2])},
        ]})  # fmt: skip
        await until_true(world, "select count(*) = 3 from vidgen.parts where film_id = %s", first)
        shared = parts_of(world, first)[2]["id"]
        second = order_film(world, user, {"parts": [{"task": str(shared)}]})
        await until_true(
            world, "select exists (select from vidgen.films where film_id = %s)", second
        )
        await until_true(world, f"select status = 'pending' from {TASKS} where id = %s", first)
        assert cancel(world, user, first)["status"] == "cancelled"
        states = {part["position"]: part["status"] for part in parts_of(world, first)}
        assert states[2] == "cancelled"
        assert states[1] in ("pending", "processing")
        assert states[3] in ("pending", "processing")
        assert cancel(world, user, second)["status"] == "cancelled"
        cancel(world, user, shared)
        cancel(world, user, own)
        await until_true(
            world, f"select bool_and(status = 'cancelled') from {TASKS} where user_id = %s", user
        )
    assert world.credits(user)[1] == 0


async def test_a_scenario_is_a_film_of_its_scenes_in_their_order(world: World) -> None:
    user, stranger = world.user(), world.user()
    scenario = uuid4()
    world.sql("insert into video_scenarios (id, resolution) values (%s, '1280:720')", scenario)
    scenes = [
        world.scene(user, resolution=None, scenario_id=scenario, created_at=f"2026-01-0{day}")
        for day in (3, 1, 2)
    ]
    world.scene(stranger, resolution=None, scenario_id=scenario)
    film = order_film(world, user, {"scenario": str(scenario).upper()})
    async with world.worker():
        assert (await world.until(film))["status"] == "completed"
    assert [part["scene_id"] for part in parts_of(world, film)] == [scenes[1], scenes[2], scenes[0]]


async def test_a_cut_that_can_t_be_ordered_says_where_and_orders_nothing(world: World) -> None:
    user, stranger = world.user(), world.user()
    mine, theirs = world.scene(user), world.scene(stranger)
    their_task = world.order(stranger, theirs)
    another_film = order_film(world, stranger, of_scenes(theirs))
    cuts: list[tuple[dict[str, Any], str | None, str]] = [
        ({"parts": []}, "/parts", "/parts: there is no part"),
        ({"parts": [{"scene": str(mine)}, {"scene": str(theirs)}]}, "/parts/1/scene",
         f"/parts/1/scene: there is no scene {theirs} of yours"),
        ({"parts": [{"task": str(their_task)}]}, "/parts/0/task",
         f"/parts/0/task: there is no task {their_task} of yours"),
        ({"parts": [{"task": str(another_film)}]}, "/parts/0/task", "/parts/0/task: there is no"),
        ({"parts": [{"scene": "no uuid"}]}, "/parts/0/scene", "/parts/0/scene: 'no uuid' is no id"),
        ({"parts": [{"scene": str(mine), "trim": 1}]}, "/parts/0/trim", "/parts/0/trim: there"),
        ({"parts": [{"scene": str(mine), "to": 1}]}, "/parts/0/to", "/parts/0/to: a film without"),
        ({"scenario": str(uuid4())}, "/scenario", "/scenario: there is no scene of yours"),
        ({"parts": [{"scene": str(mine)}], "on_failure": "sigh"}, "/on_failure", "/on_failure"),
        ({}, "/parts", "/parts: a film needs either parts or a scenario"),
    ]  # fmt: skip
    films = [order_film(world, user, cut) for cut, _, _ in cuts]
    async with world.worker():
        for film, (_, field, said) in zip(films, cuts, strict=True):
            row = await world.until(film)
            assert (row["status"], row["error_code"]) == ("failed", "INVALID_REQUEST")
            assert row["error_message"].startswith(said), row["error_message"]
            assert row["error"].get("field") == field
    assert world.sql(f"select * from {TASKS} where user_id = %s and lane > 0", user) == []
    assert world.credits(user) == (1000, 0)


@pytest.mark.parametrize(
    "cut",
    ['{"parts": 1e5000}', '{"parts": ' + "[" * 3000 + "]" * 3000 + "}"],
    ids=["an integer of 5,001 digits", "3,000 lists"],
)
async def test_a_cut_that_python_can_t_read_ends_its_own_film_only(world: World, cut: str) -> None:
    """PostgreSQL keeps it; psycopg's own reader raises where any row with it is read."""
    user = world.user()
    world.as_user(
        user, f"insert into {TASKS} (user_id, cut) values (%s, %s::text::jsonb)", user, cut
    )
    (film,) = [row["id"] for row in world.sql(f"select id from {TASKS}")]
    watch(world)
    async with world.worker():
        await until_true(world, f"select status = 'failed' from {TASKS} where id = %s", film)
    assert world.one(f"select error_code from {TASKS}")["error_code"] == "INVALID_REQUEST"
    assert world.one("select count(*) from vidgen.gates")["count"] == 0
    listed = await asyncio.to_thread(vidgen, world, "tasks", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert str(film) in listed.stdout


async def test_what_a_cancelled_film_had_ordered_ends_with_the_last_that_needs_it(
    world: World,
) -> None:
    watch(world)
    user = world.user()
    ordered = "select exists (select from vidgen.films where film_id = %s)"
    async with world.worker():
        first = order_film(world, user, of_scenes(world.scene(user, image_prompt="[[slow 60s]] x")))
        await until_true(world, ordered, first)
        (part,) = parts_of(world, first)
        second = order_film(world, user, {"parts": [{"task": str(part["id"])}]})
        await until_true(world, ordered, second)
        for film, asked in ((first, False), (second, True)):
            await until_true(world, f"select status = 'pending' from {TASKS} where id = %s", film)
            cancel(world, user, film)
            assert (world.task(part["id"])["cancel_requested_at"] is not None) is asked


async def test_a_part_that_a_waiting_film_needs_is_not_pruned_by_hand(world: World) -> None:
    watch(world)
    user = world.user()
    ordered = "select exists (select from vidgen.films where film_id = %s)"
    async with world.worker():
        done = world.order(user, world.scene(user))
        await world.until(done)
        slow = world.scene(user, image_prompt="[[slow 60s]] x")
        film = order_film(world, user, {"parts": [{"task": str(done)}, {"scene": str(slow)}]})
        await until_true(world, ordered, film)
    aged = "completed_at = completed_at - interval '9 days'"
    world.sql(f"alter table {TASKS} disable trigger user")
    world.sql(f"update {TASKS} set {aged} where id = %s", done)
    world.sql(f"alter table {TASKS} enable trigger user")
    for left in (True, False):
        pruned = await asyncio.to_thread(vidgen, world, "prune", "--older-than", "1d", "--yes")
        assert pruned.returncode == 0, pruned.stderr
        assert bool(world.sql(f"select id from {TASKS} where id = %s", done)) is left
        world.sql(f"delete from {TASKS} where id = %s", film)


def test_a_film_is_what_its_owner_may_insert_and_nobody_changes(world: World) -> None:
    user = world.user()
    scene = world.scene(user)
    insert = f"insert into {TASKS} (user_id, scene_id, cut) values (%s, %s, %s)"
    for scene_id, cut, error in (
        (scene, {"parts": []}, "a_film_has_no_scene"),
        (None, ["parts"], "a_cut_is_an_object_of_32_kilobytes"),
        (None, {"parts": "x" * 32_768}, "a_cut_is_an_object_of_32_kilobytes"),
        (None, None, "row-level security"),
    ):
        with pytest.raises(psycopg.Error, match=error):
            world.as_user(
                user,
                insert,
                user,
                scene_id,
                None if cut is None else Jsonb(cut),
            )
    with pytest.raises(psycopg.Error, match="permission denied"):
        world.as_user(
            user, f"insert into {TASKS} (user_id, film_id) values (%s, %s)", user, uuid4()
        )
    film = order_film(world, user, of_scenes(scene))
    assert world.task(film)["lane"] == 0
    for change in ("cut = '{}'", "cut = null, lane = 1", "lane = 1"):
        with pytest.raises(psycopg.errors.CheckViolation):
            world.sql(f"update {TASKS} set {change} where id = %s", film)


async def test_a_row_that_refuses_a_film_stops_no_part_and_no_other_film(world: World) -> None:
    user = world.user()
    refusing = order_film(world, user, of_scenes(*scenes_of(world, user, 2)))
    other = order_film(world, user, of_scenes(*scenes_of(world, user, 2)))
    refuse_one(world, refusing, "new.run_after < '9999-01-01' and old.run_after > '9998-01-01'")
    async with world.worker(), hearing(events.RowRefused) as refused:
        assert (await world.until(other))["status"] == "completed"
        await refused.wait()
        parts = parts_of(world, refusing)
        for part in parts:
            assert (await world.until(part["id"]))["status"] == "completed"
        assert world.task(refusing)["status"] == "pending"
        with world.ground() as ground:
            let_go(ground)
        world.sql("update vidgen.refusals set until = now()")
        assert (await world.until(refusing))["status"] == "completed"


async def test_the_command_line_orders_a_film_and_shows_its_parts(
    world: World, tmp_path: Path
) -> None:
    user = world.user()
    cut = tmp_path / "cut.json"
    ordering = ("enqueue", "--user", str(user), "--cut", str(cut))
    cut.write_text('{"parts": []}')
    done = await asyncio.to_thread(vidgen, world, *ordering)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/parts: there is no part" in done.stderr
    cut.write_text(json.dumps(of_scenes(*scenes_of(world, user, 2))))
    async with world.worker():
        film = await asyncio.to_thread(told, world, *ordering, "--watch")
    assert film["status"] == "completed"
    shown = await asyncio.to_thread(told, world, "tasks", "show", film["id"])
    assert [part["status"] for part in shown["parts"]] == ["completed"] * 2
    text = (await asyncio.to_thread(vidgen, world, "tasks", "show", film["id"])).stdout
    assert "Parts" in text
    assert shown["parts"][1]["task_id"][:8] in text.partition("Parts")[2]


async def test_a_film_in_good_hands_survives_a_drain(world: World) -> None:
    """Its worker leaves while parts run; another one ends both, and a third has nothing to do."""
    user = world.user()
    scenes = [world.scene(user, image_prompt=f"[[slow 2s]] {uuid4()}") for _ in range(2)]
    film = order_film(world, user, of_scenes(*scenes))
    async with (
        world.worker(),
        hearing(events.FilmWaits) as waits,
        hearing(events.SubmissionRecorded) as submitted,
    ):
        await waits.wait()
        await submitted.wait()
    assert world.task(film)["status"] == "pending"
    async with world.worker():
        assert (await world.until(film))["status"] == "completed"
    assert posts(world) == (2, 2)
