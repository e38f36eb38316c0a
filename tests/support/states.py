"""For each named query a state in which it has something to do."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

from tests.support.hands import STAGE, Ground, Hand, let_go, refuse

Parameters = dict[str, Any]
Prepare = Callable[[Ground, Hand], Parameters]


# Twice.


def nothing(_: Ground, __: Hand) -> Parameters:
    return {}


def a_film_to_claim(ground: Ground, hand: Hand) -> Parameters:
    ground.film(ground.user())
    hand("line_up")
    return {"lane": 0}


def a_film_whose_part_has_ended(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held_film(hand, "order_parts", "wait_for_parts")
    first = ground.parts(held.id)[0]["id"]
    ground.sql("select public.cancel_video_generation_task(%s)", first)
    return {}


def a_delivery(ground: Ground, _: Hand) -> Parameters:
    (row,) = ground.sql(
        "select public.create_video_webhook('https://example.com', array['video.*']) ->> 'id' as id"
    )
    return {"webhook_id": row["id"]}


def a_taken_delivery(ground: Ground, hand: Hand) -> Parameters:
    a_delivery(ground, hand)
    (row,) = hand("take_deliveries")
    return {"webhook_id": row["webhook_id"], "id": row["id"], "try_number": row["try"],
            "ids": [row["id"]]}  # fmt: skip


def a_delivery_of_long_ago(ground: Ground, hand: Hand) -> Parameters:
    given = a_taken_delivery(ground, hand)
    hand("book_delivery", **given)
    ground.sql("update vidgen.deliveries set created_at = now() - interval '40 days'")
    return {}


def a_claimable_task(ground: Ground, hand: Hand) -> Parameters:
    ground.orders(ground.user(), 5)
    ground.order()
    hand("line_up")
    return {"slots": 3}


def tasks_to_go_on(ground: Ground, hand: Hand) -> Parameters:
    begun = [ground.held(hand, "start_task", *steps) for steps in (STAGE[:2], STAGE)]
    for held in begun:
        hand.about(held, "requeue")
    return {}


def a_line_of_cancelled_tasks(ground: Ground, hand: Hand) -> Parameters:
    waiting, gone = ground.order(), ground.order()
    ground.order(ground.task(gone)["user_id"], due=timedelta(hours=1))
    hand("line_up")
    ground.sql("select public.cancel_video_generation_task(%s)", gone)
    assert waiting != gone
    return {}


def arrivals(ground: Ground, _: Hand) -> Parameters:
    ground.orders(ground.user(), 5)
    ground.order(due=timedelta(hours=1))
    return {}


def held_lost_and_orphaned(ground: Ground, hand: Hand) -> Parameters:
    held, _orphan = ground.held(hand), ground.held(hand)
    return {"task_ids": [held.id, uuid4()], "attempts": [held.attempt, 1], "running": 2}


def a_waiting_cancel(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue")
    ground.sql("select public.cancel_video_generation_task(%s)", held.id)
    return {}


def the_dead(ground: Ground, _: Hand) -> Parameters:
    dead = ground.worker()
    ground.held(dead)
    last = ground.held(dead, "start_task")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", last.id
    )
    ground.silent(dead.worker_id)
    return {}


def a_generation_nobody_follows(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "cancel")
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 hour'")
    return held.fence


def a_task_that_waits(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand)
    hand.about(held, "requeue", waiting=True)
    return held.fence


def held_tasks(ground: Ground, hand: Hand) -> Parameters:
    ground.held(hand)
    ground.held(hand, "start_task", *STAGE[:2])
    return {"task_ids": None}


def a_closed_gate(ground: Ground, hand: Hand) -> Parameters:
    hand("close_gate")
    ground.sql("update vidgen.gates set probe_at = now()")
    return {"probes": 0}


def gates_of_nobody(ground: Ground, hand: Hand) -> Parameters:
    hand("close_gate", scope="machine:gone", model="*")
    hand("close_gate", scope="key:key", model="*")
    ground.sql("update vidgen.gates set closed_at = now() - interval '2 hours'")
    return {}


def a_trouble(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task")
    user = ground.task(held.id)["user_id"]
    return {"task_id": held.id, "user_id": user}


def a_refusal_met_again(ground: Ground, hand: Hand) -> Parameters:
    user = ground.user()
    for _ in range(2):
        held = ground.held(hand, "start_task", *STAGE[:1], user_id=user)
        hand.about(held, "answer_submission", answer="refused", generation_id=None)
        ground.sql(
            "update vidgen.submissions set met_gate = 'key:key' where task_id <> %s", held.id
        )
    return {"task_id": held.id, "user_id": user, "scope": "key:key"}


def a_trouble_behind_a_gate(ground: Ground, hand: Hand) -> Parameters:
    hand("note_trouble", **a_trouble(ground, hand), model="gen4_image")
    hand("close_gate", model="*")
    return {}


def a_kept_output(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:3])
    hand("note_trouble", task_id=held.id, user_id=ground.task(held.id)["user_id"], model="kept")
    ground.sql('update vidgen.checkpoints set request = \'{"model": "kept"}\'')
    hand.about(held, "requeue", delay=timedelta(hours=1))
    return {}


def a_storm(ground: Ground, hand: Hand) -> Parameters:
    ground.order()
    ground.order()
    hand("line_up")
    return a_closed_gate(ground, hand)


def stale_rows(ground: Ground, hand: Hand) -> Parameters:
    ground.order()
    hand.claim()
    dead = ground.worker()
    ground.sql(
        "update vidgen.workers set dead_at = now() - interval '2 hours' where id = %s",
        dead.worker_id,
    )
    return {}


def a_task_that_was_locked(ground: Ground, hand: Hand) -> Parameters:  # noqa: ARG001
    ground.sql(
        "insert into vidgen.passed_over (task_id, until)"
        " values (gen_random_uuid(), now() - interval '2 hours')"
    )
    return {}


def another_keys_generation(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    return {**held.fence, "key_fingerprint": "another"}


def generations_left_alone(ground: Ground, hand: Hand) -> Parameters:
    """One whose task waits, and one that nobody follows, of a key that has gone."""
    a_generation_nobody_follows(ground, hand)
    hand.about(ground.held(hand, "start_task", *STAGE[:2]), "requeue")
    ground.sql(
        "update vidgen.submissions set account = 'old', key_fingerprint = 'old',"
        " sent_at = now() - interval '2 hours'"
    )
    ground.sql("update vidgen.resumes set followers = array['old', 'key:old']")
    return {}


def a_failure_with_a_cost(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "end_generation", ended_state="failed")
    ground.sql(
        "update vidgen.submissions"
        "   set ended_at = now() - interval '1 hour', cost_read_at = now() - interval '1 hour'"
    )
    return held.fence


def a_still_that_ended(ground: Ground, hand: Hand) -> Parameters:
    return ground.held(hand, "start_task", *STAGE[:3]).fence


def lost_slots(ground: Ground, hand: Hand) -> Parameters:
    """An unanswered submission of long ago, and the slot of a task that is gone."""
    hand("set_limit", model="gen4_image", max_generations=3)
    ground.held(hand, "start_task", *STAGE[:1])
    ground.held(hand)
    ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
    ground.sql(
        "update vidgen.slots set taken_at = now() - interval '1 hour' where task_id is not null"
    )
    return {}


def refused_long_ago(ground: Ground, hand: Hand) -> Parameters:
    """Rows that refused to be claimed, whose pause is over: one for the last time, one not."""
    one, other = ground.order(), ground.order()
    refuse(ground, one, other)
    hand.claim()
    ground.sql("update vidgen.refusals set until = now()")
    ground.sql("update vidgen.refusals set tries = 8 where task_id = %s", other)
    let_go(ground)
    return {}


def an_owed_scene(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand)
    scene_id = ground.task(held.id)["scene_id"]
    with ground.hand().holding() as client:
        client.conn.execute("select from video_scenes where id = %s for update", [scene_id])
        assert hand.about(held, "start_task")[0]["scene_refused"].startswith("55P03")
    return {"scene_id": scene_id}


def unanswered_of_long_ago(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:1])
    hand.about(held, "fail")
    ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
    return {}


def a_task_of_long_ago(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE)
    hand.about(held, "fail")
    user = ground.task(held.id)["user_id"]
    ground.sql("update public.user_credits set balance = balance + 1 where user_id = %s", user)
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ago = "now() - interval '1 year'"
        ground.sql(f"update public.video_generation_tasks set completed_at = {ago}")
        ground.sql(f"update vidgen.submissions set sent_at = {ago}")
        ground.sql(f"update vidgen.holds set closed_at = {ago}")
        ground.sql(f"update public.credit_entries set created_at = {ago}")
    return {}


def an_upload_nobody_charges(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:3])
    hand.about(held, "cancel")
    ground.sql("update vidgen.uploads set since = now() - interval '2 hours'")
    return {}


def an_upload_that_is_removed(ground: Ground, hand: Hand) -> Parameters:
    an_upload_nobody_charges(ground, hand)
    return {"upload_ids": [row["upload_id"] for row in hand("take_uploads")]}


def limits_to_read(_: Ground, hand: Hand) -> Parameters:
    hand("expect_limit")
    return {}


def a_rejection_of_long_ago(ground: Ground, _: Hand) -> Parameters:
    ground.sql(
        "insert into vidgen.rejections (user_id, digest, task_id, rejected_at)"
        " values (%s, 'digest', %s, now() - interval '2 days')",
        uuid4(), uuid4(),
    )  # fmt: skip
    return {}


STATES: Mapping[str, Prepare] = {
    "register_worker": nothing,
    "share_buckets": lambda *_: {"images_bucket": "other", "videos_bucket": "another"},
    "heartbeat": held_lost_and_orphaned,
    "line_up": arrivals,
    "claim": a_claimable_task,
    "resume": tasks_to_go_on,
    "claim_films": a_film_to_claim,
    "wake_films": a_film_whose_part_has_ended,
    "take_deliveries": a_delivery,
    "book_delivery": a_taken_delivery,
    "return_deliveries": a_taken_delivery,
    "forget_deliveries": a_delivery_of_long_ago,
    "clear_line": a_line_of_cancelled_tasks,
    "claim_cancelled": a_waiting_cancel,
    "claim_trial": a_storm,
    "take_over": the_dead,
    "heartbeats": the_dead,
    "paid_submissions": a_generation_nobody_follows,
    "read_submission": a_generation_nobody_follows,
    "generation_times": a_still_that_ended,
    "waited": a_task_that_waits,
    "close_generation": a_generation_nobody_follows,
    "stray_submissions": a_generation_nobody_follows,
    "costs_to_read_again": a_failure_with_a_cost,
    "is_gone": another_keys_generation,
    "stands_aside": nothing,
    "let_anyone_follow": generations_left_alone,
    "hand_back": held_tasks,
    "leave": nothing,
    "retry_refused": refused_long_ago,
    "is_troubled": a_trouble,
    "try_rows": nothing,
    "owed_scenes": an_owed_scene,
    "write_owed_scene": an_owed_scene,
    "give_up_submissions": unanswered_of_long_ago,
    "close_gate": nothing,
    "note_trouble": a_trouble,
    "meet_gate": a_refusal_met_again,
    "relieve": a_trouble_behind_a_gate,
    "try_kept": a_kept_output,
    "take_probe": a_closed_gate,
    "open_gate": a_closed_gate,
    "read_gates": a_closed_gate,
    "ask_limits": limits_to_read,
    "set_limit": lambda *_: {"model": "gen4_image", "max_generations": 3},
    "expect_limit": nothing,
    "free_slots": lost_slots,
    "sweep_workers": stale_rows,
    "sweep_gates": gates_of_nobody,
    "sweep_turns": stale_rows,
    "sweep_passed": a_task_that_was_locked,
    "sweep_limits": a_rejection_of_long_ago,
    "fleet": a_closed_gate,
    "take_duty": nothing,
    "take_uploads": an_upload_nobody_charges,
    "uploads_removed": an_upload_that_is_removed,
    "uploads_left": an_upload_nobody_charges,
    "forget_tasks": a_task_of_long_ago,
    "forget_holds": a_task_of_long_ago,
    "audit_entries": a_task_of_long_ago,
    "audit_users": a_task_of_long_ago,
    "note_audit": lambda *_: {"discrepancies": 3},
    "read_audit": nothing,
}
"""The state in which a query that carries no task's fence has something to do."""
