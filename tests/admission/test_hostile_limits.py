"""Limits of one user: no statement exceeds them, and no other user is affected."""

from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.clients import acting, as_user, insert
from tests.support.hands import STAGE, Ground, Hand, Held, Row
from tests.support.watching import until
from tests.support.world import World, crowd, many, posts, reasons, recorded, told, vidgen
from vidgen_worker.domain.faults import ALLOWANCE, IN_A_ROW, Part
from vidgen_worker.telemetry.events import GateClosed, UserBraked

TASKS = "public.video_generation_tasks"
CANCEL = "select public.cancel_video_generation_task(%s)"
RETRY = "select public.retry_video_generation_task(%s)"
MANY = f"insert into {TASKS} (scene_id) select %s from generate_series(1, %s)"
AT_ONCE = "update vidgen.settings set rejection_pause = '0'"


def begun(ground: Ground, user: UUID, count: int) -> tuple[Hand, list[Held]]:
    """This many tasks of one user, claimed and started, without a submission."""
    hand = ground.worker()
    ground.orders(user, count)
    held = hand.claim(count)
    assert len(held) == count
    for one in held:
        hand.walk(one, "start_task")
    return hand, held


def submit(hand: Hand, held: Held, **parameters: object) -> Row | None:
    """The limit that prevents a submission; None when it has begun."""
    (row,) = hand.about(held, "begin_submission", **parameters)
    verdict: Row | None = row["limited"]
    assert row["refused"] is (verdict is not None)
    return verdict


def ends(hand: Hand, held: Held, *, cost: int = 8, rejected: bool = False) -> None:
    """End a task's generation without an output, and the task with it."""
    hand.walk(held, "answer_submission")
    hand.about(held, "end_generation", ended_state="failed", cost=cost, rejected=rejected)
    hand.about(held, "fail", code="CONTENT_REJECTED" if rejected else "ASSET_INVALID")


def rejections(ground: Ground, user: UUID, count: int) -> None:
    """Let this many different inputs of a user be rejected in a row."""
    hand, tasks = begun(ground, user, count)
    for held in tasks:
        assert submit(hand, held) is None
        ends(hand, held, cost=0, rejected=True)


def limits(ground: Ground, user: UUID) -> Row:
    return ground.one("select * from vidgen.user_limits where user_id = %s", user)


def refused(ground: Ground, user: UUID, statement: str, *parameters: object) -> psycopg.Error:
    """The error that a statement of the user's ends with."""
    with pytest.raises(psycopg.Error) as error:
        as_user(ground, user, statement, *parameters)
    assert error.value.sqlstate == "PT429"
    assert error.value.diag.message_detail == "USER_LIMIT"
    assert error.value.diag.message_hint
    return error.value


# The cost that is lost within a day.


def test_one_insert_of_many_rows_does_not_pass_the_limit(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 50")
    hand, tasks = begun(ground, user, 60)
    verdicts = []
    for held in tasks:
        verdicts.append(submit(hand, held))
        if verdicts[-1] is None:
            ends(hand, held)
    assert verdicts[:7] == [None] * 7
    assert {v["kind"] for v in verdicts[7:] if v} == {"ended"}
    assert len([v for v in verdicts if v]) == 53
    said = verdicts[-1]["message"] if verdicts[-1] else ""
    assert "56 of 50 provider credits" in said
    opens = ground.one("select opens_at from vidgen.unbilled(%s, null)", user)["opens_at"]
    assert f"{opens:%Y-%m-%d %H:%M} UTC" in said


def test_of_four_workers_that_race_one_begins(ground: Ground) -> None:
    """The first one's submission is not committed yet when the others ask."""
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 12, expected_cost = 12")
    hand, tasks = begun(ground, user, 4)
    with hand.holding():
        assert submit(hand, tasks[0]) is None
        others = [ground.hand(hand.worker_id) for _ in tasks[1:]]
        racing = [
            other.later(partial(submit, other, held))
            for other, held in zip(others, tasks[1:], strict=True)
        ]
        assert all(ground.waits(one) for one in racing)
    verdicts = [one.result() for one in racing]
    assert [verdict["kind"] for verdict in verdicts] == ["waits"] * 3
    assert ground.one("select count(*) as rows from vidgen.submissions")["rows"] == 1


def test_what_is_under_way_may_yet_be_charged_and_only_waits(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 5")
    hand, (first, second) = begun(ground, user, 2)
    assert submit(hand, first) is None
    hand.walk(first, "answer_submission")
    verdict = submit(hand, second)
    assert verdict
    assert verdict["kind"] == "waits"
    hand.walk(first, *STAGE[2:])
    assert submit(hand, second) is None


def test_tomorrow_it_is_no_loss_any_more(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 8")
    hand, (first, second) = begun(ground, user, 2)
    assert submit(hand, first) is None
    ends(hand, first)
    assert (submit(hand, second) or {})["kind"] == "ended"
    ground.sql("update vidgen.submissions set sent_at = sent_at - interval '24 hours'")
    assert submit(hand, second) is None


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "at work"])
def test_a_cancel_counts_also_while_the_output_is_stored(ground: Ground, *, waiting: bool) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 4")
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:3], user_id=user)
    if waiting:
        hand.about(held, "requeue")
    assert "can't be cancelled" in str(refused(ground, user, CANCEL, held.id))
    assert ground.task(held.id)["cancel_requested_at"] is None
    # Beyond a limit that is higher it is a loss from then on.
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 5")
    as_user(ground, user, CANCEL, held.id)
    assert ground.one("select vidgen.unbilled_cost(%s) as lost", user)["lost"] == 5


# Inputs that content rules reject.


def test_a_rejected_input_is_not_sent_again_for_a_day_and_only_for_its_user(ground: Ground) -> None:
    user, other = ground.user(), ground.user()
    hand, (first, second, third) = begun(ground, user, 3)
    assert submit(hand, first, digest="one") is None
    ends(hand, first, rejected=True)
    assert (submit(hand, second, digest="one") or {})["kind"] == "rejected"
    theirs, (held,) = begun(ground, other, 1)
    assert submit(theirs, held, digest="one") is None
    assert submit(hand, third, digest="another") is None
    ground.sql("update vidgen.rejections set rejected_at = rejected_at - interval '24 hours'")
    assert submit(hand, second, digest="one") is None


def test_an_input_that_never_went_well_is_under_way_three_times_at_most(ground: Ground) -> None:
    user = ground.user()
    hand, (*three, fourth) = begun(ground, user, 4)
    assert [submit(hand, held, digest="one") for held in three] == [None] * 3
    assert (submit(hand, fourth, digest="one") or {})["kind"] == "waits"
    hand.walk(three[0], *STAGE[1:])
    assert submit(hand, fourth, digest="one") is None


@pytest.mark.parametrize("same", [True, False], ids=["the same still", "another still"])
def test_a_clips_still_is_told_by_its_bytes(ground: Ground, *, same: bool) -> None:
    user = ground.user()
    hand, tasks = begun(ground, user, 2)
    clip: dict[str, Any] = {
        "stage": "video", "model": "gen4_turbo", "digest": "clip", "made_from": "image",
    }  # fmt: skip
    for held, sha256 in zip(tasks, ("ab", "ab" if same else "cd"), strict=True):
        hand.walk(held, *STAGE[:3])
        hand.about(held, "finish_stage", sha256=sha256)
    first, second = (Held(held.id, held.attempt, held.worker_id) for held in tasks)
    assert submit(hand, first, **clip) is None
    hand.about(first, "answer_submission", stage="video")
    hand.about(first, "end_generation", stage="video", ended_state="failed", rejected=True)
    assert (submit(hand, second, **clip) or {}).get("kind") == ("rejected" if same else None)


def test_variations_slow_a_user_down_and_the_tenth_stops_him(ground: Ground) -> None:
    user = ground.user()
    ground.sql(AT_ONCE)
    rejections(ground, user, 10)
    hand, (held,) = begun(ground, user, 1)
    said = (submit(hand, held) or {})["message"]
    until_then = limits(ground, user)["stopped_until"]
    assert "rejected 10 of your scenes in a row, so nothing more is generated" in said
    assert f"before {until_then:%Y-%m-%d %H:%M} UTC" in said
    error = refused(ground, user, MANY, ground.scene(user), 1)
    assert "rejected 10 of your scenes in a row" in str(error)
    # A day later he begins anew, slowly: not with ten more.
    ground.sql("update vidgen.user_limits set stopped_until = now()")
    assert submit(hand, held) is None
    assert limits(ground, user)["rejections"] == 3


def test_pauses_grow_from_the_third_rejection_on(ground: Ground) -> None:
    user = ground.user()
    rejections(ground, user, 3)
    hand, tasks = begun(ground, user, 2)
    pauses = []
    for held in tasks:
        verdict = submit(hand, held)
        assert verdict
        assert verdict["kind"] == "waits"
        pauses.append(verdict["seconds"])
        ground.sql("update vidgen.submissions set sent_at = sent_at - interval '1 hour'")
        assert submit(hand, held) is None
        ends(hand, held, cost=0, rejected=True)
    assert 0 < pauses[0] <= 60 < pauses[1] <= 120


def test_only_a_stage_that_is_stored_ends_the_row(ground: Ground) -> None:
    user = ground.user()
    rejections(ground, user, 2)
    hand, (cancelled, failed, good) = begun(ground, user, 3)
    assert submit(hand, cancelled) is None
    hand.walk(cancelled, "answer_submission")
    as_user(ground, user, CANCEL, cancelled.id)
    hand.about(cancelled, "cancel")
    hand.about(cancelled, "close_generation", ended_state="cancelled", cost=0)
    assert submit(hand, failed) is None
    ends(hand, failed)
    assert limits(ground, user)["rejections"] == 2
    hand.walk(good, *STAGE)
    assert limits(ground, user)["rejections"] == 2, "each task's still would hide a rejected clip"
    hand.walk(Held(good.id, good.attempt, good.worker_id), *STAGE, stage="video")
    assert limits(ground, user)["rejections"] == 0


# Nothing good is known of him yet.


def test_a_newcomer_has_three_under_way_until_a_stage_is_stored(ground: Ground) -> None:
    user = ground.user(new=True)
    hand, (first, second, third, *more) = begun(ground, user, 6)
    assert [submit(hand, held) for held in (first, second, third)] == [None] * 3
    verdict = submit(hand, more[0])
    assert verdict
    assert verdict["kind"] == "waits"
    assert verdict["details"] == "nothing of his was stored yet, and 3 generations under way"
    assert 0 < verdict["seconds"] <= 5
    assert limits(ground, user)["paused_until"] is not None
    hand.walk(first, *STAGE[1:])
    assert limits(ground, user)["paused_until"] is None, "what waits comes at once"
    assert [submit(hand, held) for held in more] == [None] * 3


def test_who_is_known_is_not_bound(ground: Ground) -> None:
    hand, tasks = begun(ground, ground.user(), 20)
    assert [submit(hand, held) for held in tasks] == [None] * 20


def test_of_workers_that_race_for_a_newcomer_none_begins_the_fourth(ground: Ground) -> None:
    """The first three are not committed yet when another worker asks."""
    user = ground.user(new=True)
    hand, (*three, fourth) = begun(ground, user, 4)
    other = ground.hand(hand.worker_id)
    ground.sql("insert into vidgen.user_limits (user_id) values (%s)", user)
    with hand.holding():
        assert [submit(hand, held) for held in three] == [None] * 3
        racing = other.later(partial(submit, other, fourth))
        assert ground.waits(racing)
    assert racing.result()["kind"] == "waits"


def test_rejections_and_what_is_under_way_count_together(ground: Ground) -> None:
    """Also for who is known: each may be rejected as the last one was."""
    user = ground.user()
    ground.sql(AT_ONCE)
    hand, tasks = begun(ground, user, 16)
    for rejected, room in ((1, 2), (2, 1), (3, 1), (4, 1)):
        held, *three = (tasks.pop() for _ in range(4))
        assert submit(hand, held) is None
        ends(hand, held, cost=0, rejected=True)
        assert limits(ground, user)["rejections"] == rejected
        verdicts = [submit(hand, one) for one in three]
        assert [verdict is None for verdict in verdicts] == [n < room for n in range(3)]
        for one in three[:room]:
            ends(hand, one)


def test_a_cancel_frees_no_place_among_those_under_way(ground: Ground) -> None:
    """A cancelled generation runs on until the provider ends it, and may be rejected."""
    user = ground.user(new=True)
    hand, (*three, fourth) = begun(ground, user, 4)
    for held in three:
        assert submit(hand, held) is None
        hand.walk(held, "answer_submission")
        as_user(ground, user, CANCEL, held.id)
    assert (submit(hand, fourth) or {})["kind"] == "waits"
    hand.about(three[0], "cancel")
    assert (submit(hand, fourth) or {})["kind"] == "waits"
    hand.about(three[0], "close_generation", ended_state="cancelled", cost=0)
    assert submit(hand, fourth) is None


def test_a_deleted_scene_or_task_forgets_no_rejection(ground: Ground) -> None:
    user = ground.user()
    rejections(ground, user, 3)
    as_user(ground, user, "select public.delete_video_scene(id) from public.video_scenes")
    ground.sql(f"delete from {TASKS}")
    hand, (held,) = begun(ground, user, 1)
    assert (submit(hand, held) or {})["kind"] == "waits"
    assert limits(ground, user)["rejections"] == 3


def test_a_still_does_not_hide_a_row_of_rejected_clips(ground: Ground) -> None:
    user = ground.user(new=True)
    hand, (first, second) = begun(ground, user, 2)
    for held in (first, second):
        hand.walk(held, *STAGE)
    clips = [Held(held.id, held.attempt, held.worker_id) for held in (first, second)]
    for rejected, clip in enumerate(clips, start=1):
        hand.walk(clip, *STAGE[:2], stage="video")
        hand.about(clip, "end_generation", stage="video", ended_state="failed", rejected=True)
        hand.about(clip, "fail", code="CONTENT_REJECTED")
        assert limits(ground, user)["rejections"] == rejected
    hand, (one, other) = begun(ground, user, 2)
    assert submit(hand, one) is None
    assert (submit(hand, other) or {})["kind"] == "waits"


def test_what_a_retried_task_threw_away_stays_lost(ground: Ground) -> None:
    """One charge does not bring back what the task's earlier lives have cost."""
    user = ground.user()
    hand, (first,) = begun(ground, user, 1)
    assert submit(hand, first) is None
    hand.walk(first, "answer_submission")
    as_user(ground, user, CANCEL, first.id)
    hand.about(first, "end_generation", ended_state="cancelled", cost=8)
    hand.about(first, "cancel")
    as_user(ground, user, "select public.retry_video_generation_task(%s)", first.id)
    (again,) = hand.claim()
    hand.walk(Held(again.id, again.attempt, again.worker_id), "start_task", *STAGE)
    assert ground.one("select vidgen.unbilled_cost(%s) as lost", user)["lost"] == 8


def test_submissions_that_may_have_been_accepted_count_when_their_task_has_ended(
    ground: Ground,
) -> None:
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 20")
    user, hand = ground.user(), ground.worker()
    begun = 0
    for _ in range(5):
        ground.order(user)
        (held,) = hand.claim(1)
        hand.walk(held, "start_task")
        if submit(hand, held) is not None:
            break
        hand.about(
            held, "answer_submission", answer="unknown", generation_id=None, estimated_cost=None
        )
        hand.about(held, "fail", code="SUBMISSION_UNKNOWN")
        begun += 1
    assert begun == 2, "ten credits each, which is what is expected of one"


def test_what_is_kept_to_be_stored_counts_as_under_way(ground: Ground) -> None:
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 20")
    user, hand = ground.user(), ground.worker()
    begun = 0
    for _ in range(10):
        ground.order(user)
        (held,) = hand.claim(1)
        hand.walk(held, "start_task")
        if submit(hand, held) is not None:
            break
        hand.walk(held, "answer_submission", "end_generation")
        begun += 1
    assert begun == 4, "five credits each"


def test_a_generation_whose_cost_nobody_tells_is_not_for_free(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 25, expected_cost = 10")
    hand, tasks = begun(ground, user, 4)
    for held in tasks[:3]:
        assert submit(hand, held) is None
        hand.walk(held, "answer_submission")
        ground.sql("update vidgen.submissions set estimated_cost = null")
        hand.about(held, "end_generation", ended_state="failed", cost=None)
        hand.about(held, "fail", code="ASSET_INVALID")
    assert (submit(hand, tasks[3]) or {})["kind"] == "ended"


def test_a_cancel_in_time_hides_no_rejection(ground: Ground) -> None:
    user = ground.user()
    hand, (held,) = begun(ground, user, 1)
    assert submit(hand, held) is None
    hand.walk(held, "answer_submission")
    hand.about(held, "cancel")
    for _ in range(2):
        hand.about(held, "close_generation", ended_state="failed", rejected=True)
    assert limits(ground, user)["rejections"] == 1


def test_who_is_paused_stands_in_nobodys_way(ground: Ground) -> None:
    """Neither with new tasks nor with those that are past their image."""
    user, other = ground.user(), ground.user()
    hand, (held, later) = begun(ground, user, 2)
    hand.walk(later, *STAGE)
    hand.about(later, "requeue")
    ground.sql("update vidgen.user_limits set rejections = 3")
    assert (submit(hand, held) or {})["kind"] == "waits"
    hand.about(held, "requeue", delay=timedelta(hours=1))
    ground.orders(user, 5)
    mine = ground.order(other)
    assert [one.id for one in hand.claim()] == [mine]
    assert hand.still_waiting() == {"resumable": False, "waiting": False}
    ground.sql("select vidgen.lift_limits(%s)", user)
    taken = {one.id for one in hand.claim()} | {one.id for one in hand.claim()}
    assert {later.id, held.id} < taken


def test_lifted_he_begins_anew(ground: Ground) -> None:
    user = ground.user()
    ground.sql(AT_ONCE)
    ground.sql("update vidgen.settings set max_unbilled_cost_per_user = 8")
    rejections(ground, user, 10)
    hand, (first, second) = begun(ground, user, 2)
    assert (submit(hand, first) or {})["kind"] == "ended"
    ground.sql("select vidgen.lift_limits(%s)", user)
    assert submit(hand, first) is None
    ends(hand, first)
    assert (submit(hand, second) or {})["kind"] == "ended", "what is lost from now on counts"
    assert ground.one("select vidgen.lift_limits(%s) as known", user)["known"]
    assert submit(hand, second) is None
    assert not ground.one("select vidgen.lift_limits(%s) as known", uuid4())["known"]


# Locks.


def test_no_lock_of_ours_has_a_key_that_can_be_guessed(ground: Ground) -> None:
    assert ground.none("select from pg_proc where pronamespace = 'vidgen'::regnamespace"
                       " and prosrc like '%%advisory%%'")  # fmt: skip
    user = ground.user()
    with acting(ground, "authenticated", ground.user()) as stranger:
        stranger.execute(
            "select pg_advisory_xact_lock(hashtextextended('vidgen limits ' || %s, 0))", [str(user)]
        )
        as_user(ground, user, CANCEL, insert(ground, user))


def test_no_worker_waits_for_a_statement_of_the_users(ground: Ground) -> None:
    """He holds his own lock for as long as he likes: an insert, a cancel, a retry."""
    user = ground.user()
    hand, tasks = begun(ground, user, 2)
    waiting = insert(ground, user)
    with acting(ground, "authenticated", user) as slow:
        slow.execute(MANY.encode(), [ground.scene(user), 1])
        slow.execute(CANCEL.encode(), [waiting])
        later = hand.later(lambda: submit(hand, tasks[0]))
        assert not ground.waits(later)
        ends(hand, tasks[0], rejected=True)
        assert submit(hand, tasks[1]) is None
        hand.walk(tasks[1], *STAGE[1:])


def test_a_claim_that_is_set_by_hand_unbinds_nobody(ground: Ground) -> None:
    user = ground.user()
    task = insert(ground, user)
    with acting(ground, "authenticated", claims={"role": "service_role", "sub": str(user)}) as conn:
        conn.execute(CANCEL.encode(), [task])
    row = ground.one("select inserts, changes from vidgen.user_locks where user_id = %s", user)
    assert (row["inserts"], row["changes"]) == (1, 1)


# Quotas of rows.


def test_inserts_of_an_hour_end_at_the_limit_and_begin_with_the_next(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_inserts_per_hour = 5")
    scene = ground.scene(user)
    as_user(ground, user, MANY, scene, 3)
    assert "5 new tasks an hour, 3 of them used" in str(refused(ground, user, MANY, scene, 3))
    as_user(ground, user, MANY, scene, 2)
    refused(ground, user, MANY, scene, 1)
    # No other user's statements, and no bulk writer's.
    other = ground.user()
    as_user(ground, other, MANY, ground.scene(other), 5)
    ground.orders(user, 50)
    ground.sql("update vidgen.user_locks set hour_began = hour_began - interval '61 minutes'")
    as_user(ground, user, MANY, scene, 5)


def test_insert_and_cancel_ends_at_the_limit(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_changes_per_hour = 3")
    tasks = [insert(ground, user) for _ in range(4)]
    for task in tasks[:2]:
        as_user(ground, user, CANCEL, task)
        as_user(ground, user, CANCEL, task)  # says nothing new, and counts as nothing
    as_user(ground, user, RETRY, tasks[0])
    assert "3 cancels and retries an hour" in str(refused(ground, user, CANCEL, tasks[3]))
    refused(ground, user, RETRY, tasks[1])
    assert ground.task(tasks[3])["status"] == "pending"
    with acting(ground, "service_role") as conn:
        conn.execute(CANCEL.encode(), [tasks[3]])


def test_a_statement_of_a_hundred_thousand_rows_is_refused_whole(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_tasks_per_scene = 1000000")
    error = refused(ground, user, MANY, ground.scene(user), 100_000)
    assert "too many new tasks in one statement" in str(error)
    assert ground.none(f"select from {TASKS}")
    # Refused before its rows are written, which shows in the place that they would have taken.
    size = ground.one("select pg_table_size(%s::regclass) as bytes", TASKS)["bytes"]
    assert size < 4_000_000
    forged = f"insert into {TASKS} (scene_id) select %s from generate_series(1, %s) where"
    forged += " set_config('vidgen.rows_left', '9', true) = '9'"
    assert "2000 new tasks an hour" in str(refused(ground, user, forged, ground.scene(user), 2001))


def test_tasks_of_one_scene_are_bounded_ended_ones_too(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_tasks_per_scene = 3")
    scene, another = ground.scene(user), ground.scene(user)
    as_user(ground, user, MANY, scene, 3)
    for row in ground.sql(f"select id from {TASKS}"):
        as_user(ground, user, CANCEL, row["id"])
    assert f"scene {scene} has 3 tasks" in str(refused(ground, user, MANY, scene, 1))
    as_user(ground, user, MANY, another, 3)


def test_an_older_transaction_does_not_begin_the_hour_anew(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_inserts_per_hour = 3")
    with ground.hand() as older, older.holding():
        older.conn.execute("select now()")
        ground.sql("select vidgen.count_user(%s, 2, 0)", user)
        with pytest.raises(psycopg.Error, match="limit reached"), older.conn.transaction():
            older.conn.execute("select vidgen.count_user(%s, 2, 0)", [user])


def test_scenes_of_one_user_are_bounded_where_the_table_is_ours(ground: Ground) -> None:
    user = ground.user()
    ground.sql("update vidgen.settings set max_scenes_per_user = 3")
    scenes = (
        "insert into public.video_scenes (user_id, scenario_id, visual_prompt)"
        " select %s, gen_random_uuid(), 'a bottle' from generate_series(1, %s)"
    )
    as_user(ground, user, scenes, user, 3)
    assert "3 scenes" in str(refused(ground, user, scenes, user, 1))
    as_user(ground, user, "select public.delete_video_scene(s.id) from"
            " (select id from public.video_scenes limit 1) as s")  # fmt: skip
    as_user(ground, user, scenes, user, 1)
    ground.sql(scenes, user, 10)


def test_a_change_of_many_scenes_runs_nothing_of_ours(ground: Ground) -> None:
    """The cost is only the application's own UPDATE: no trigger, row or NOTIFY of ours."""
    user = ground.user()
    scenes = (
        "insert into public.video_scenes (user_id, scenario_id)"
        " select %s, gen_random_uuid() from generate_series(1, 2000)"
    )
    as_user(ground, user, scenes, user)
    ground.order(user)
    listening = ground.sql(
        "select t.tgname from pg_trigger as t"
        " where t.tgrelid = 'public.video_scenes'::regclass and not t.tgisinternal"
        "   and t.tgtype & 16 <> 0"
    )
    assert listening == []
    assert ground.none(
        "select from pg_publication_tables"
        " where schemaname = 'public' and tablename = 'video_scenes'"
    )
    before = ground.dump(without=["public.video_scenes"])
    as_user(ground, user, "update public.video_scenes set visual_prompt = 'another one'")
    assert ground.dump(without=["public.video_scenes"]) == before


# Troubles count users.


def trouble(ground: Ground, hand: Hand, user: UUID, count: int, **parameters: object) -> Row:
    """Let this many tasks of a user meet the same trouble, each after a submission."""
    ground.orders(user, count)
    tasks = hand.claim(count)
    for held in tasks:
        hand.walk(held, "start_task")
        assert submit(hand, held) is None
    said = [hand("note_trouble", task_id=held.id, user_id=user, **parameters)[0] for held in tasks]
    assert [row["braked"] for row in said] == [n == IN_A_ROW for n in range(1, count + 1)]
    return said[-1]


@pytest.mark.parametrize("part", Part)
def test_two_users_never_count_as_three(ground: Ground, part: Part) -> None:
    hand, users = ground.worker(), [ground.user(), ground.user(), ground.user()]
    left = "select remaining from vidgen.troubles"
    for count, user in enumerate(users[:2], start=1):
        row = trouble(ground, hand, user, 5, part=part)
        assert (row["users"], row["weighed"]) == (count, count)
    assert ground.one(left)["remaining"] is None, "nobody else's submissions are counted"
    assert trouble(ground, hand, users[2], 1, part=part)["users"] == IN_A_ROW
    assert ground.one(left)["remaining"] == ALLOWANCE


def test_three_results_in_a_row_brake_their_user_and_one_task_tries_it(ground: Ground) -> None:
    user, other = ground.user(), ground.user()
    hand, (first, second, theirs) = begun(ground, user, 3)
    trouble(ground, hand, user, 3)
    assert (submit(hand, first) or {})["kind"] == "waits"
    hers, (held,) = begun(ground, other, 1)
    assert submit(hers, held) is None
    ground.sql("update vidgen.user_troubles set next_at = now()")
    assert submit(hand, first) is None, "one tries it"
    assert (submit(hand, second) or {})["kind"] == "waits", "and no other beside it"
    hand.walk(first, *STAGE[1:])
    assert submit(hand, second) is None
    assert submit(hand, theirs) is None


# The whole of it.


async def test_many_rows_of_one_rejected_scene_are_generated_three_times(world: World) -> None:
    """The largest number under way before any result is known."""
    user = world.user(10_000)
    scene = world.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]] a bottle")
    world.as_user(
        user, "insert into public.video_generation_tasks (scene_id, run_after)"
        " select %s, now() + n * interval '20 ms' from generate_series(0, 59) as n", scene,
    )  # fmt: skip
    async with world.worker(VIDGEN_IMAGE_SLOTS="20", VIDGEN_VIDEO_SLOTS="20"):
        await until(world, lambda: not world.sql(
            "select id from video_generation_tasks where error_code is null"
        ))  # fmt: skip
    rows = world.sql("select distinct status, error_code from video_generation_tasks")
    assert [(row["status"], row["error_code"]) for row in rows] == [("failed", "CONTENT_REJECTED")]
    images, clips = posts(world)
    assert (1 <= images <= 3, clips) == (True, 0)


async def test_a_newcomers_burst_of_rejected_inputs_is_three(world: World) -> None:
    """Each another input, and as many places as he has tasks."""
    user = world.user(10_000, new=True)
    for number in range(12):
        words = f"[[slow 300ms]] [[fail SAFETY.INPUT.TEXT]] {number}"
        world.order(user, world.scene(user, image_prompt=words))
    async with world.worker(VIDGEN_IMAGE_SLOTS="20", VIDGEN_VIDEO_SLOTS="20"):
        await until(world, lambda: len(world.sql("select digest from vidgen.rejections")) == 3)
        await world.beats(3)
        assert posts(world) == (3, 0)
    rows = world.sql("select status from video_generation_tasks")
    assert sorted(row["status"] for row in rows) == ["failed"] * 3 + ["pending"] * 9


async def test_the_same_words_in_another_scene_are_the_same_input(world: World) -> None:
    user, words = world.user(), "[[fail SAFETY.INPUT.TEXT]] a bottle"
    async with world.worker():
        for _ in range(2):
            task = world.order(user, world.scene(user, image_prompt=words))
            assert (await world.until(task))["error_code"] == "CONTENT_REJECTED"
    assert posts(world) == (1, 0)


# A refusal that may be everybody's, or one input's alone.

FORBIDDEN = "[[forbidden x1000]]"


async def test_one_row_that_is_always_refused_closes_the_gate_once(world: World) -> None:
    user, other = world.user(), world.user()
    with recorded() as heard:
        async with world.worker():
            poisonous = world.order(user, world.scene(user, image_prompt=FORBIDDEN))
            await until(world, lambda: reasons(world) == [("key", "PROVIDER_DENIED")])
            good = [world.order(other, world.scene(other)) for _ in range(3)]
            assert (await world.until(poisonous))["error_code"] == "REQUEST_DENIED"
            assert {(await world.until(task))["status"] for task in good} == {"completed"}
    closed = [event.code for event in heard if isinstance(event, GateClosed)]
    assert closed == ["PROVIDER_DENIED"]
    assert world.task(poisonous)["failures"] == world.task(poisonous)["max_failures"]
    assert world.credits(user) == (1000, 0)


@pytest.mark.parametrize("words", [FORBIDDEN, "[[denied x1000]]", "[[payment x1000]]"])
async def test_many_such_rows_of_one_user_close_it_once_and_brake_him(
    world: World, words: str
) -> None:
    user, other = world.user(), world.user()
    with recorded() as heard:
        async with world.worker():
            for number in range(6):
                world.order(user, world.scene(user, image_prompt=f"{words} {number}"))
            await until(world, lambda: bool(world.sql(
                "select user_id from vidgen.user_troubles where next_at is not null"
            )))  # fmt: skip
            good = world.order(other, world.scene(other))
            assert (await world.until(good))["status"] == "completed"
    assert len([event for event in heard if isinstance(event, GateClosed)]) == 1


async def test_three_new_accounts_with_such_rows_stop_nobody(world: World) -> None:
    """Each closes the gate once; together they are no outage, because their models are unknown."""
    users, other = [world.user(new=True) for _ in range(3)], world.user()
    with recorded() as heard:
        async with world.worker():
            first = world.order(other, world.scene(other))
            assert (await world.until(first))["status"] == "completed"
            for user in users:
                task = world.order(user, world.scene(user, image_prompt=FORBIDDEN))
                assert (await world.until(task))["error_code"] == "REQUEST_DENIED"
            good = world.order(other, world.scene(other))
            assert (await world.until(good))["status"] == "completed"
    closed = [event.code for event in heard if isinstance(event, GateClosed)]
    assert closed == ["PROVIDER_DENIED"] * 3


TROUBLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PROVIDER_DENIED": ({"key_disabled": True}, {"key_disabled": False}),
    # Too little for any generation, and more than nothing.
    "PROVIDER_UNFUNDED": ({"credit_balance": 1}, {"credit_balance": 10_000}),
}


@pytest.mark.parametrize("reason", TROUBLES)
async def test_what_the_account_shows_is_everybodys_however_often_one_user_meets_it(
    world: World, reason: str
) -> None:
    closing, opening = TROUBLES[reason]
    user = world.user()
    task = world.order(user, world.scene(user))
    async with world.worker(VIDGEN_GATE_PROBE="1h"):
        world.runway.set(**closing)
        for _ in range(3):
            await until(world, lambda: reasons(world) == [(GATES[reason], reason)])
            await world.until(task, "pending")
            world.sql("delete from vidgen.gates")
            world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
        await until(world, lambda: reasons(world) == [(GATES[reason], reason)])
        assert world.task(task)["failures"] == 0
        await world.until(task, "pending")
        world.runway.set(**opening)
        world.sql("delete from vidgen.gates")
        world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
        assert (await world.until(task))["status"] == "completed"


GATES = {"PROVIDER_DENIED": "key", "PROVIDER_UNFUNDED": "default"}


async def test_two_users_who_fail_on_purpose_delay_nobody(world: World) -> None:
    """Also not those for whom it has worked before: accounts that look like any other."""
    users = [world.user(), world.user()]
    words = "[[fail INTERNAL.BAD_OUTPUT.CODE01]]"
    async with world.worker(VIDGEN_GATE_PROBE="1h"):
        for user in users:
            assert (await world.until(world.order(user, world.scene(user))))[
                "status"
            ] == "completed"
        for user in users:
            for number in range(5):
                world.order(user, world.scene(user, image_prompt=f"{words} {number}"))
        await until(world, lambda: len(world.sql(
            "select user_id from vidgen.user_troubles where next_at is not null"
        )) == len(users))  # fmt: skip
        (other,) = crowd(world, 1)
        assert (await world.until(other))["status"] == "completed"
        assert reasons(world) == []


async def test_a_lone_user_in_an_outage_is_braked_and_lifted_by_an_operator(world: World) -> None:
    world.storage.fail("upload", times=1_000_000, status=503)
    tasks = many(world, 4)
    user = world.task(tasks[0])["user_id"]
    with recorded() as heard:
        async with world.worker(
            VIDGEN_CONCURRENCY="1", VIDGEN_GATE_PROBE="1h", VIDGEN_RETRY_BACKOFF="1h",
            VIDGEN_IMAGE_SLOTS="100", VIDGEN_VIDEO_SLOTS="100",
        ):  # fmt: skip
            await until(world, lambda: any(isinstance(event, UserBraked) for event in heard))
            await world.beats(4)
            assert posts(world) == (IN_A_ROW, 0)
            assert reasons(world) == [], "nobody else is braked"
            (row,) = told(world, "limits", "list")
            assert row["user_id"] == str(user)
            assert "STORAGE_UNAVAILABLE" in row["reason"]
            shown = vidgen(world, "tasks", "show", str(tasks[-1])).stdout
            assert "kept back until" in shown
            assert f"vidgen-worker limits show {user}" in shown
            (other,) = crowd(world, 1)
            world.storage.heal()
            assert (await world.until(other))["status"] == "completed"
            lifted = told(world, "limits", "lift", str(user), "--yes")
            assert lifted["after"]["paused_until"] is None
            rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (5, 5)
    assert world.books_balance()
