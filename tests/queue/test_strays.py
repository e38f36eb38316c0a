"""Nothing lives on behind a task that has ended, whatever ended it.

The ways to end are generated from the code: every fault that a task can end by, and every statement
or function that writes an ended status. What still lives at the provider is a stray then: it is
read, cancelled, booked, and its slot is free.
"""

import re
from collections.abc import Callable

import pytest

from tests.support.hands import STAGE, Ground, Hand, Held
from tests.support.sources import doers
from tests.support.watching import until_true, watch
from tests.support.world import World, recorded
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.domain.faults import FAULTS
from vidgen_worker.telemetry import events

ENDS = re.compile(r"set status = '(?:failed|cancelled|completed)'")

End = Callable[[Ground, Hand, Held], None]


def by_fault(code: str) -> End:
    def end(_: Ground, hand: Hand, held: Held) -> None:
        assert hand.about(held, "fail", code=code)

    return end


def cancel(_: Ground, hand: Hand, held: Held) -> None:
    assert hand.about(held, "cancel")


def lost(ground: Ground, hand: Hand, held: Held) -> None:
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    ground.silent(hand.worker_id)
    (row,) = ground.worker()("take_over")
    assert row["kind"] == "lost"


def set_aside_too_often(ground: Ground, hand: Hand, held: Held) -> None:
    ground.sql("update vidgen.settings set max_refusals = 1")
    assert hand.about(held, "set_aside")[0]["became"] == "failed"


def refused_too_often(ground: Ground, hand: Hand, held: Held) -> None:
    ground.sql("select vidgen.note_refusal(%s, 'hand back', 'P0001', null)", held.id)
    ground.sql("update vidgen.refusals set tries = 8, until = now()")
    assert hand("retry_refused")[0]["became"] == "failed"


def by_operator(status: str) -> End:
    def end(ground: Ground, _: Hand, held: Held) -> None:
        ground.sql(
            "update public.video_generation_tasks set status = %s, worker_id = null,"
            "  completed_at = now(), error_code = case %s when 'failed' then 'OPERATOR' end,"
            "  error_message = case %s when 'failed' then 'no' end,"
            "  error = case %s when 'failed' then '{}'::jsonb end where id = %s",
            status, status, status, status, held.id,
        )  # fmt: skip

    return end


def cancelled_while_it_waits(ground: Ground, hand: Hand, held: Held) -> None:
    """The answer is recorded between the owner's look at what lives and the end of his cancel."""
    hand.about(held, "requeue")
    by_operator("cancelled")(ground, hand, held)


WAYS: dict[str, End] = {
    **{f"fault {name}": by_fault(rule.code) for name, rule in FAULTS.items() if rule.code},
    "cancel": cancel,
    "take_over": lost,
    "set_aside": set_aside_too_often,
    "retry_refused": refused_too_often,
    "an operator's failed": by_operator("failed"),
    "an operator's cancelled": by_operator("cancelled"),
    "a cancel that meets an answer": cancelled_while_it_waits,
}
LEAVES_NOTHING = {"complete", "finish_stage", "try_rows"}
"""The first two write with or after the last stage, the third takes back what it writes."""
FUNCTIONS = {
    "vidgen.cancel_locked", "vidgen.cancel_task", "vidgen.complete_task", "vidgen.end_refused",
    "vidgen.fail_task", "vidgen.retry_refused",
    "vidgen.set_aside_task", "vidgen.take_over_task", "vidgen.try_row",
}  # fmt: skip


def test_every_way_to_end_has_its_case() -> None:
    """A new statement or function that ends tasks, without a case here, fails this test."""
    queries, functions = doers(ENDS)
    assert queries == (set(WAYS) & set(QUERIES)) | {"fail"} | LEAVES_NOTHING
    assert functions == FUNCTIONS


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("state", ["generating", "submitting"])
def test_every_end_of_a_task_leaves_no_checkpoint_under_way(
    ground: Ground, name: str, state: str
) -> None:
    hand = ground.worker()
    hand("set_limit", model="gen4_image", max_generations=1)
    held = ground.held(hand, "start_task", *STAGE[: 2 if state == "generating" else 1])
    WAYS[name](ground, hand, held)
    assert ground.task(held.id)["completed_at"] is not None
    assert ground.none("select from vidgen.checkpoints where state in ('submitting', 'generating')")
    assert ground.books_balance()
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'"
               " where answered_at is not null")  # fmt: skip
    if state == "generating":
        (stray,) = hand("stray_submissions")
        assert (stray["generation_id"], stray["kept"]) == (held.generation_id, False)
        hand("close_generation", task_id=held.id, generation_id=held.generation_id,
             ended_state="cancelled", cost=5)  # fmt: skip
    else:
        ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
        ground.sql("update vidgen.slots set taken_at = now() - interval '1 hour'"
                   " where task_id is not null")  # fmt: skip
        hand("free_slots")
        hand("give_up_submissions")
        assert ground.one("select answer from vidgen.submissions")["answer"] == "unknown"
    assert ground.none("select from vidgen.slots where task_id is not null")


def test_a_stray_is_looked_at_by_one_worker_at_a_time(ground: Ground) -> None:
    one, other = ground.worker(), ground.worker()
    held = ground.held(one, "start_task", *STAGE[:2])
    one.about(held, "fail")
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'")
    with one.holding():
        assert len(one("stray_submissions")) == 1
        assert other("stray_submissions") == []
    assert other("stray_submissions") == [], "the provider is not asked twice within 5 s"
    ground.sql("update vidgen.submissions set looked_at = now() - interval '11 seconds'")
    assert len(other("stray_submissions")) == 1


@pytest.mark.parametrize("why", ["it waits", "it is set aside"])
def test_a_waiting_task_s_generation_is_read_and_not_ended(ground: Ground, why: str) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2])
    if why == "it waits":
        hand.about(held, "requeue", delay="10 minutes")
    else:
        ground.sql("select vidgen.note_refusal(%s, 'hand back', 'P0001', null)", held.id)
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'")
    (stray,) = hand("stray_submissions")
    assert stray["kept"] is True


def test_a_running_task_s_generation_is_no_stray(ground: Ground) -> None:
    hand = ground.worker()
    ground.held(hand, "start_task", *STAGE[:2])
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 hour'")
    assert hand("stray_submissions") == []


def test_a_price_that_has_gone_ends_no_task_that_has_its_own(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2])
    ground.sql("delete from public.credit_prices")
    assert hand.about(held, "start_task")[0]["funding"] == "held"
    fresh = ground.held(hand)
    assert hand.about(fresh, "start_task")[0]["funding"] == "price_missing"


# A whole worker: a tier of one, a deploy, and a scene that is deleted meanwhile.


@pytest.mark.parametrize("gone", ["the account", "the worker, for the last time"])
async def test_a_task_that_ends_before_its_generation_frees_its_slot(
    world: World, gone: str
) -> None:
    watch(world)
    user, other = world.user(), world.user()
    scene = world.scene(user, image_prompt="[[slow 300s]] of a bottle")
    task = world.order(user, scene)
    tier = {"VIDGEN_IMAGE_SLOTS": "1", "VIDGEN_VIDEO_SLOTS": "1"}
    async with world.worker(**tier):
        await until_true(
            world, "select exists (select from vidgen.checkpoints where state = 'generating')"
        )
    match gone:
        case "the account":
            # An application's own: it deletes the user's rows, the credits first.
            world.sql("delete from video_scenes where user_id = %s", user)
            code = "SCENE_NOT_FOUND"
        case _:
            world.sql(
                "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)"
                " on conflict (task_id) do update set crashes = 2, suspect = true", task,
            )  # fmt: skip
            with world.ground() as ground:
                dead = ground.worker()
                assert [held.id for held in dead.claim(idle=True)] == [task]
                ground.silent(dead.worker_id)
            code = "WORKER_LOST"
    with recorded() as heard:
        async with world.worker(**tier, VIDGEN_LEASE="1s") as worker:
            assert (await world.until(task))["error_code"] == code
            waiting = world.order(other, world.scene(other))
            world.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'")
            await worker.janitor.strays.end()
            assert (await world.until(waiting))["status"] == "completed"
    (stray,) = [e for e in heard if isinstance(e, events.StrayGeneration)]
    assert (stray.task, stray.state) == (str(task), "cancelled")
    assert world.none_lives(task)
    assert world.credits(user)[1] == 0
    assert [one["state"] for one in world.runway.generations()].count("CANCELLED") <= 1


async def test_a_generation_that_ends_while_its_task_waits_gives_its_slot_back(
    world: World,
) -> None:
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[slow 1s]] of a bottle"))
    async with world.worker(VIDGEN_IMAGE_SLOTS="1"):
        await until_true(
            world, "select exists (select from vidgen.checkpoints where state = 'generating')"
        )
    world.sql(
        "update video_generation_tasks set run_after = now() + interval '1 hour' where id = %s",
        task,
    )
    async with world.worker(VIDGEN_IMAGE_SLOTS="1") as worker:
        await world.beats(1)
        while world.one("select count(*) as n from vidgen.slots where task_id is not null"
                        "  and model = 'gen4_image'")["n"]:  # fmt: skip
            world.sql("update vidgen.submissions set answered_at = now() - interval '1 minute',"
                      " looked_at = null")  # fmt: skip
            await worker.janitor.strays.end()
        world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
        row = await world.until(task)
    assert row["status"] == "completed"
    assert len(world.runway.generations(kind="image")) == 1
