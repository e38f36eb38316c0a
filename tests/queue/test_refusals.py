"""An application's trigger, check or key refuses a change of one task's row: it costs that task.

The refusing trigger is an application's: after an update it writes a notification whose foreign key
is broken. Each statement that writes a task meets it on one of five rows.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from tests.support.hands import STAGE, Ground, Hand, Held, Row, let_go, refuse
from tests.support.sources import doers
from tests.support.watching import until_true, watch
from tests.support.world import World, recorded, refuse_one
from vidgen_worker.cli import app
from vidgen_worker.telemetry import events

WRITES_A_TASK = re.compile(r"\bupdate public\.video_generation_tasks\b")


# Every statement that writes a task, of several at once, and one of them refuses.


def claimed(ground: Ground, hand: Hand, count: int = 5) -> list[Held]:
    """This many claimed tasks, each of another user."""
    return [ground.held(hand, "start_task") for _ in range(count)]


def five_wait(ground: Ground, _hand: Hand) -> list[UUID]:
    return [ground.order() for _ in range(5)]


def five_run(ground: Ground, hand: Hand) -> list[UUID]:
    return [held.id for held in claimed(ground, hand)]


def five_go_on(ground: Ground, hand: Hand) -> list[UUID]:
    """Five whose generation lives."""
    held = [ground.held(hand, "start_task", *STAGE[:2]) for _ in range(5)]
    for one in held:
        hand.about(one, "requeue")
    return [one.id for one in held]


def five_past_their_image(ground: Ground, hand: Hand) -> list[UUID]:
    held = [ground.held(hand, "start_task", *STAGE) for _ in range(5)]
    for one in held:
        hand.about(one, "requeue")
    return [one.id for one in held]


def five_are_to_be_cancelled(ground: Ground, hand: Hand) -> list[UUID]:
    ids = five_go_on(ground, hand)
    for task_id in ids:
        ground.sql("select public.cancel_video_generation_task(%s)", task_id)
    return ids


def claims(_: Ground, hand: Hand) -> list[Row]:
    return [{"id": held.id, "refused": None} for held in hand.claim()]


def hands_back(_: Ground, hand: Hand) -> list[Row]:
    return hand("hand_back", task_ids=None)


def takes_over(ground: Ground, hand: Hand) -> list[Row]:
    ground.silent(hand.worker_id)
    return ground.worker()("take_over")


def takes_over_for_the_last_time(ground: Ground, hand: Hand) -> list[Row]:
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect)"
        " select id, 2, true from public.video_generation_tasks"
        " on conflict (task_id) do update set crashes = 2, suspect = true"
    )
    return takes_over(ground, hand)


def cancels(_: Ground, hand: Hand) -> list[Row]:
    return hand("claim_cancelled")


def tries_the_gate(_: Ground, hand: Hand) -> list[Row]:
    hand("line_up")
    hand("close_gate", reason="PROVIDER_STORM")
    rows = []
    for _try in range(5):
        rows += hand("claim_trial", probes=0)
        hand.conn.execute("update vidgen.gates set trial = null")
    return rows


def five_films_wait(ground: Ground, _: Hand) -> list[UUID]:
    return [ground.film(ground.user()) for _ in range(5)]


def five_films_have_ended_parts(ground: Ground, hand: Hand) -> list[UUID]:
    films = [ground.held_film(hand, "order_parts", "wait_for_parts").id for _ in range(5)]
    for film in films:
        for part in ground.parts(film):
            ground.sql("select public.cancel_video_generation_task(%s)", part["id"])
    return films


def claims_films(_: Ground, hand: Hand) -> list[Row]:
    return [{"id": held.id, "refused": None} for held in hand.claim_films()]


def wakes_films(ground: Ground, hand: Hand) -> list[Row]:
    """And takes those that are due."""
    hand("wake_films")
    return claims_films(ground, hand)


Case = tuple[Callable[[Ground, Hand], list[UUID]], Callable[[Ground, Hand], list[Row]], str]

OF_SEVERAL: dict[str, Case] = {
    "claim": (five_wait, claims, "processing"),
    "resume": (five_go_on, claims, "processing"),
    "resume past the image": (five_past_their_image, claims, "processing"),
    "claim_cancelled": (five_are_to_be_cancelled, cancels, "processing"),
    "claim_trial": (five_wait, tries_the_gate, "processing"),
    "hand_back": (five_run, hands_back, "pending"),
    "take_over": (five_run, takes_over, "processing"),
    "claim_films": (five_films_wait, claims_films, "processing"),
    "wake_films": (five_films_have_ended_parts, wakes_films, "processing"),
    "take_over of the lost": (five_run, takes_over_for_the_last_time, "failed"),
}
OF_ONE = (
    "start_task", "begin_submission", "end_generation", "finish_stage", "complete", "requeue",
    "fail", "cancel", "set_aside", "wait_for_parts", "begin_rendering", "finish_rendition",
)  # fmt: skip
OF_ITS_OWN_TEST = ("report", "retry_refused", "try_rows", "order_parts")


def test_every_statement_that_writes_a_task_has_its_case() -> None:
    """A new statement without a case here fails this test."""
    several = {name.partition(" ")[0] for name in OF_SEVERAL}
    queries, _ = doers(WRITES_A_TASK)
    assert queries == several | set(OF_ONE) | set(OF_ITS_OWN_TEST)


def test_a_part_that_refuses_its_retry_takes_back_the_whole_order(ground: Ground) -> None:
    """All parts or none: the film is set aside, and orders them when the row takes the change."""
    hand = ground.worker()
    film = ground.held_film(hand, "order_parts", "wait_for_parts", parts=3)
    for held in hand.claim():
        hand.about(held, "fail")
    hand("wake_films")
    (film,) = hand.claim_films()
    hand.about(film, "fail")
    ground.sql("select vidgen.retry_task(%s)", film.id)
    (film,) = hand.claim_films()
    refuse(ground, ground.parts(film.id)[1]["id"])
    before = ground.dump()
    with pytest.raises(psycopg.Error, match="notifications_user_id_fkey"):
        hand.about(film, "order_parts")
    assert ground.dump() == before
    let_go(ground)
    assert hand.about(film, "order_parts")[0]["refused"] is None
    assert {part["status"] for part in ground.parts(film.id)} == {"pending"}


def test_rows_are_tried_to_their_end_and_all_of_it_is_undone(ground: Ground) -> None:
    """Of up to three users of whom none is set aside; the answer is what one of them refuses."""
    hand = ground.worker()
    aside = ground.held(hand)
    refuse(ground, aside.id, when="new.status = 'processing'")
    hand.about(aside, "set_aside")
    tasks = [ground.order() for _ in range(4)]
    hand("line_up")
    before = ground.dump(without=["public.refused_tasks"])
    (found,) = hand("try_rows")
    assert (found["tried"], found["taken"], found["refused"]) == (3, 3, None)
    assert found["refusing"] == 1
    refuse(ground, *tasks, when="new.status = 'completed'")
    (found,) = hand("try_rows")
    assert (found["tried"], found["taken"]) == (3, 0)
    assert found["refused"] == "23503 notifications_user_id_fkey"
    with ground.hand() as client, client.holding():
        client.conn.execute("select from public.video_generation_tasks for update")
        (found,) = hand("try_rows")
        assert (found["tried"], found["taken"], found["refused"]) == (0, 0, None), "nothing learned"
    assert ground.dump(without=["public.refused_tasks"]) == before


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("name", OF_SEVERAL)
def test_a_row_that_refuses_stops_only_itself(ground: Ground, name: str, place: int) -> None:
    prepare, act, status = OF_SEVERAL[name]
    hand = ground.worker()
    ids = prepare(ground, hand)
    bad = ids[place]
    before = ground.task(bad)["status"]
    refuse(ground, bad)
    rows = act(ground, hand)
    assert bad not in {row["id"] for row in rows or () if not row["refused"]}
    assert {ground.task(one)["status"] for one in ids if one != bad} == {status}
    assert ground.task(bad)["status"] == before
    refusal = ground.one("select * from vidgen.refusals")
    assert refusal["task_id"] == bad
    assert "notifications_user_id_fkey" in refusal["error"]
    assert ground.books_balance()


@pytest.mark.parametrize("state", ["P0004", "57014", "40P01", "XX000"])
@pytest.mark.parametrize("name", OF_SEVERAL)
def test_a_row_refuses_with_any_error(ground: Ground, name: str, state: str) -> None:
    """An ASSERT of the application's, a statement that is cancelled: OTHERS knows neither."""
    prepare, act, status = OF_SEVERAL[name]
    hand = ground.worker()
    bad, *good = prepare(ground, hand)
    ground.sql(
        "create function public.application_raises() returns trigger language plpgsql as"
        f" $$ begin raise exception 'no' using errcode = '{state}'; end $$"
    )
    ground.sql(
        "create trigger application_raises after update on public.video_generation_tasks"
        f" for each row when (new.id = '{bad}') execute function public.application_raises()"
    )
    act(ground, hand)
    assert {ground.task(one)["status"] for one in good} == {status}
    assert ground.one("select error from vidgen.refusals")["error"].startswith(state)


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_a_row_that_refused_is_left_alone_and_then_tried_again(ground: Ground, name: str) -> None:
    prepare, act, status = OF_SEVERAL[name]
    hand = ground.worker()
    bad, *_ = ids = prepare(ground, hand)
    refuse(ground, bad)
    act(ground, hand)
    if act is not hands_back:  # a drain has no time for pauses
        act(ground, hand)
        assert ground.one("select tries from vidgen.refusals")["tries"] == 1, "no pause"
    let_go(ground)
    ground.sql("update vidgen.refusals set until = now()")
    ground.sql("update vidgen.resumes set resume_at = now() where task_id = %s", bad)
    hand("retry_refused")
    act(ground, hand)
    assert {ground.task(one)["status"] for one in ids} == {status}


def test_a_row_that_a_client_holds_keeps_no_other_from_being_handed_back(ground: Ground) -> None:
    """A drain waits for no lock: the take-over does the rest."""
    hand, other, client = ground.worker(), ground.worker(), ground.hand()
    ids = five_run(ground, hand)
    with client.holding():
        client.conn.execute(
            "select from public.video_generation_tasks where id = %s for update", [ids[0]]
        )
        back = hand("hand_back", task_ids=None)
        hand("leave")
    assert {row["id"] for row in back} == set(ids[1:])
    # Its row says so: the task is taken over at once, and no death is counted.
    taken = other("take_over", steady=False)
    assert [(row["kind"], row["id"]) for row in taken] == [("taken", ids[0])]
    assert ground.one("select crashes from vidgen.budgets")["crashes"] == 0


def test_rows_whose_trigger_is_slow_cost_a_claim_two_seconds(ground: Ground) -> None:
    """The rest of them is left to the next claim, and so is everybody else's turn."""
    hand, user = ground.worker(), ground.user()
    slow = ground.scene(user)
    ground.sql(
        "create function public.application_sleeps() returns trigger language plpgsql as $$"
        " begin if new.status = 'processing' and old.status = 'pending' and new.user_id ="
        f" '{user}' then perform pg_sleep(1.2); end if; return null; end $$"
    )
    ground.sql(
        "create trigger application_sleeps after update on public.video_generation_tasks"
        " for each row execute function public.application_sleeps()"
    )
    ground.sql(
        "insert into public.video_generation_tasks (user_id, scene_id)"
        " select %s, %s from generate_series(1, 6)", user, slow,
    )  # fmt: skip
    assert 1 <= len(hand.claim()) <= 3
    other = ground.order()
    assert other in [held.id for held in hand.claim()], "his turn is over for now"


def test_slow_rows_of_which_one_refuses_all_begin(
    ground: Ground,
) -> None:
    """An application's CHECK: nothing says beforehand that it takes long, or refuses."""
    hand, tasks = ground.worker(), [ground.order() for _ in range(3)]
    ground.sql("create sequence public.asked")
    ground.sql(
        "create function public.application_allows(id uuid) returns boolean language plpgsql"
        " security definer as $$"
        " begin if nextval('public.asked') = 1 then perform pg_sleep(2.1); end if;"
        f" return id <> '{tasks[2]}'; end $$"
    )
    ground.sql(
        "alter table public.video_generation_tasks add constraint application_allows"
        " check (status <> 'processing' or public.application_allows(id))"
    )
    assert {held.id for held in hand.claim()} == set(tasks[:2])
    assert [row["task_id"] for row in ground.sql("select task_id from vidgen.refusals")] == tasks[
        2:
    ]


def test_a_claim_that_can_not_record_a_refusal_begins_nothing_and_the_next_begins_each_task_once(
    ground: Ground,
) -> None:
    hand, tasks = ground.worker(), [ground.order() for _ in range(3)]
    refuse(ground, tasks[1], when="new.status = 'processing'")
    ground.sql("create sequence public.noted")
    ground.sql(
        "create function public.note_fails_once() returns trigger language plpgsql"
        " security definer as $$"
        " begin if nextval('public.noted') = 1 then raise lock_not_available; end if;"
        " return new; end $$"
    )
    ground.sql(
        "create trigger note_fails_once before insert on vidgen.refusals"
        " for each row execute function public.note_fails_once()"
    )
    with pytest.raises(psycopg.errors.LockNotAvailable):
        hand.claim()
    assert ground.none("select from public.video_generation_tasks where status <> 'pending'")
    assert sorted(held.id for held in hand.claim()) == sorted([tasks[0], tasks[2]])


def test_a_row_that_does_not_change_keeps_no_slot(ground: Ground) -> None:
    """Set aside while its row refuses to leave: another task finds the slot."""
    hand = ground.worker()
    hand("set_limit", model="gen4_image", max_generations=1)
    held = ground.held(hand, "start_task")
    refuse(ground, held.id, when="old.status = 'processing'")
    hand.about(held, "set_aside")
    assert ground.task(held.id)["status"] == "processing"
    ground.sql("update vidgen.slots set taken_at = now() - interval '2 minutes'")
    other = ground.order()
    assert hand.claim() == []
    hand("free_slots")
    assert [one.id for one in hand.claim()] == [other]


def test_a_trial_goes_past_a_row_that_refuses(ground: Ground) -> None:
    hand = ground.worker()
    bad = ground.order(due=timedelta(hours=-1))
    hand("line_up")
    hand("close_gate", reason="PROVIDER_STORM")
    refuse(ground, bad)
    (row,) = hand("claim_trial", probes=0)
    assert (row["id"], row["refused"]) == (bad, "23503 notifications_user_id_fkey")
    good = ground.order()
    hand("line_up")
    ground.sql("delete from vidgen.resumes")
    (row,) = hand("claim_trial", probes=0)
    assert (row["id"], row["refused"]) == (good, None)


def test_a_trial_goes_past_a_user_who_can_not_pay(ground: Ground) -> None:
    """His tasks end before anything is sent: each would use up a probe."""
    hand = ground.worker()
    ground.orders(ground.user(0), 100)
    good = ground.order()
    hand("line_up")
    hand("close_gate", reason="PROVIDER_STORM")
    (row,) = hand("claim_trial", probes=0)
    assert row["id"] == good


def test_a_pause_grows_and_a_task_ends_as_refused(ground: Ground) -> None:
    hand = ground.worker()
    bad, good = ground.order(), ground.order()
    refuse(ground, bad, when="new.status = 'processing'")
    pauses = []
    for _ in range(8):
        hand.claim()
        row = ground.one(
            "select extract(epoch from until - now())::float as s from vidgen.refusals"
        )
        pauses.append(row["s"])
        ground.sql("update vidgen.refusals set until = now()")
        became = [one["became"] for one in hand("retry_refused")]
    assert pauses == pytest.approx([5, 10, 20, 40, 80, 160, 320, 600], abs=2)
    assert became == ["failed"]
    row = ground.task(bad)
    assert (row["status"], row["error_code"]) == ("failed", "ROW_REFUSED")
    assert ground.task(good)["status"] == "processing"


def test_a_row_that_accepts_no_change_is_tried_once_an_hour(ground: Ground) -> None:
    hand = ground.worker()
    bad = ground.order()
    refuse(ground, bad)
    hand.claim()
    ground.sql("update vidgen.refusals set tries = 8, until = now()")
    assert [row["became"] for row in hand("retry_refused")] == ["kept"]
    row = ground.one(
        "select tries, until - now() > interval '59 minutes' as long from vidgen.refusals"
    )
    assert (row["tries"], row["long"]) == (9, True)
    assert ground.task(bad)["status"] == "pending"
    let_go(ground)
    ground.sql("update vidgen.refusals set until = now()")
    assert [row["became"] for row in hand("retry_refused")] == ["failed"]


def test_a_retried_task_begins_with_new_budgets(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    refuse(ground, held.id)
    hand.about(held, "set_aside")
    let_go(ground)
    hand.about(held, "fail", code="ROW_REFUSED")
    ground.sql("select public.retry_video_generation_task(%s)", held.id)
    assert ground.none("select from vidgen.refusals")


# A whole worker, real HTTP: one user's row refuses at some moment, four other users' tasks go on.

MOMENTS = {
    "the claim": ("new.status = 'processing'", "", "ROW_REFUSED", 0),
    "its first milestone": ("new.progress >= 15", "", "ROW_REFUSED", 0),
    "the submission": ("new.progress >= 35", "", "ROW_REFUSED", 0),
    "the output": ("new.progress >= 40", "", "ROW_REFUSED", 1),
    "the still": ("new.image_path is not null", "", "ROW_REFUSED", 1),
    "the clip": ("new.video_path is not null", "", "ROW_REFUSED", 2),
    "completed": ("new.status = 'completed'", "", "ROW_REFUSED", 2),
    "pending": ("new.status = 'pending'", "[[fail INTERNAL x1]]", "ROW_REFUSED", 1),
    "failed": ("new.status = 'failed'", "[[fail SAFETY.INPUT.TEXT]]", None, 1),
}
"""By moment: the trigger's condition, a prompt word, how it ends, the most generations."""


@pytest.mark.parametrize("moment", MOMENTS)
async def test_one_user_s_row_refuses_and_the_others_go_on(world: World, moment: str) -> None:
    condition, words, ends, most = MOMENTS[moment]
    watch(world)
    world.sql("update vidgen.settings set max_refusals = 3, refusal_pause = '50 milliseconds'")
    users = [world.user() for _ in range(5)]
    scenes = [world.scene(user) for user in users]
    world.sql(
        "update video_scenes set image_prompt = %s || image_prompt where id = %s", words, scenes[0]
    )
    bad, *good = [world.order(*pair) for pair in zip(users, scenes, strict=True)]
    refuse_one(world, bad, condition)
    with recorded() as heard:
        async with world.worker():
            for task in good:
                assert (await world.until(task))["status"] == "completed"
            if ends is not None:
                row = await world.until(bad)
                assert (row["status"], row["error_code"]) == ("failed", ends)
            else:
                await until_true(
                    world, "select exists (select from vidgen.refusals where tries > 3)"
                )
    assert not [e for e in heard if isinstance(e, events.WorkerDeclaredDead | events.LoopFailed)]
    refused = [e for e in heard if isinstance(e, events.RowRefused)]
    assert {event.task for event in refused} == {str(bad)}
    paid = world.sql("select stage from vidgen.submissions where task_id = %s", bad)
    assert len(paid) <= most
    if ends is not None:
        assert world.credits(users[0])[1] == 0, "a hold stayed"
    assert world.books_balance()


async def test_a_verdict_survives_the_death_of_the_worker_that_reached_it(world: World) -> None:
    """Between the provider's answer and the task's end: the next worker pays for nothing."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]] again"))
    refuse_one(world, task, "new.status = 'failed'")
    async with world.worker():
        await until_true(world, "select exists (select from vidgen.refusals)")
    # The state after kill -9 just before `fail`: only the checkpoint is known.
    world.sql("delete from vidgen.refusals")
    world.sql("drop trigger application_refuses on public.video_generation_tasks")
    world.sql("update video_generation_tasks set run_after = now() where status = 'pending'")
    async with world.worker():
        row = await world.until(task)
    assert row["error_code"] == "CONTENT_REJECTED"
    assert len(world.runway.requests()) == 1


async def test_progress_that_one_row_refuses_is_shown_by_the_others(world: World) -> None:
    watch(world)
    users = [world.user() for _ in range(3)]
    tasks = [world.order(u, world.scene(u, image_prompt=f"[[slow 4s]] {u}")) for u in users]
    refuse_one(world, tasks[0], "new.stage_progress > old.stage_progress")
    with recorded() as heard:
        async with world.worker():
            await until_true(
                world,
                "select count(*) = 2 from video_generation_tasks where stage_progress > 0"
                " and id = any (%s)", tasks[1:],
            )  # fmt: skip
    reports = [e for e in heard if isinstance(e, events.RowRefused) and e.statement == "report"]
    assert [event.task for event in reports] == [str(tasks[0])], "said once, not once a second"


def test_why_a_task_is_set_aside_is_shown(ground: Ground, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    hand = ground.worker()
    bad = ground.order()
    refuse(ground, bad)
    hand.claim()
    monkeypatch.setenv("DATABASE_URL", ground.database.url)
    for command in (["tasks", "show", str(bad)], ["stats"]):
        app(command, standalone_mode=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "its row refuses a change (claim, 1 time(s)). 23503 notifications_user_id_fkey" in said
    assert "set aside 1: their rows refuse a change" in said


# A trigger that keeps a row as it is, without an error; a rule that speaks at COMMIT.


def keeps(ground: Ground, user: UUID, answer: str) -> None:
    """Let each change of this user's tasks be undone by the row's own trigger."""
    ground.sql(
        "create function public.frozen() returns trigger language plpgsql as"
        f" $$ begin if old.user_id = '{user}' then return {answer}; end if; return new; end $$;"
        " create trigger a_frozen before update on public.video_generation_tasks"
        " for each row execute function public.frozen()"
    )


def deferred(ground: Ground, user: UUID) -> None:
    """Let a rule that is looked at by COMMIT refuse each change of this user's tasks."""
    ground.sql(
        "create function public.later() returns trigger language plpgsql as"
        f" $$ begin if new.user_id = '{user}' then raise exception 'not this one'; end if;"
        " return null; end $$;"
        " create constraint trigger later after update on public.video_generation_tasks"
        " deferrable initially deferred for each row execute function public.later()"
    )


KEPT: dict[str, Callable[[Ground, UUID], None]] = {
    "old": lambda ground, user: keeps(ground, user, "old"),
    "null": lambda ground, user: keeps(ground, user, "null"),
    "deferred": deferred,
}


def new(ground: Ground, _hand: Hand, user: UUID) -> None:
    ground.order(user)


def past_its_image(ground: Ground, hand: Hand, user: UUID) -> None:
    hand.about(ground.held(hand, "start_task", *STAGE, user_id=user), "requeue")


def suspected(ground: Ground, _hand: Hand, user: UUID) -> None:
    task = ground.order(user)
    ground.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("waits", [new, past_its_image, suspected])
def test_a_row_that_does_not_accept_its_change_keeps_no_slot(
    ground: Ground, waits: Callable[[Ground, Hand, UUID], None], how: str
) -> None:
    hand, user = ground.worker(), ground.user()
    for model in ("gen4_image", "gen4_turbo"):
        hand("set_limit", model=model, max_generations=1)
    waits(ground, hand, user)
    KEPT[how](ground, user)
    assert hand.claim() == []
    other = ground.order(ground.user())
    begun = [held.id for _ in range(3) for held in hand.claim()]
    assert begun == [other]
    noted = ground.one(
        "select t.user_id from vidgen.refusals as r"
        "  join public.video_generation_tasks as t on t.id = r.task_id"
    )
    assert noted["user_id"] == user


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("statement", ["take_over", "hand_back"])
def test_a_row_that_does_not_accept_its_change_stays_with_its_worker(
    ground: Ground, statement: str, how: str
) -> None:
    hand, user = ground.worker(), ground.user()
    kept, other = ground.held(hand, "start_task", user_id=user), ground.held(hand, "start_task")
    KEPT[how](ground, user)
    if statement == "take_over":
        ground.silent(hand.worker_id)
        rows = ground.worker()("take_over")
        assert [row["id"] for row in rows if row["kind"] == "taken"] == [other.id]
    else:
        rows = hand("hand_back", task_ids=None)
        assert [row["id"] for row in rows if not row["refused"]] == [other.id]
    assert ground.task(kept.id)["worker_id"] == hand.worker_id
    assert ground.one("select task_id from vidgen.refusals")["task_id"] == kept.id


async def test_a_deferred_constraint_stops_only_its_own_task(world: World) -> None:
    """An application's notifications have deferred keys (Django's all are)."""
    bad, good = world.user(), world.user()
    with world.ground() as ground:
        deferred(ground, bad)
    watch(world)
    task = world.order(bad, world.scene(bad))
    with recorded() as heard:
        async with world.worker():
            orders = [world.order(good, world.scene(good)) for _ in range(3)]
            for order in orders:
                assert (await world.until(order))["status"] == "completed"
            await until_true(world, "select exists (select from vidgen.refusals)")
    assert world.task(task)["status"] == "pending"
    assert not [event for event in heard if isinstance(event, events.DatabaseTrouble)]
    assert "not this one" in world.sql("select error from vidgen.refusals")[0]["error"]


@pytest.mark.parametrize("how", ["old", "null"])
@pytest.mark.parametrize(
    "statement", ["complete", "fail", "cancel", "requeue", "finish_stage", "wait_for_parts"]
)
def test_a_statement_whose_row_does_not_change_writes_nothing(
    ground: Ground, statement: str, how: str
) -> None:
    """Otherwise a stage would be charged whose file its owner can't read, and an end repeated."""
    hand = ground.worker()
    held = ground.prepared(hand, statement)
    KEPT[how](ground, ground.task(held.id)["user_id"])
    before = ground.dump()
    with pytest.raises(psycopg.Error, match="stays as it is") as refused:
        hand.about(held, statement)
    assert refused.value.sqlstate == "VG006"
    assert ground.dump() == before
