"""Every wait, poll and cancel has an end, a code, and somebody who knows what is left behind."""

import resource
import time
from typing import Any

import httpx
import pytest

from tests.support.answering import bomb, server
from tests.support.watching import until, until_true, watch
from tests.support.world import PATIENCE, World, cancel, hearing, recorded
from vidgen_worker.domain.faults import Fault
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.providers.http_client import LARGEST_ANSWER
from vidgen_worker.providers.runway.adapter import Runway
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry import events

HARD = {
    "VIDGEN_STAGE_DEADLINE": "100ms", "VIDGEN_STAGE_HARD_DEADLINE": "300ms",
    "VIDGEN_POLL_INTERVAL": "10ms",
}  # fmt: skip
SHORT_WAIT = {"VIDGEN_WAIT_DEADLINE": "500ms", "VIDGEN_RETRY_BACKOFF_MAX": "200ms"}


def ends(world: World) -> list[str]:
    rows = world.sql("select ended_state from vidgen.submissions order by sent_at")
    return [row["ended_state"] for row in rows]


# Polls.


@pytest.mark.parametrize("word", ["poll-html", "weird-status"])
async def test_a_generation_without_a_good_answer_ends_at_the_hard_deadline(
    world: World, word: str
) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt=f"[[{word} x999]] [[slow 20s]] a bottle")
    async with world.worker(**HARD):
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["error_code"]) == ("failed", "GENERATION_OVERDUE")
    assert ends(world) == ["cancelled", "cancelled"]
    assert world.credits(user) == (100, 0)
    assert [g["state"] for g in world.runway.generations()] == ["CANCELLED"] * 2


async def test_one_that_can_t_even_be_cancelled_is_given_up_and_its_cost_read_later(
    world: World,
) -> None:
    watch(world)
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[stall]] a bottle")
    async with world.worker(**HARD, VIDGEN_MAX_SUBMISSIONS="1") as worker:
        async with hearing(events.SubmissionRecorded) as accepted:
            task = world.order(user, scene)
            await accepted.wait()
        world.runway.set(outage=True)
        row = await world.until(task)
        assert row["error_code"] == "GENERATION_OVERDUE"
        assert ends(world) == ["given up"]
        assert world.sql("select id from vidgen.slots where task_id is not null") == []
        world.runway.set(outage=False)
        world.sql(
            "update vidgen.submissions set ended_at = now() - interval '6 minutes',"
            " cost_read_at = now() - interval '6 minutes'"
        )
        await worker.janitor.strays.read_costs_again()
    assert [g["state"] for g in world.runway.generations()] == ["CANCELLED"]


async def test_one_bad_answer_past_the_hard_deadline_throws_nothing_away(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[poll-500 x4]] a bottle")
    async with world.worker(**HARD | {"VIDGEN_STAGE_HARD_DEADLINE": "100ms"}):
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 0)


# Waits.


@pytest.mark.parametrize(
    ("image", "code"),
    [("[[zero-bytes x999]]", "OUTPUT_UNAVAILABLE"), ("[[busy x999]]", "PROVIDER_BUSY")],
)
async def test_a_wait_for_the_provider_ends(world: World, image: str, code: str) -> None:
    user = world.user(100)
    async with world.worker(**SHORT_WAIT):
        row = await world.until(world.order(user, world.scene(user, image_prompt=image + " a")))
    assert (row["status"], row["error_code"]) == ("failed", code)
    assert "lasted too long" in row["error_message"]
    assert "by itself" not in row["error_message"]
    assert world.credits(user) == (100, 0)


async def test_a_wait_for_the_file_store_ends(world: World) -> None:
    user = world.user(100)
    world.storage.fail("upload", times=999, status=503)
    async with world.worker(**SHORT_WAIT):
        row = await world.until(world.order(user, world.scene(user)))
    assert (row["status"], row["error_code"]) == ("failed", "STORAGE_UNAVAILABLE")
    assert world.credits(user) == (100, 0)


async def test_a_wait_is_counted_from_its_beginning_and_anew_once_it_has_come_further(
    world: World,
) -> None:
    watch(world)
    user = world.user(100)
    task = world.order(user, world.scene(user, image_prompt="[[busy x2]] a"))
    async with world.worker(VIDGEN_WAIT_DEADLINE="1h"):
        row = await world.until(task)
    assert row["status"] == "completed"
    budget = world.one("select waiting_since from vidgen.budgets where task_id = %s", task)
    assert budget["waiting_since"] is None


async def test_what_waits_for_its_turn_or_for_an_operator_is_not_ended(world: World) -> None:
    """Behind a closed gate for longer than any wait may last."""
    watch(world)
    user = world.user(100)
    world.runway.set(key_disabled=True)
    async with world.worker(VIDGEN_WAIT_DEADLINE="200ms"):
        task = world.order(user, world.scene(user))
        await until_true(world, "select exists (select from vidgen.gates where probes > 2)")
        assert world.task(task)["status"] == "pending"
        world.runway.set(key_disabled=False)
        assert (await world.until(task))["status"] == "completed"


async def test_a_retry_after_a_wait_that_ended_waits_anew(world: World) -> None:
    user = world.user(100)
    task = world.order(user, world.scene(user, image_prompt="[[busy x60]] a"))
    async with world.worker(**SHORT_WAIT):
        assert (await world.until(task))["error_code"] == "PROVIDER_BUSY"
        rows = world.sql("select task_id from vidgen.budgets where waiting_since is not null")
        assert rows == []
        world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        row = await world.until(task, attempt=3)
    assert row["status"] in ("failed", "completed")


# Cancels.


async def test_cancels_in_an_outage_back_off_and_end_and_the_janitor_goes_on(
    world: World,
) -> None:
    watch(world)
    tasks = []
    for _ in range(12):
        user = world.user(100)
        scene = world.scene(user, image_prompt="[[stall]] a bottle")
        tasks.append((user, world.order(user, scene)))
    settings = {
        "VIDGEN_RETRY_BACKOFF": "500ms", "VIDGEN_CANCEL_DEADLINE": "3s",
        "VIDGEN_IMAGE_SLOTS": "12", "VIDGEN_STAGE_DEADLINE": "1h",
    }  # fmt: skip
    async with world.worker(**settings) as worker:
        await until_true(
            world, "select count(*) = 12 from vidgen.checkpoints where state = 'generating'"
        )
        world.runway.set(outage=True)
        with recorded() as heard:
            for user, task in tasks:
                cancel(world, user, task)
            for _, task in tasks:
                assert (await world.until(task))["status"] == "cancelled"
        tries = [event for event in heard if isinstance(event, events.TaskRequeued)]
        # 0.5 s, then 1 s, then 2 s: no task more than four times in three seconds.
        assert len(tries) <= 4 * len(tasks)
        assert {user_credits[1] for user_credits in map(world.credits, (u for u, _ in tasks))} == {
            0
        }
        world.runway.set(outage=False)
        # Its own turn may have looked at some of them during the outage, or be at it now.
        age(world, "2 minutes")
        await worker.janitor.strays.end()
        await until(world, lambda: set(ends(world)) == {"cancelled"})
    assert {g["state"] for g in world.runway.generations()} == {"CANCELLED"}


def age(world: World, by: str) -> None:
    """Age a generation, and the look that somebody has just had at it."""
    world.sql(
        "update vidgen.submissions"
        "   set answered_at = now() - %s::interval, looked_at = now() - interval '1 minute'",
        by,
    )


async def test_a_stray_that_can_never_be_asked_about_is_given_up(world: World) -> None:
    user = world.user(100)
    async with world.worker(VIDGEN_CANCEL_DEADLINE="10ms") as worker:
        async with hearing(events.SubmissionRecorded) as accepted:
            task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
            await accepted.wait()
        world.runway.set(outage=True)
        cancel(world, user, task)
        assert (await world.until(task))["status"] == "cancelled"
        age(world, "1 hour")
        await worker.janitor.strays.end()
        assert ends(world) == [None]
        age(world, "3 hours")
        await worker.janitor.strays.end()
    assert ends(world) == ["given up"]


# Answers.


def client(seconds: float = PATIENCE) -> FreeClient:
    return FreeClient(timeout=httpx.Timeout(seconds), limits=httpx.Limits())


def huge(coding: str) -> tuple[bytes, bytes]:
    body = bomb() if coding in ("gzip", "x-gzip") else b" " * (LARGEST_ANSWER + 1)
    return f"content-encoding: {coding}\r\ncontent-length: {len(body)}".encode(), body


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "identity", "br", "zstd", "gzip, gzip"])
async def test_an_answer_larger_than_any_of_ours_is_refused_before_it_is_unpacked(
    coding: str,
) -> None:
    head, body = huge(coding)
    peak = _memory()
    async with server(head, body) as url, client() as http:
        with pytest.raises(httpx.DecodingError):
            await http.get(url)
    assert _memory() - peak < 150_000_000


async def test_both_adapters_turn_a_bomb_into_a_fault(world: World) -> None:
    head, body = huge("gzip")
    async with server(head, body) as url:
        seconds: dict[str, Any] = {"submit_timeout": world.settings().vidgen_submit_timeout}
        runway = Runway("key_test", base_url=url, **seconds)
        with pytest.raises(Fault, match="poll_failed"):
            await runway.account()
        await runway.aclose()
        storage = Storage(url, world.storage.keys.service_role, buckets=[])
        with pytest.raises(Fault, match="storage_unavailable"):
            await storage.exists("bucket", "path")
        await storage.aclose()


@pytest.mark.usefixtures("transport")
async def test_a_packed_answer_of_usual_size_is_read_although_none_was_asked_for() -> None:
    body = bomb(1 << 20)
    head = f"content-encoding: gzip\r\ncontent-length: {len(body)}".encode()
    async with server(head, body) as url, client() as http:
        answer = await http.get(url)
    assert len(answer.content) == 1 << 20
    assert "content-encoding" not in answer.headers


@pytest.mark.usefixtures("transport")
async def test_an_answer_that_drips_is_ended() -> None:
    slow = server(b"content-length: 99999", b"", drip=0.05)
    async with slow as url, client(0.3) as http:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            await http.get(url)
    assert time.monotonic() - began < PATIENCE / 6


def _memory() -> int:
    """The process's peak of resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
