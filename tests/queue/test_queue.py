"""The queue: who is claimed when, whose word counts, and what becomes of the dead's tasks."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.support.clients import acting
from tests.support.hands import FENCED, READS, STAGE, UNFENCED_FACTS, Ground, Hand, Held, refuse
from vidgen_worker.queue.films import Lane

MINUTE = timedelta(minutes=1)

HELD_UP_AT_THE_GATES = """
create function public.wait_for_the_test() returns boolean language plpgsql stable as $$
begin
  perform pg_advisory_xact_lock_shared(42);
  return true;
end $$;
alter table vidgen.gates rename to gates_behind;
create view vidgen.gates with (security_barrier) as
  select * from vidgen.gates_behind where public.wait_for_the_test();
grant all on vidgen.gates to postgres;
"""


def claimed(ground: Ground, hand: Hand) -> list[UUID]:
    """Claim one task at a time until nothing is left."""
    order = []
    while taken := hand.claim(slots=1):
        order.append(taken[0].id)
        ground.sql(
            "update public.video_generation_tasks set status = 'cancelled', completed_at = now(),"
            " worker_id = null where id = %s",
            taken[0].id,
        )
    return order


# Order.


def test_a_user_s_tasks_come_by_priority_then_due_time_then_age(ground: Ground) -> None:
    user = ground.user()
    worker = ground.worker()
    newest = ground.order(user)
    urgent = ground.order(user, priority=10)
    patient = ground.order(user, priority=-10, due=-60 * MINUTE)
    older = ground.order(user, due=-10 * MINUTE)
    oldest = ground.order(user, due=-20 * MINUTE)
    twin = ground.order(user, due=-10 * MINUTE)
    ground.sql(
        "update public.video_generation_tasks set run_after = now() - interval '10 minutes'"
        " where id = any(%s)",
        [older, twin],
    )

    assert claimed(ground, worker) == [urgent, oldest, older, twin, newest, patient]


def test_a_task_for_later_is_not_taken_until_it_is_due(ground: Ground) -> None:
    user = ground.user()
    worker = ground.worker()
    later = ground.order(user, due=60 * MINUTE)
    assert worker.claim() == []
    assert ground.one("select due_at > now() as later from vidgen.turns")["later"]

    ground.sql("update public.video_generation_tasks set run_after = now() where id = %s", later)
    assert [held.id for held in worker.claim()] == [later]


def test_a_user_with_tasks_for_later_comes_back_into_the_line_by_the_clock(ground: Ground) -> None:
    user = ground.user()
    worker = ground.worker()
    now, later = ground.order(user), ground.order(user, due=60 * MINUTE)
    assert [held.id for held in worker.claim()] == [now]

    # An hour goes by: the row is due, and no trigger says so.
    ground.sql("alter table public.video_generation_tasks disable trigger user")
    ground.sql("update public.video_generation_tasks set run_after = now() where id = %s", later)
    ground.sql("alter table public.video_generation_tasks enable trigger user")
    assert worker("claim") == []
    ground.sql("update vidgen.turns set due_at = now() where user_id = %s", user)
    assert [held.id for held in worker.claim()] == [later]


def test_users_take_turns_however_many_rows_each_has(ground: Ground) -> None:
    many, one = ground.user(), ground.user()
    worker = ground.worker()
    ground.orders(many, 100)
    assert len(worker.claim(slots=1)) == 1
    single = ground.order(one)

    assert single in [held.id for held in worker.claim(slots=1) + worker.claim(slots=1)]


def test_slots_are_shared_among_the_users_in_the_line(ground: Ground) -> None:
    users = [ground.user() for _ in range(4)]
    worker = ground.worker()
    for user in users:
        ground.orders(user, 50)

    taken = [ground.task(held.id)["user_id"] for held in worker.claim(slots=8)]
    assert sorted(taken) == sorted(users * 2)


def test_free_slots_are_never_kept_from_the_only_one_who_waits(ground: Ground) -> None:
    worker = ground.worker()
    ground.orders(ground.user(), 30)
    ground.order(ground.user())

    first = worker.claim(slots=20)
    second = worker.claim(slots=20)
    assert len(first) == 11, "a share of ten each, of which one user has use for one"
    assert len(second) == 20, "nobody else is in the line"


def test_a_claim_says_whether_somebody_still_waits(ground: Ground) -> None:
    worker = ground.worker()
    ground.orders(ground.user(), 3)
    worker("line_up")
    assert {row["more"] for row in worker("claim", slots=2)} == {True}
    assert {row["more"] for row in worker("claim", slots=2)} == {False}
    assert worker.still_waiting() == {"resumable": False, "waiting": False}


def test_a_user_at_the_limit_of_running_tasks_waits_and_comes_back(ground: Ground) -> None:
    capped, other = ground.user(), ground.user()
    worker = ground.worker()
    ground.orders(capped, 5)
    assert len(worker.claim(max_running_per_user=2)) == 2
    assert worker.claim(max_running_per_user=2) == []
    task = ground.order(other)
    assert [held.id for held in worker.claim(slots=1, max_running_per_user=2)] == [task]

    ground.sql("update vidgen.turns set due_at = now() where user_id = %s", capped)
    assert len(worker.claim(max_running_per_user=4)) == 2


def test_a_row_that_a_client_holds_is_skipped_and_taken_afterwards(ground: Ground) -> None:
    user = ground.user()
    worker, client = ground.worker(), ground.hand()
    first, second = ground.order(user, priority=1), ground.order(user)
    with client.holding():
        client.conn.execute(
            "select 1 from public.video_generation_tasks where id = %s for update", [first]
        )
        assert [held.id for held in worker.claim()] == [second]
    assert [held.id for held in worker.claim()] == [first]


def test_a_row_that_a_client_has_locked_delays_no_other(ground: Ground) -> None:
    """With one free slot, the user whose row is held must not stand in the way of the next."""
    worker, client = ground.worker(), ground.hand()
    held_up = ground.order()
    worker("line_up")
    other = ground.order()
    with client.holding():
        client.conn.execute(
            "select 1 from public.video_generation_tasks where id = %s for update", [held_up]
        )
        taken = worker.claim(slots=1) + worker.claim(slots=1)
        assert [held.id for held in taken] == [other]
    assert [held.id for held in worker.claim(slots=1)] == [held_up]


def test_a_suspect_delays_no_other_user(ground: Ground) -> None:
    worker = ground.worker()
    poison = ground.order()
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", poison
    )
    worker("line_up")
    other = ground.order()

    taken = worker.claim(slots=1, idle=False) + worker.claim(slots=1, idle=False)
    assert [held.id for held in taken] == [other]
    assert [held.id for held in worker.claim(slots=1, idle=True)] == [poison]


def test_suspects_delay_no_other_task_of_their_user(ground: Ground) -> None:
    """A busy worker with one place: they are for an idle one, the next task is for it."""
    hand, user = ground.worker(), ground.user()
    ground.orders(user, 2)
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect)"
        " select id, 2, true from video_generation_tasks"
    )
    plain = ground.order(user)
    assert [one.id for one in hand.claim(slots=1, idle=False)] == [plain]
    assert hand.claim(slots=1, idle=False) == []
    assert hand.claim(slots=1)[0].id != plain, "out of the line, it goes on alone"


def test_a_suspect_of_a_paused_user_empties_no_worker(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    task = ground.order(user)
    ground.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)
    pause = "update vidgen.user_limits set paused_until = now() + %s"
    ground.sql(pause, timedelta(hours=1))
    assert hand("take_over", idle=False) == []
    ground.sql(pause, timedelta(0))
    assert [row["kind"] for row in hand("take_over", idle=False)] == ["suspect waits"]


def test_a_task_cancelled_while_it_is_set_aside_counts_for_no_cap(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    task = ground.order(user)
    refuse(ground, task, when="new.status = 'processing'")
    assert hand.claim() == []
    with acting(ground, "authenticated", user) as conn:
        conn.execute("select public.cancel_video_generation_task(%s)", [task])
    assert ground.none("select from vidgen.resumes")
    other = ground.order(user)
    assert [one.id for one in hand.claim(max_running_per_user=1)] == [other]


def test_the_line_is_kept_where_slots_run_out_before_a_user_s_turn(ground: Ground) -> None:
    """A resumed task used the slot up: the user first in the line stays first."""
    worker = ground.worker()
    resumed = ground.held(worker, "start_task", "begin_submission", "answer_submission")
    worker.about(resumed, "requeue")
    first = ground.order()
    worker("line_up")
    ground.order()
    worker("line_up")
    other = ground.order()
    worker("line_up")
    ground.sql("update vidgen.resumes set resume_at = now()")

    assert {held.id for held in worker.claim(slots=1)} == {resumed.id}
    assert {held.id for held in worker.claim(slots=1)} == {first}
    assert other not in {held.id for held in worker.claim(slots=1)}


# Resumes.


def test_tasks_with_a_generation_go_first_then_those_with_an_image(
    ground: Ground,
) -> None:
    worker = ground.worker()
    user = ground.user()
    new = ground.order(user, priority=10)
    stills = [ground.order(), ground.order()]
    alive = ground.order()
    for held in worker.claim():
        if held.id == new:
            worker.about(held, "requeue")
        elif held.id == alive:
            worker.walk(held, "start_task", "begin_submission", "answer_submission")
            worker.about(held, "requeue")
        else:
            worker.walk(held, "start_task", *STAGE)
            worker.about(held, "requeue")

    order = claimed(ground, worker)
    assert order[0] == alive
    assert set(order[1:3]) == set(stills)
    assert order[3] == new


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((), []),
        (("begin_submission",), [None]),
        (STAGE[:2], [None]),
        (STAGE[:3], [None]),
        (STAGE, ["video"]),
    ],
)
def test_the_stage_of_a_resume_is_its_next_submission(
    ground: Ground, steps: tuple[str, ...], expected: list[str | None]
) -> None:
    worker = ground.worker()
    held = ground.held(worker, "start_task", *steps)
    worker.about(held, "requeue")
    rows = ground.sql("select stage from vidgen.resumes where task_id = %s", held.id)
    assert [row["stage"] for row in rows] == expected
    (again,) = worker.claim()
    assert (again.id, again.attempt) == (held.id, 2)
    assert ground.none("select from vidgen.resumes")


@pytest.mark.parametrize(("clip", "expected"), [((), "video"), (STAGE[:2], None), (STAGE, None)])
def test_a_stage_that_the_claim_reserves_no_slot_for_goes_on_without_one(
    ground: Ground, clip: tuple[str, ...], expected: str | None
) -> None:
    ground.sql("insert into vidgen.stages (name, place, action) values ('poster', 3, 'poster')")
    ground.sql("insert into public.credit_prices values ('poster', 0)")
    worker = ground.worker()
    held = ground.held(worker, "start_task", *STAGE)
    worker.walk(Held(held.id, held.attempt, held.worker_id), *clip, stage="video")
    worker.about(held, "requeue")
    assert ground.one("select stage from vidgen.resumes")["stage"] == expected
    assert [again.id for again in worker.claim()] == [held.id]


def test_a_refused_submission_leaves_nothing_to_resume(ground: Ground) -> None:
    worker = ground.worker()
    held = ground.held(worker, "start_task", "begin_submission")
    worker.about(held, "answer_submission", answer="refused", generation_id=None)
    worker.about(held, "requeue")
    assert ground.none("select from vidgen.resumes")
    assert [again.id for again in worker.claim()] == [held.id]


# Gates.


def test_a_closed_gate_stops_new_work_and_lets_live_generations_through(ground: Ground) -> None:
    worker = ground.worker()
    alive = ground.held(worker, "start_task", "begin_submission", "answer_submission")
    still = ground.held(worker, "start_task", *STAGE)
    worker.about(alive, "requeue")
    worker.about(still, "requeue")
    new = ground.order()
    for model in ("gen4_image", "gen4_turbo"):
        worker("close_gate", model=model)

    assert [held.id for held in worker.claim()] == [alive.id]
    worker("open_gate", model="gen4_turbo")
    assert [held.id for held in worker.claim()] == [still.id], "its image is paid already"
    worker("open_gate", model="gen4_image")
    assert [held.id for held in worker.claim()] == [new]


SCOPES = ["*", "default", "key:key", "storage:store", "machine:here"]
SCOPES_OF_ANOTHER = ["*", "default", "key:another", "storage:other", "machine:there"]


@pytest.mark.parametrize("scope", ["key:key", "storage:store", "machine:here"])
def test_a_gate_closes_only_for_the_workers_that_it_concerns(ground: Ground, scope: str) -> None:
    closed, other = ground.worker(scopes=SCOPES), ground.worker(scopes=SCOPES_OF_ANOTHER)
    closed("close_gate", scope=scope, model="*")
    task = ground.order()
    assert closed.claim(scopes=SCOPES) == []
    assert [held.id for held in other.claim(scopes=SCOPES_OF_ANOTHER)] == [task]


@pytest.mark.parametrize("scope", ["default", "*"])
def test_a_gate_of_the_account_closes_for_all_its_keys(ground: Ground, scope: str) -> None:
    one, other = ground.worker(scopes=SCOPES), ground.worker(scopes=SCOPES_OF_ANOTHER)
    one("close_gate", scope=scope, model="*")
    ground.order()
    assert one.claim(scopes=SCOPES) == []
    assert other.claim(scopes=SCOPES_OF_ANOTHER) == []


def test_gates_of_machines_and_keys_that_have_gone_are_swept(ground: Ground) -> None:
    """No worker would probe them; gates of an account, a worker or the operator stay."""
    hand = ground.worker()
    for scope in ("machine:gone", "storage:gone", "key:gone", "key:key", "default", "other", "*"):
        hand("close_gate", scope=scope, model="*")
    hand("sweep_gates")
    assert len(ground.sql("select * from vidgen.gates")) == 7, "one may come back within an hour"
    ground.sql("update vidgen.gates set closed_at = now() - interval '2 hours'")
    hand("sweep_gates")
    left = ground.sql("select scope from vidgen.gates")
    assert {row["scope"] for row in left} == {"key:key", "default", "other", "*"}


# Accounts.

OF_ANOTHER: dict[str, Any] = {
    "account": "another", "key_fingerprint": "another", "scopes": ["*", "another", "key:another"],
}  # fmt: skip


def test_tasks_of_another_account_delay_no_one(ground: Ground) -> None:
    hand, stranger = ground.worker(), ground.worker(**OF_ANOTHER)
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue")
    new = ground.order()
    assert [one.id for one in stranger.claim(**OF_ANOTHER)] == [new]
    assert stranger.claim(**OF_ANOTHER) == []
    assert stranger.still_waiting(**OF_ANOTHER) == {"resumable": False, "waiting": False}
    assert [one.id for one in hand.claim()] == [held.id]


def test_a_suspect_of_another_account_is_left_to_it(ground: Ground) -> None:
    hand, stranger = ground.worker(), ground.worker(**OF_ANOTHER)
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    rows = stranger("take_over", idle=False, **OF_ANOTHER)
    assert [row["kind"] for row in rows] == [], "it could not take it: it stays at work"
    assert stranger.claim(**OF_ANOTHER) == []
    assert [row["kind"] for row in hand("take_over", idle=False)] == ["suspect waits"]


def test_lanes_have_lines_of_their_own(ground: Ground) -> None:
    """One user waits in both; what one lane has no place for keeps the other not waiting."""
    user, hand = ground.user(), ground.worker()
    tasks = {}
    for lane in (1, 2):
        tasks[lane] = uuid4()
        ground.sql(
            "insert into public.video_generation_tasks (id, user_id, scene_id, lane)"
            " values (%s, %s, %s, %s)", tasks[lane], user, ground.scene(user), lane,
        )  # fmt: skip
    hand("set_limit", model="gen4_image", max_generations=0)
    assert hand.claim() == []
    (other,) = hand.claim(lane=2, image_model="gen4_image_turbo", video_model="gen4.5")
    assert other.id == tasks[2]
    hand("set_limit", model="gen4_image", max_generations=None)
    assert [one.id for one in hand.claim()] == [tasks[1]]


def test_a_clip_resumes_in_its_own_lane_and_a_living_task_in_any(ground: Ground) -> None:
    hand = ground.worker()
    clip = ground.held(hand, "start_task", *STAGE)
    living = ground.held(hand, "start_task", *STAGE[:2])
    ground.sql("update public.video_generation_tasks set lane = 2")
    for held in (clip, living):
        hand.about(held, "requeue")
    assert [one.id for one in hand.claim()] == [living.id]
    assert hand.claim() == []
    assert [one.id for one in hand.claim(lane=2)] == [clip.id]


def test_a_dead_worker_s_task_of_another_account_returns_for_its_own_workers(
    ground: Ground,
) -> None:
    """A task without a living generation is taken over as usual."""
    dead, stranger = ground.worker(), ground.worker(**OF_ANOTHER)
    alive = ground.held(dead, "start_task", *STAGE[:2])
    bare = ground.held(dead, "start_task")
    ground.silent(dead.worker_id)
    taken = stranger("take_over", **OF_ANOTHER)
    assert [(row["kind"], row["id"]) for row in taken] == [("taken", bare.id)]
    assert ground.task(alive.id)["status"] == "pending"
    (waiting,) = ground.sql("select task_id, stage, followers from vidgen.resumes")
    assert waiting == {"task_id": alive.id, "stage": None, "followers": ["default", "key:key"]}


def test_a_submission_without_an_answer_belongs_to_its_account_too(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:1])
    hand.about(held, "requeue")
    assert ground.one("select followers from vidgen.resumes")["followers"] == ["default", "key:key"]
    hand.about(held, "answer_submission", answer="unknown")
    (again,) = hand.claim()
    hand.about(again, "requeue")
    assert ground.none("select from vidgen.resumes"), "nothing lives: anybody begins it anew"


def test_any_worker_may_conclude_a_stored_clip(ground: Ground) -> None:
    hand, stranger = ground.worker(), ground.worker(**OF_ANOTHER)
    held = ground.prepared(hand, "complete")
    hand.about(held, "requeue")
    assert [one.id for one in stranger.claim(**OF_ANOTHER)] == [held.id]


# The pauses that users are shown.


def shown_to_users(ground: Ground) -> list[tuple[str, str]]:
    rows = ground.sql("select model, reason from public.video_generation_gates order by model")
    return [(row["model"], row["reason"]) for row in rows]


def test_users_are_not_shown_a_gate_beside_which_others_work(ground: Ground) -> None:
    one = ground.worker(scopes=SCOPES)
    other = ground.worker(scopes=SCOPES_OF_ANOTHER)
    one("close_gate", scope="machine:here", model="*", reason="SCRATCH_UNAVAILABLE")
    assert shown_to_users(ground) == []
    other("close_gate", scope="key:another", model="*", reason="PROVIDER_DENIED")
    assert [model for model, _ in shown_to_users(ground)] == ["*"], "nobody works any more"
    one("open_gate", scope="machine:here", model="*")
    assert shown_to_users(ground) == []


@pytest.mark.parametrize("how", ["leaves", "dies"])
def test_users_are_shown_the_gate_when_the_last_working_worker_is_gone(
    ground: Ground, how: str
) -> None:
    one, other = ground.worker(scopes=SCOPES), ground.worker(scopes=SCOPES_OF_ANOTHER)
    one("close_gate", scope="key:key", model="*", reason="PROVIDER_DENIED")
    if how == "leaves":
        other("leave")
    else:
        ground.silent(other.worker_id)
        one("take_over", scopes=SCOPES)
    assert shown_to_users(ground) == [("*", "PROVIDER_DENIED")]
    ground.worker(scopes=SCOPES_OF_ANOTHER)
    assert shown_to_users(ground) == [], "somebody works again"


def test_a_worker_that_claims_nothing_keeps_no_gate_from_being_shown(ground: Ground) -> None:
    one = ground.worker(scopes=SCOPES)
    ground.worker(scopes=SCOPES_OF_ANOTHER, concurrency=0)
    one("close_gate", scope="key:key", model="*")
    assert [model for model, _ in shown_to_users(ground)] == ["*"]


def test_a_gate_of_all_models_counts_for_each(ground: Ground) -> None:
    """One can't make the still, the other nothing: no still is made."""
    one, other = ground.worker(scopes=SCOPES), ground.worker(scopes=SCOPES_OF_ANOTHER)
    one("close_gate", scope="key:key", model="gen4_image")
    other("close_gate", scope="machine:there", model="*")
    assert [model for model, _ in shown_to_users(ground)] == ["gen4_image"]


def test_two_gates_that_close_at_once_are_seen_by_the_second(ground: Ground) -> None:
    """Neither sees the other's row in its own snapshot: the second one waits and looks again."""
    one, other = ground.worker(scopes=SCOPES), ground.worker(scopes=SCOPES_OF_ANOTHER)
    with one.holding():
        one("close_gate", scope="key:key", model="*")
        late = other.later(lambda: other("close_gate", scope="key:another", model="*"))
        assert ground.waits(late)
    late.result()
    assert [model for model, _ in shown_to_users(ground)] == ["*"]


def test_an_operator_s_gate_closes_for_all_keys(ground: Ground) -> None:
    worker = ground.worker()
    worker("close_gate", model="*", scope="*")
    ground.order()
    assert worker.claim() == []
    assert ground.one("select * from public.video_generation_gates")["reason"] == (
        "PROVIDER_UNFUNDED"
    )
    worker("open_gate", model="*", scope="*")
    assert ground.sql("select * from public.video_generation_gates") == []
    assert len(worker.claim()) == 1


def test_a_gate_of_two_scopes_is_shown_until_the_last_one_opens(ground: Ground) -> None:
    worker = ground.worker()
    for scope in ("default", "key:key"):
        worker("close_gate", model="gen4_image", scope=scope)
    worker("open_gate", model="gen4_image", scope="default")
    assert len(ground.sql("select * from public.video_generation_gates")) == 1
    worker("open_gate", model="gen4_image", scope="key:key")
    assert ground.sql("select * from public.video_generation_gates") == []


def test_one_worker_probes_and_the_pause_to_the_next_probe_doubles(ground: Ground) -> None:
    one, two = ground.worker(), ground.worker()
    one("close_gate", model="gen4_image")
    assert one("take_probe") == []
    ground.sql("update vidgen.gates set probe_at = now()")
    with one.holding():
        assert len(one("take_probe")) == 1
        assert two("take_probe") == []
    assert two("take_probe") == []
    row = ground.one("select extract(epoch from probe_at - now()) as seconds from vidgen.gates")
    assert 55 < row["seconds"] <= 60


# Wake-ups.


def test_a_row_that_comes_in_while_its_user_is_claimed_is_not_forgotten(ground: Ground) -> None:
    """The race at `line`: an arrival after the claim's snapshot, before its lock on the turn.

    The claim must not send the user out of the line: it has not seen the new row.
    """
    user = ground.user()
    worker, other = ground.worker(), ground.worker()
    first = ground.order(user)
    other("line_up")
    # The claim looks at the gates when it has its snapshot and not yet the turn: it waits there.
    ground.sql(HELD_UP_AT_THE_GATES)
    with other.holding():
        other.conn.execute("select pg_advisory_xact_lock(42)")
        late = worker.later(lambda: worker("claim", slots=1))
        assert ground.waits(late)
        second = ground.order(user)
        with ground.hand() as third:
            third("line_up")
    taken = [row["id"] for row in late.result()]
    rest = [held.id for held in other.claim(slots=5)]
    assert sorted([*taken, *rest]) == sorted([first, second])


def test_line_up_waits_for_no_claim_and_leaves_its_user_s_mail(ground: Ground) -> None:
    """The other order: the claim has the turn and has not committed when another row comes."""
    user = ground.user()
    worker, other = ground.worker(), ground.worker()
    first = ground.order(user)
    other("line_up")
    with worker.holding():
        assert [held.id for held in worker.claim()] == [first]
        second, third = ground.order(user), ground.order()
        other.conn.execute("set lock_timeout = '150ms'")
        assert [held.id for held in other.claim()] == [third]
        assert other.claim() == []
        assert other.still_waiting() == {"resumable": False, "waiting": True}
    assert [held.id for held in other.claim()] == [second]


def test_a_claim_says_that_mail_is_left(ground: Ground) -> None:
    user = ground.user()
    worker, other = ground.worker(), ground.worker()
    ground.order(user)
    other("line_up")
    with worker.holding():
        assert len(worker.claim()) == 1
        ground.order(user)
        third = ground.order()
        other("line_up")
        assert [(row["id"], row["more"]) for row in other("claim")] == [(third, True)]


def test_a_mailbox_emptied_in_a_rolled_back_transaction_is_not_lost(ground: Ground) -> None:
    user = ground.user()
    worker, other = ground.worker(), ground.hand()
    task = ground.order(user)
    with other.conn.transaction(force_rollback=True):
        other("line_up")
        assert worker.claim() == []
        assert worker.still_waiting() == {"resumable": False, "waiting": True}
    assert [held.id for held in worker.claim()] == [task]


def test_an_insert_never_waits_for_the_line(ground: Ground) -> None:
    user = ground.user()
    worker, other = ground.worker(), ground.worker()
    ground.order(user)
    with worker.holding():
        assert len(worker.claim()) == 1
        with other.holding():
            other("line_up")
            later = ground.order(user)
    assert [held.id for held in worker.claim()] == [later]


def test_rows_inserted_in_a_transaction_are_found_when_it_commits(ground: Ground) -> None:
    worker, client = ground.worker(), ground.hand()
    user = ground.user()
    scene = ground.scene(user)
    with client.holding():
        client.conn.execute(
            "insert into public.video_generation_tasks (user_id, scene_id) values (%s, %s)",
            [user, scene],
        )
        assert worker.claim() == []
    assert len(worker.claim()) == 1


def test_two_claims_at_once_take_different_tasks(ground: Ground) -> None:
    workers = [ground.worker() for _ in range(3)]
    for _ in range(6):
        ground.order()
    workers[0]("line_up")
    taken: list[UUID] = []
    with workers[0].holding(), workers[1].holding(), workers[2].holding():
        for worker in workers:
            taken += [row["id"] for row in worker("claim", slots=2)]
    assert len(taken) == len(set(taken)) == 6


def test_one_notify_for_a_statement_and_none_for_later(ground: Ground) -> None:
    listener = ground.hand()
    listener.conn.execute("listen vidgen_tasks")
    user = ground.user()
    ground.orders(user, 50)
    ground.orders(user, 50, due=MINUTE)
    ground.sql("notify vidgen_tasks, 'end'")
    heard = []
    for notify in listener.conn.notifies(timeout=20):
        heard.append(notify.payload)
        if notify.payload == "end":
            break
    assert heard == ["", "end"]


# Fences.


def usurp(ground: Ground, how: str, held: Held, hand: Hand, other: Hand) -> None:
    """Take the task away from its worker, by one of the ways there are."""
    match how:
        case "hand-back":
            hand("hand_back", task_ids=None)
        case "takeover":
            ground.silent(hand.worker_id)
            other("take_over")
            assert ground.task(held.id)["worker_id"] in (other.worker_id, None)
        case "another attempt of its own":
            hand("hand_back", task_ids=None)
            row = ground.task(held.id)
            if row["cut"] is None:
                assert len(hand.claim()) == 1
            else:
                assert len(hand.claim_films(lane=Lane(row["lane"]))) == 1
        case "end":
            hand.about(held, "cancel")
        case "end by a hand that left the worker's name":
            ground.sql(
                "update public.video_generation_tasks"
                " set status = 'cancelled', completed_at = now() where id = %s",
                held.id,
            )
        case _:
            raise AssertionError(how)


WAYS = (
    "hand-back", "takeover", "another attempt of its own", "end",
    "end by a hand that left the worker's name",
)  # fmt: skip


@pytest.mark.parametrize("name", FENCED)
@pytest.mark.parametrize("how", WAYS)
def test_a_worker_that_lost_a_task_writes_nothing(ground: Ground, name: str, how: str) -> None:
    """A fenced write after hand-back, takeover, a new attempt or the end changes no table."""
    hand, other = ground.worker(), ground.worker()
    held = ground.prepared(hand, name)
    usurp(ground, how, held, hand, other)
    without = [UNFENCED_FACTS[name]] if name in UNFENCED_FACTS else []
    before = ground.dump(without=without)

    rows = hand.about(held, name)
    assert [row for row in rows if row.get("mine") is not False] == []
    assert ground.dump(without=without) == before


@pytest.mark.parametrize("name", FENCED)
@pytest.mark.parametrize("wrong", ["attempt", "worker_id", "task_id"])
def test_a_wrong_part_of_the_fence_writes_nothing(ground: Ground, name: str, wrong: str) -> None:
    hand = ground.worker()
    held = ground.prepared(hand, name)
    others = {"attempt": held.attempt + 1, "worker_id": uuid4(), "task_id": uuid4()}
    without = [UNFENCED_FACTS[name]] if name in UNFENCED_FACTS else []
    before = ground.dump(without=without)

    parameters = {wrong: others[wrong]}
    if name == "report" and wrong != "worker_id":
        parameters = {
            "task_ids": [others["task_id"] if wrong == "task_id" else held.id],
            "attempts": [others["attempt"] if wrong == "attempt" else held.attempt],
        }
    rows = hand.about(held, name, **parameters)
    assert [row for row in rows if row.get("mine") is not False] == []
    assert ground.dump(without=without) == before


@pytest.mark.parametrize("name", FENCED)
def test_each_fenced_query_has_an_effect_for_the_holder_of_the_task(
    ground: Ground, name: str
) -> None:
    """The tests above would pass on a query that never writes."""
    hand = ground.worker()
    held = ground.prepared(hand, name)
    before = ground.dump()
    rows = hand.about(held, name)
    if name != "report":
        assert len(rows) == 1
    if name not in READS:
        assert ground.dump() != before


# Heartbeats and takeover.


def test_a_heartbeat_says_lost_cancel_and_orphan(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    mine, lost, asked, orphan = (ground.held(hand) for _ in range(4))
    ground.sql(
        "update public.video_generation_tasks set cancel_requested_at = now() where id = %s",
        asked.id,
    )
    hand("hand_back", task_ids=[lost.id])
    assert len(other.claim()) == 1
    held = [mine, lost, asked]

    rows = hand(
        "heartbeat", task_ids=[h.id for h in held], attempts=[h.attempt for h in held], sweep=True
    )
    verdicts = {(row["kind"], row["task_id"]) for row in rows}
    assert verdicts == {
        ("alive", None), ("lost", lost.id), ("cancel", asked.id), ("orphan", orphan.id),
    }  # fmt: skip
    # The lease is one thing, the orphan another: its own statement gives it back.
    assert ground.task(orphan.id)["status"] == "processing"
    hand("hand_back", task_ids=[orphan.id], attempts=[orphan.attempt])
    assert [h.id for h in other.claim()] == [orphan.id]


def test_no_orphan_is_seen_while_a_claim_is_in_flight(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand)
    rows = hand("heartbeat", sweep=False)
    assert [row["kind"] for row in rows] == ["alive"]
    assert ground.task(held.id)["status"] == "processing"


def test_a_heartbeat_writes_one_row_however_many_tasks_are_held(ground: Ground) -> None:
    hand = ground.worker()
    ground.orders(ground.user(), 20)
    held = hand.claim()
    with ground.hand(hand.worker_id) as fresh, fresh.holding():
        fresh(
            "heartbeat", task_ids=[h.id for h in held], attempts=[h.attempt for h in held],
            running=20,
        )  # fmt: skip
        written = fresh.conn.execute(
            "select relname, n_tup_ins + n_tup_upd + n_tup_del as rows"
            "  from pg_stat_xact_user_tables where n_tup_ins + n_tup_upd + n_tup_del > 0"
        ).fetchall()
    assert written == [{"relname": "workers", "rows": 1}]


def test_a_worker_declared_dead_is_told_and_claims_nothing(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    ground.silent(hand.worker_id)
    other("take_over")
    task = ground.order()
    assert hand("heartbeat") == []
    assert hand.claim() == []
    assert hand("claim_cancelled") == []
    assert [held.id for held in other.claim()] == [task]


def test_a_worker_that_is_not_steady_declares_nobody_dead(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    ground.silent(hand.worker_id)
    assert other("take_over", steady=False) == []
    assert ground.task(held.id)["worker_id"] == hand.worker_id
    assert [row["id"] for row in other("take_over", steady=True)] == [held.id]


def test_a_worker_without_a_row_is_taken_over_too(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    ground.sql("delete from vidgen.workers where id = %s", hand.worker_id)
    assert other("take_over", steady=False) == []
    assert [row["id"] for row in other("take_over")] == [held.id]


def test_takeover_counts_a_death_and_goes_on_with_the_next_attempt(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    ground.silent(hand.worker_id)
    (row,) = other("take_over")
    assert (row["kind"], row["attempt"]) == ("taken", held.attempt + 1)
    assert ground.one("select crashes from vidgen.budgets")["crashes"] == 1
    assert ground.task(held.id)["failures"] == 0


def test_one_death_below_the_limit_only_an_idle_worker_takes_it(ground: Ground) -> None:
    hand, busy, idle = ground.worker(), ground.worker(), ground.worker()
    poison, fine = ground.held(hand), ground.held(hand)
    ground.sql("insert into vidgen.budgets (task_id, crashes) values (%s, 1)", poison.id)
    ground.silent(hand.worker_id)
    taken = [row for row in busy("take_over", idle=False) if row["kind"] == "taken"]
    assert [row["id"] for row in taken] == [fine.id]
    assert ground.task(poison.id)["status"] == "pending"
    assert busy.claim(idle=False) == []
    other = ground.order()
    assert [held.id for held in idle.claim(idle=True)] == [poison.id], "and nothing beside it"
    assert [held.id for held in busy.claim(idle=False)] == [other]


def test_the_last_death_ends_the_task_and_gives_the_credits_back(ground: Ground) -> None:
    user = ground.user(100)
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand, "start_task", user_id=user)
    assert ground.credits(user) == (100, 30)
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    ground.silent(hand.worker_id)

    (row,) = other("take_over")
    assert (row["kind"], row["id"], row["attempt"]) == ("lost", held.id, held.attempt)
    assert row["created_at"] is None, "it is no task that anybody begins"
    row = ground.task(held.id)
    assert (row["status"], row["error_code"], row["worker_id"]) == ("failed", "WORKER_LOST", None)
    assert row["error"]["code"] == "WORKER_LOST"
    assert ground.credits(user) == (100, 0)
    assert ground.books_balance()
    assert ground.one("select status from public.video_scenes")["status"] == "failed"


def test_a_checkpoint_that_advances_forgives_the_deaths_before_it(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2])
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    hand.walk(held, "end_generation")
    assert ground.one("select crashes from vidgen.budgets")["crashes"] == 0


@pytest.mark.parametrize("end", ["fail", "cancel", "requeue"])
def test_deaths_count_while_a_task_may_still_run(ground: Ground, end: str) -> None:
    """Otherwise each claim would read every task that ever had a death."""
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    ground.sql("insert into vidgen.budgets (task_id, crashes) values (%s, 1)", held.id)
    assert hand.about(held, end)
    assert ground.one("select crashes from vidgen.budgets")["crashes"] == (end == "requeue")


def test_only_a_worker_that_could_take_the_suspect_becomes_idle(ground: Ground) -> None:
    """The first of its key, wherever another key's stands; none behind a closed gate."""
    first, second = sorted((ground.worker(), ground.worker()), key=lambda hand: hand.worker_id)
    suspect = ground.order()
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", suspect
    )

    def asked(hand: Hand) -> bool:
        return any(row["kind"] == "suspect waits" for row in hand("take_over", idle=False))

    assert (asked(first), asked(second)) == (True, False)
    ground.sql(
        "update vidgen.workers set key_fingerprint = 'another' where id = %s", first.worker_id
    )
    assert asked(second)
    second("close_gate", model="gen4_image")
    assert not asked(second)


@pytest.mark.parametrize("model", ["gen4_image", "gen4_turbo"])
def test_a_suspect_without_a_slot_is_not_asked_for_again(ground: Ground, model: str) -> None:
    """An idle worker would ask at once, and again: it comes when a slot is free."""
    hand = ground.worker()
    hand("set_limit", model=model, max_generations=1)
    past_image = model == "gen4_turbo"
    held = ground.held(hand, "start_task", *(STAGE if past_image else ()))
    hand.about(held, "requeue")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)"
        " on conflict (task_id) do update set crashes = 2, suspect = true", held.id,
    )  # fmt: skip
    assert hand.still_waiting()["resumable"]
    ground.sql(
        "update vidgen.slots set task_id = gen_random_uuid(), taken_at = now() where model = %s",
        model,
    )
    assert hand.still_waiting() == {"resumable": False, "waiting": False}
    ground.sql("update vidgen.slots set task_id = null, taken_at = null where model = %s", model)
    assert [one.id for one in hand.claim()] == [held.id]


def test_a_suspect_that_lives_is_taken_behind_a_closed_gate(ground: Ground) -> None:
    """Its output may show that rows accept changes again; a new task waits."""
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue")
    new = ground.order()
    ground.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", new)
    hand("close_gate", model="*")
    assert hand.still_waiting() == {"resumable": True, "waiting": False}
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held.id
    )
    assert hand.still_waiting(idle=False) == {"resumable": False, "waiting": False}
    assert hand.claim(idle=False) == []
    assert hand.still_waiting() == {"resumable": True, "waiting": False}
    assert [one.id for one in hand.claim()] == [held.id]
    hand.about(held, "fail")
    assert hand.still_waiting() == {"resumable": False, "waiting": False}
    assert hand.claim() == [], "to begin one costs money"


def test_an_output_that_tries_a_gate_is_kept_or_being_stored_and_not_set_aside(
    ground: Ground,
) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:3])
    hand("note_trouble", task_id=held.id, user_id=ground.task(held.id)["user_id"])
    ground.sql('update vidgen.checkpoints set request = \'{"model": "gen4_image"}\'')

    def tries() -> bool:
        return bool(hand("try_kept")[0]["kept"])

    assert tries(), "it is being stored"
    hand.about(held, "requeue", delay=60 * MINUTE)
    assert tries()
    assert [one.id for one in hand.claim()] == [held.id], "it is due now"
    again = Held(held.id, held.attempt + 1, held.worker_id)
    refuse(ground, held.id, when="new.status = 'completed'")
    hand.about(again, "set_aside")
    assert not tries(), "its row may refuse for ever"


def an_output_behind_the_gate(ground: Ground, hand: Hand, key: dict[str, Any]) -> Held:
    """Keep an output that could not be stored, and close the gate of its file store."""
    user = ground.user()
    task = ground.order(user)
    (held,) = hand.claim(**key)
    assert held.id == task
    for step in ("start_task", *STAGE[:3]):
        hand.about(held, step, **key, request=Jsonb({"model": "gen4_image"}))
    hand("note_trouble", task_id=held.id, user_id=user, scope="storage:a")
    hand("close_gate", scope="storage:a", model="*", reason="STORAGE_DENIED")
    hand.about(held, "requeue", **key)
    return held


FIRST: dict[str, Any] = {"scopes": ["*", "default", "key:key", "storage:a"]}
OTHER: dict[str, Any] = {
    "account": "other", "key_fingerprint": "others", "scopes": ["*", "other", "key:others"],
}  # fmt: skip


def test_an_output_of_one_account_is_left_to_no_worker_of_another(ground: Ground) -> None:
    """Such an output opens the gate of this account's own file store."""
    first, other = ground.worker(**FIRST), ground.worker(**OTHER)
    held = an_output_behind_the_gate(ground, first, FIRST)
    assert first("try_kept", scope="storage:a", **FIRST) == [{"kept": True}]
    assert other.claim(**OTHER) == []
    second = ground.worker(**{**FIRST, "scopes": FIRST["scopes"][:3]})
    assert first.claim(**FIRST) == [], "another one of its account works on"
    second("leave")
    assert [one.id for one in first.claim(**FIRST)] == [held.id]


def test_an_output_that_only_others_may_follow_tries_no_gate(ground: Ground) -> None:
    """Of two accounts with one file store."""
    others = {**OTHER, "scopes": [*OTHER["scopes"], "storage:a"]}
    first, other = ground.worker(**FIRST), ground.worker(**others)
    an_output_behind_the_gate(ground, other, others)
    other("leave")
    assert first.claim(**FIRST) == []
    assert first("try_kept", scope="storage:a", **FIRST) == [{"kept": False}]
    assert other("try_kept", scope="storage:a", **others) == [{"kept": True}]


def test_an_output_that_another_transaction_holds_tries_no_gate(ground: Ground) -> None:
    hand = ground.worker(**FIRST)
    held = an_output_behind_the_gate(ground, hand, FIRST)
    with ground.hand().holding() as client:
        client.conn.execute(
            "select from video_generation_tasks where id = %s for update", [held.id]
        )
        assert hand("try_kept", scope="storage:a", **FIRST) == [{"kept": True}]
        assert hand.claim(**FIRST) == []
        assert hand("try_kept", scope="storage:a", **FIRST) == [{"kept": False}]


def test_an_output_that_is_stored_outside_a_gate_does_not_try_it(ground: Ground) -> None:
    """A worker with another file store stores it: that says nothing of the first one's."""
    first, other = ground.worker(**FIRST), ground.worker(**OTHER)
    held = an_output_behind_the_gate(ground, first, FIRST)
    ground.sql(
        "update video_generation_tasks set status = 'processing', attempt = attempt + 1,"
        " worker_id = %s where id = %s", other.worker_id, held.id,
    )  # fmt: skip
    assert first("try_kept", scope="storage:a", **FIRST) == [{"kept": False}]


def test_cancels_of_waiting_tasks_are_claimed_outside_gates(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue", delay=60 * MINUTE)
    hand("close_gate", model="*")
    ground.sql("select public.cancel_video_generation_task(%s)", held.id)
    assert ground.task(held.id)["status"] == "pending", "its generation still runs"
    (row,) = hand("claim_cancelled")
    assert (row["id"], row["attempt"], row["cancel_requested"]) == (held.id, 2, True)
    assert ground.none("select from vidgen.resumes")


def test_a_worker_leaves_only_when_it_holds_nothing(ground: Ground) -> None:
    hand = ground.worker()
    ground.held(hand)
    hand("leave")
    assert len(ground.sql("select 1 from vidgen.workers")) == 1
    hand("hand_back", task_ids=None)
    hand("leave")
    assert ground.none("select from vidgen.workers")


def test_progress_never_goes_down_with_a_late_report(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE)
    before = ground.task(held.id)["progress"]
    hand.about(held, "report", progress=[1.0])
    hand.about(held, "requeue")
    assert hand.claim()
    assert ground.task(held.id)["progress"] == before


def test_users_without_due_tasks_leave_the_line_many_at_once(ground: Ground) -> None:
    """A thousand cancelled orders ahead of it must not cost the next user a thousand claims."""
    worker = ground.worker()
    scene = ground.scene(ground.user())
    ground.sql(
        "insert into public.video_generation_tasks (user_id, scene_id)"
        " select gen_random_uuid(), %s from generate_series(1, 1000)",
        scene,
    )
    worker("line_up")
    ground.sql(
        "update public.video_generation_tasks set status = 'cancelled', completed_at = now()"
    )
    later = ground.order(due=timedelta(hours=1))
    waiting = ground.order()
    worker("line_up")
    # A claim that brought nothing clears five hundred, besides the one whose turn it was.
    claims = [[held.id for held in worker.claim(slots=1)] for _ in range(3)]
    assert claims == [[], [], [waiting]]
    assert worker("clear_line") == []
    assert ground.task(later)["status"] == "pending"
