"""Admission: never more generations in flight than the provider's tier allows, over all workers.

First the slots themselves, by the worker's own statements on connections held open; then workers
and processes, judged by the Runway double: it says of each generation whether it had to wait there.
"""

import asyncio
import signal
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.hands import HELD_UP_BY_ITS_PID, PATIENCE, STAGE, Ground, Hand, Held
from tests.support.watching import until_true, watch
from tests.support.world import World, hearing, recorded
from vidgen_worker.telemetry import bus, events
from vidgen_worker.telemetry.bus import subscribed

IMAGE, VIDEO = "gen4_image", "gen4_turbo"
BOTH = ("image", "video")


def limit(hand: Hand, model: str, slots: int | None) -> None:
    """Set a limit as the janitor does."""
    hand("set_limit", model=model, max_generations=slots)


def taken(ground: Ground, model: str = IMAGE) -> tuple[int, int]:
    """How many slots of a model are reserved for a task, and how many a submission has."""
    row = ground.one(
        "select count(*) filter (where submission_id is null) as reserved, count(submission_id)"
        " as submitted from vidgen.slots where model = %s and task_id is not null",
        model,
    )
    return row["reserved"], row["submitted"]


def slots(ground: Ground, model: str = IMAGE) -> int:
    """How many generations of a model may be in flight."""
    return int(ground.one("select vidgen.count_slots('runway', 'default', %s) as n", model)["n"])


def refused(hand: Hand, held: Held, stage: str = "image") -> bool:
    """Whether a submission finds no slot."""
    (row,) = hand.about(held, "begin_submission", **_of(stage))
    return bool(row["refused"])


def _of(stage: str) -> Mapping[str, str]:
    return {"stage": "image"} if stage == "image" else {"stage": "video", "model": VIDEO}


# The slots.


def test_a_claim_takes_no_more_than_there_are_slots(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 2)
    ground.orders(ground.user(), 5)
    assert len(hand.claim(slots=5)) == 2
    assert hand.claim(slots=5) == []
    assert taken(ground) == (2, 0)
    assert hand.still_waiting() == {"resumable": False, "waiting": False}, (
        "asking again would find nothing"
    )


def test_without_a_limit_there_are_no_slots_to_take(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, None)
    ground.orders(ground.user(), 5)
    held = hand.claim(slots=5)
    assert len(held) == 5
    hand.walk(held[0], "start_task", *STAGE)
    assert ground.none("select from vidgen.slots")


def test_claims_that_overlap_never_share_a_slot(ground: Ground) -> None:
    """The first one's transaction is open: the second sees nothing of what it took."""
    first, second = ground.worker(), ground.worker()
    limit(first, IMAGE, 3)
    for _ in range(6):
        ground.order()
    first("line_up")
    with first.holding():
        mine = first.claim(slots=2)
        others = second.claim(slots=6)
        assert len(mine) == 2
        assert len(others) == 1
    assert taken(ground) == (3, 0)
    assert second.claim(slots=6) == []


def test_four_workers_race_and_never_have_more_in_flight_than_the_limit(ground: Ground) -> None:
    """Judged by a trigger inside the database: how many are open when one more begins."""
    ground.sql("create table public.crowd (open integer not null)")
    ground.sql(
        "create function public.count_the_crowd() returns trigger language plpgsql"
        " security definer as $$ begin"
        "  insert into public.crowd select count(*) from vidgen.slots where submission_id is not"
        "  null; return null; end $$"
    )
    ground.sql(
        "create trigger count_the_crowd after insert on vidgen.submissions"
        " for each row execute function public.count_the_crowd()"
    )
    hands = [ground.worker() for _ in range(4)]
    limit(hands[0], IMAGE, 4)
    limit(hands[0], VIDEO, None)
    for _ in range(20):
        ground.orders(ground.user(), 3)
    ended: list[UUID] = []

    def work(hand: Hand) -> None:
        while len(ended) < 60:
            for held in hand.claim(slots=3):
                hand.walk(held, "start_task", *STAGE)
                hand.walk(held_again(held), *STAGE, stage="video")
                hand.about(held, "complete", video_path="v")
                ended.append(held.id)

    threads = [threading.Thread(target=work, args=(hand,)) for hand in hands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == len(set(ended)) == 60
    most = ground.one("select max(open) as most from public.crowd")["most"]
    assert 1 < most <= 4
    assert taken(ground) == (0, 0)


def held_again(held: Held) -> Held:
    """The same attempt, with the ids of another submission and generation."""
    return Held(held.id, held.attempt, held.worker_id)


def test_a_slot_belongs_to_the_generation_whoever_lives_or_dies(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    held = ground.held(hand, "start_task", *STAGE[:1])
    assert taken(ground) == (0, 1)
    ground.order()
    hand("hand_back", task_ids=[held.id])
    assert taken(ground) == (0, 1), "no answer yet: it may be in flight"
    (again,) = hand.claim()
    assert again.id == held.id, "resumed without a slot; the other task waits for one"
    successor = Held(
        held.id, again.attempt, again.worker_id, held.submission_id, held.generation_id
    )
    hand.walk(successor, "answer_submission")
    assert hand.claim() == []
    hand.walk(successor, "end_generation")
    assert taken(ground) == (0, 0)
    assert len(hand.claim()) == 1


@pytest.mark.parametrize("end", ["fail", "cancel", "requeue", "hand_back"])
def test_a_task_that_ends_before_it_submits_gives_its_slot_back(ground: Ground, end: str) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    held = ground.held(hand)
    assert taken(ground) == (1, 0)
    hand.about(held, end, task_ids=[held.id], delay=timedelta(hours=1))
    assert taken(ground) == (0, 0)


def test_a_refused_submission_keeps_its_slot_while_its_task_runs(ground: Ground) -> None:
    """The still's second address must not stand behind everybody who waits for a video slot."""
    hand = ground.worker()
    first, second = (ground.held(hand, "start_task", *STAGE) for _ in range(2))
    hand.about(first, "requeue")
    hand.about(second, "requeue")
    limit(hand, VIDEO, 1)
    (again,) = hand.claim()
    for _ in range(2):
        one = held_again(again)
        assert not refused(hand, one, "video")
        hand.about(one, "answer_submission", stage="video", answer="refused", generation_id=None)
        assert taken(ground, VIDEO) == (1, 0)
    hand.about(again, "requeue")
    assert taken(ground, VIDEO) == (0, 0)


def test_a_submission_that_is_sent_twice_takes_one_slot(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 2)
    held = ground.held(hand, "start_task", "begin_submission")
    assert not refused(hand, held), "the repeat of a statement whose answer got lost"
    assert taken(ground) == (0, 1)


def test_an_unknown_submission_keeps_its_slot_until_what_it_began_is_over(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    held = ground.held(hand, "start_task", "begin_submission")
    hand.about(held, "answer_submission", answer="unknown", generation_id=None)
    hand.about(held, "requeue")
    ground.sql("update vidgen.slots set taken_at = now() - interval '2 minutes'")
    ground.sql("update vidgen.submissions set sent_at = now() - interval '2 minutes'")
    assert hand("free_slots") == []
    assert hand.claim() == []
    ground.sql("update vidgen.submissions set sent_at = now() - interval '5 minutes'")
    assert [row["model"] for row in hand("free_slots")] == [IMAGE]
    assert [again.id for again in hand.claim()] == [held.id]


def test_images_and_videos_have_slots_of_their_own(ground: Ground) -> None:
    """Images fill up; what is past its image goes on, and the other way round."""
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    limit(hand, VIDEO, 1)
    first = ground.held(hand, "start_task", *STAGE)
    assert not refused(hand, held_again(first), "video"), "the attempt goes straight on"
    second = ground.held(hand, "start_task", *STAGE)
    assert refused(hand, held_again(second), "video")
    hand.about(second, "requeue")
    assert hand.claim() == [], "it waits for the video's slot"
    third = ground.order()
    assert [held.id for held in hand.claim()] == [third], "which keeps no image waiting"


def test_a_video_slot_goes_to_who_has_waited_longest(ground: Ground) -> None:
    """A task that has just finished its image does not go before those that wait for a clip."""
    hand = ground.worker()
    limit(hand, VIDEO, 1)
    busy = ground.held(hand, "start_task", *STAGE)
    running = held_again(busy)
    hand.walk(running, *STAGE[:2], stage="video")
    waiting = ground.held(hand, "start_task", *STAGE)
    assert refused(hand, held_again(waiting), "video")
    hand.about(waiting, "requeue")
    late = ground.held(hand, "start_task", *STAGE)
    hand.walk(running, "end_generation", stage="video")
    assert refused(hand, held_again(late), "video"), "a slot is free, and somebody was first"
    hand.about(late, "requeue")
    assert [held.id for held in hand.claim()] == [waiting.id]
    assert taken(ground, VIDEO) == (1, 0)


def test_no_image_starts_while_far_more_wait_for_a_video_than_there_are_slots(
    ground: Ground,
) -> None:
    hand = ground.worker()
    limit(hand, VIDEO, 2)
    ground.orders(ground.user(), 10)
    begun = hand.claim(slots=10)
    assert len(begun) == 4, "twice as many as video slots are under way to one"
    assert hand.still_waiting() == {"resumable": False, "waiting": False}
    hand.walk(begun[0], "start_task", *STAGE)
    assert not refused(hand, held_again(begun[0]), "video")
    assert len(hand.claim(slots=10)) == 1, "one has got there: one more may begin"


def test_a_suspect_that_is_run_alone_needs_a_slot_too(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    blocker = ground.held(hand, "start_task", *STAGE[:2])
    task = ground.order()
    ground.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)
    assert hand.claim() == []
    hand.walk(blocker, "end_generation")
    assert [held.id for held in hand.claim()] == [task]
    assert taken(ground) == (1, 0)


@pytest.mark.parametrize("model", [IMAGE, VIDEO])
def test_a_slot_is_left_for_a_task_that_is_to_run_alone(ground: Ground, model: str) -> None:
    """A suspect needs a slot and an idle worker in one claim, and others would be quicker."""
    hand = ground.worker()
    steps = ("start_task", *STAGE) if model == VIDEO else ()
    (suspect, other) = (ground.held(hand, *steps), ground.held(hand, *steps))
    for held in (other, suspect):
        assert hand.about(held, "requeue")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", suspect.id
    )
    limit(hand, model, 1)

    assert hand.claim(idle=False) == [], "the only slot is not for the other one"
    assert [held.id for held in hand.claim(idle=True)] == [suspect.id]
    assert taken(ground, model) == (1, 0)
    limit(hand, model, 2)
    # The suspect's user may come first, with nothing to begin here.
    taken_up = hand.claim(idle=False) or hand.claim(idle=False)
    assert [held.id for held in taken_up] == [other.id]


def past_image(ground: Ground, hand: Hand, tasks: int) -> tuple[Held, list[Held]]:
    """A suspect, and others, that wait for their clip."""
    held = [ground.held(hand, "start_task", *STAGE) for _ in range(1 + tasks)]
    for one in held:
        assert hand.about(one, "requeue")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", held[0].id
    )
    return held[0], held[1:]


def test_a_worker_with_one_place_goes_on_with_what_waits_beside_a_suspect(ground: Ground) -> None:
    """The slot that is left is one of those there are, not one of those there is a place for."""
    hand = ground.worker()
    _, others = past_image(ground, hand, 2)
    limit(hand, VIDEO, 5)
    ground.order()
    taken_up = [hand.claim(slots=1, idle=False)[0].id for _ in others]
    assert taken_up == [other.id for other in others], "before anything new"


def test_a_slot_that_is_left_keeps_nothing_new_waiting(ground: Ground) -> None:
    """The others past their image can't have it: a busy worker goes on with what it may begin."""
    hand = ground.worker()
    past_image(ground, hand, 1)
    limit(hand, VIDEO, 5)
    ground.sql(
        "update vidgen.slots set task_id = gen_random_uuid(), taken_at = now()"
        " where id > (select min(id) from vidgen.slots)"
    )
    new = ground.order()
    assert [held.id for held in hand.claim(idle=False)] == [new]


def test_no_slot_is_left_for_a_suspect_that_a_gate_keeps_from_running(ground: Ground) -> None:
    hand = ground.worker()
    _, (other,) = past_image(ground, hand, 1)
    limit(hand, VIDEO, 1)
    hand("close_gate", model=IMAGE)
    assert [held.id for held in hand.claim()] == [other.id]


def test_a_busy_worker_asks_no_more_for_what_is_not_for_it(ground: Ground) -> None:
    """A suspect alone, or no slot but the one left for it: the next reason comes by itself."""
    hand = ground.worker()
    past_image(ground, hand, 0)
    for slots in (1, 5):
        limit(hand, VIDEO, slots)
        assert hand.still_waiting(idle=False) == {"resumable": False, "waiting": False}
    assert hand.still_waiting(idle=True)["resumable"]
    ground.sql("delete from vidgen.resumes")
    limit(hand, IMAGE, 1)
    ground.order()
    hand("line_up")
    assert hand.still_waiting(idle=False) == {"resumable": False, "waiting": False}
    limit(hand, IMAGE, 2)
    assert hand.still_waiting(idle=False) == {"resumable": False, "waiting": True}


def heard(listener: Hand) -> list[str]:
    """The notifications of the workers' channel so far: our own message comes after them."""
    listener.conn.execute("select pg_notify('vidgen_tasks', 'the end')")
    words: list[str] = []
    for notify in listener.conn.notifies(timeout=PATIENCE):
        if notify.payload == "the end":
            return words
        words.append(notify.payload)
    raise AssertionError("not even our own word came")


def test_a_free_slot_wakes_workers_only_where_somebody_waits(ground: Ground) -> None:
    hand, listener = ground.worker(), ground.hand()
    limit(hand, IMAGE, 1)
    listener.conn.execute("listen vidgen_tasks")
    first = ground.held(hand, "start_task", *STAGE[:2])
    heard(listener)

    assert hand.about(first, "end_generation")
    assert heard(listener) == []

    assert hand.about(first, "fail")
    second = ground.held(hand, "start_task", *STAGE[:2])
    ground.order()
    hand("line_up")
    heard(listener)
    assert hand.about(second, "end_generation")
    assert heard(listener) == [""]

    assert hand.about(second, "fail")
    (third,) = hand.claim()
    hand.walk(third, "start_task", *STAGE[:2])
    ground.order()
    hand("line_up")
    ground.sql(
        "update vidgen.turns set waiting_since = null, due_at = now()"
        " where waiting_since is not null"
    )
    heard(listener)
    assert hand.about(third, "end_generation")
    assert heard(listener) == [""], "due, and not yet in the line"


def test_a_limit_goes_up_and_down_under_what_runs(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 3)
    ground.orders(ground.user(), 6)
    held = hand.claim(slots=6)
    for one in held:
        hand.walk(one, "start_task", *STAGE[:2])
    limit(hand, IMAGE, 1)
    assert taken(ground) == (0, 3)
    hand.walk(held[0], "end_generation")
    assert hand.claim() == [], "two are in flight, one may be"
    hand.walk(held[1], "end_generation")
    assert hand.claim() == []
    hand.walk(held[2], "end_generation")
    assert len(hand.claim()) == 1
    assert slots(ground) == 1
    limit(hand, IMAGE, 2)
    (last,) = hand.claim()
    limit(hand, IMAGE, 0)
    assert slots(ground) == 0, "what was reserved only goes back as well"
    hand.walk(last, "start_task")
    assert refused(hand, last)
    assert hand.claim() == []
    limit(hand, IMAGE, None)
    assert len(hand.claim()) == 1
    assert not refused(hand, last)


def test_what_began_without_a_limit_counts_when_there_is_one(ground: Ground) -> None:
    hand = ground.worker()
    ground.held(hand, "start_task", *STAGE[:2])
    first = ground.held(hand, "start_task", *STAGE[:2])
    limit(hand, IMAGE, 2)
    ground.order()
    assert hand.claim() == []
    hand.walk(first, "end_generation")
    assert len(hand.claim()) == 1


def test_the_limit_is_of_one_key(ground: Ground) -> None:
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    ground.orders(ground.user(), 3)
    assert len(hand.claim()) == 1
    assert len(hand.claim(slots=1, account="another")) == 1


def test_the_cap_of_a_user_holds_while_claims_overlap(ground: Ground) -> None:
    """The second claim waits for no lock: it skips users whose turn another claim has taken."""
    first, second = ground.worker(), ground.worker()
    user = ground.user()
    ground.orders(user, 6)
    first("line_up")
    with first.holding():
        assert len(first.claim(slots=1, max_running_per_user=2)) == 1
        assert second.claim(slots=5, max_running_per_user=2) == []
    assert len(second.claim(slots=5, max_running_per_user=2)) == 1
    assert first.claim(max_running_per_user=2) == []


def test_the_cap_of_a_user_holds_when_eight_workers_race(ground: Ground) -> None:
    user = ground.user()
    hands = [ground.worker() for _ in range(8)]
    ground.orders(user, 40)
    done: list[UUID] = []
    most: list[int] = []

    def work(hand: Hand) -> None:
        while len(done) < 40:
            ground_turn(hand)
            for held in hand.claim(slots=2, max_running_per_user=3):
                most.append(running(hand, user))
                hand.about(held, "fail")
                done.append(held.id)

    threads = [threading.Thread(target=work, args=(hand,)) for hand in hands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == len(set(done)) == 40
    assert max(most) <= 3


def test_the_cap_of_a_user_holds_for_a_claim_with_an_old_snapshot(ground: Ground) -> None:
    """The claim counts before another one commits, and locks the user's turn after that."""
    ground.sql(HELD_UP_BY_ITS_PID)
    first, second = ground.worker(), ground.worker()
    user = ground.user()
    ground.orders(user, 6)
    first("line_up")
    ground.sql("select pg_advisory_lock(%s)", second.conn.info.backend_pid)
    late = second.later(lambda: second("claim", slots=5, max_running_per_user=2))
    assert ground.waits(late), "it has its snapshot and looks at the gates"
    urgent = {ground.order(user, priority=5), ground.order(user, priority=5)}
    first("line_up")
    assert {row["id"] for row in first("claim", slots=5, max_running_per_user=2)} == urgent
    # At the cap he has left the line; as a second later, he is back in it.
    ground_turn(first)
    first("line_up")
    ground.sql("select pg_advisory_unlock(%s)", second.conn.info.backend_pid)
    assert late.result() == []


def ground_turn(hand: Hand) -> None:
    """A user at the cap comes back a second later: let that second be over."""
    hand.conn.execute("update vidgen.turns set due_at = now() where waiting_since is null")


def running(hand: Hand, user: UUID) -> int:
    """How many tasks of a user run, as committed."""
    row = hand.conn.execute(
        "select count(*) as n from public.video_generation_tasks"
        " where user_id = %s and status = 'processing'",
        [user],
    ).fetchone()
    assert row is not None
    return int(row["n"])


def test_retrying_many_goes_neither_around_the_cap_nor_past_the_line(ground: Ground) -> None:
    hand = ground.worker()
    user = ground.user()
    tasks = [ground.held(hand, "start_task", *STAGE, user_id=user) for _ in range(4)]
    for task in tasks:
        hand.about(task, "cancel")
    other = ground.order()
    hand("line_up")
    for task in tasks:
        ground.sql("select vidgen.retry_task(%s)", task.id)
    first, *rest = hand.claim(max_running_per_user=1)
    assert first.id == other
    assert len(rest) == 1


# Slots must not leak, and loops must not run empty or hot.


def test_a_submission_that_died_without_an_answer_is_given_up_for_good(ground: Ground) -> None:
    """Its task is gone, so that no worker counts it as unknown."""
    hand = ground.worker()
    limit(hand, IMAGE, 1)
    held = ground.held(hand, "start_task", "begin_submission")
    hand.about(held, "cancel")
    assert taken(ground) == (0, 1)
    ground.sql("update vidgen.submissions set sent_at = now() - interval '5 minutes'")
    ground.sql("update vidgen.slots set taken_at = now() - interval '5 minutes'")
    assert len(hand("free_slots")) == 1
    limit(hand, IMAGE, 1)
    ground.order()
    assert len(hand.claim()) == 1
    hand.about(held, "answer_submission")
    (late,) = ground.sql(
        "select answer, details, late_at is not null as is_late from vidgen.submissions"
    )
    assert late == {
        "answer": "generation", "details": "late: nobody recorded an answer", "is_late": True
    }  # fmt: skip


def test_a_limit_that_goes_down_waits_for_an_end_that_is_being_booked(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    limit(hand, IMAGE, 3)
    ground.orders(ground.user(), 4)
    held = hand.claim(slots=3)
    for one in held:
        hand.walk(one, "start_task", *STAGE[:2])
    with hand.holding():
        hand.walk(held[0], "end_generation")
        late = other.later(lambda: limit(other, IMAGE, 1))
        assert ground.waits(late)
    late.result()
    assert slots(ground) == 2, "those in flight, and none to begin with"
    assert hand.claim() == []


def test_two_ends_at_once_may_leave_one_too_few_until_the_limit_is_set_again(
    ground: Ground,
) -> None:
    hand, other = ground.worker(), ground.worker()
    limit(hand, IMAGE, 2)
    ground.orders(ground.user(), 3)
    held = hand.claim(slots=2)
    for one in held:
        hand.walk(one, "start_task", *STAGE[:2])
    limit(hand, IMAGE, 1)
    with hand.holding():
        hand.walk(held[0], "end_generation")
        other.about(held[1], "end_generation", worker_id=hand.worker_id)
    assert slots(ground) <= 1
    limit(hand, IMAGE, 1)
    assert slots(ground) == 1
    assert len(hand.claim()) == 1


def test_what_resumes_keeps_no_free_slot_from_who_goes_straight_on(ground: Ground) -> None:
    """A claim locks slots only for its tasks: a locked slot looks like a taken one."""
    hand, other = ground.worker(), ground.worker()
    limit(hand, VIDEO, 3)
    begun = ground.held(hand, "start_task", *STAGE)
    living = ground.held(hand, "start_task", *STAGE[:2])
    hand("hand_back", task_ids=[living.id])
    with other.holding():
        assert [row["id"] for row in other("resume", slots=5)] == [living.id]
        assert not refused(hand, held_again(begun), "video")


def test_a_claim_with_an_old_snapshot_takes_nobodys_slot(ground: Ground) -> None:
    """The claim sees a slot as free that another has just reserved, and locks it for a moment."""
    ground.sql(HELD_UP_BY_ITS_PID)
    first, second = ground.worker(), ground.worker()
    limit(first, IMAGE, 3)
    for _ in range(2):
        ground.order()
    first("line_up")
    with second.holding():
        ground.sql("select pg_advisory_lock(%s)", second.conn.info.backend_pid)
        late = second.later(lambda: second("claim", slots=5))
        assert ground.waits(late), "it has its snapshot and looks at the gates"
        (row,) = first("claim", slots=1)
        held = Held(row["id"], row["attempt"], row["worker_id"])
        first.walk(held, "start_task")
        ground.sql("select pg_advisory_unlock(%s)", second.conn.info.backend_pid)
        assert len(late.result()) == 1
        submits = first.later(lambda: refused(first, held))
        assert ground.waits(submits)
    assert not submits.result()
    assert taken(ground) == (1, 1)


def test_one_task_never_has_two_slots_of_a_model(ground: Ground) -> None:
    """A claim locks its slot for a moment: the submission waits for that claim."""
    hand, other = ground.worker(), ground.worker()
    limit(hand, IMAGE, 2)
    held = ground.held(hand, "start_task")
    with other.holding():
        other.conn.execute("select from vidgen.slots where task_id is not null for update")
        late = hand.later(lambda: refused(hand, held))
        assert ground.waits(late)
    assert not late.result()
    assert taken(ground) == (0, 1)


def test_what_waits_for_later_or_runs_with_another_key_keeps_no_image_waiting(
    ground: Ground,
) -> None:
    hand = ground.worker()
    stranger = ground.hand()
    stranger("register_worker", account="another", key_fingerprint="another")
    ground.orders(ground.user(), 5)
    assert len(stranger.claim(slots=5, account="another")) == 5
    limit(hand, VIDEO, 1)
    for _ in range(2):
        past = ground.held(hand, "start_task", *STAGE)
        hand.about(past, "requeue", delay=timedelta(minutes=10))
    ground.orders(ground.user(), 5)
    assert len(hand.claim()) == 2


def test_a_retried_task_that_has_its_still_takes_no_image_slot(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    limit(hand, IMAGE, 1)
    limit(hand, VIDEO, 5)
    held = ground.held(hand, "start_task", *STAGE, user_id=user)
    hand.about(held, "fail")
    ground.sql("select public.retry_video_generation_task(%s)", held.id)
    (again,) = hand.claim()
    assert again.id == held.id
    hand.walk(again, "start_task")
    hand.walk(Held(again.id, again.attempt, again.worker_id), *STAGE[:2], stage="video")
    assert (taken(ground, IMAGE), taken(ground, VIDEO)) == ((0, 0), (0, 1))
    other = ground.order()
    assert [one.id for one in hand.claim()] == [other]


# Workers.


async def test_a_setting_is_set_again_and_again(world: World) -> None:
    """The repeated setting restores lost slots."""
    async with (
        hearing(events.WorkerStarted) as started,
        world.worker(VIDGEN_IMAGE_SLOTS="3", VIDGEN_VIDEO_SLOTS="3") as worker,
    ):
        await asyncio.wait_for(started.wait(), 20)
        await worker.janitor.read_limits()
        world.sql("delete from vidgen.slots")
        world.sql("update vidgen.limits set asked_at = now() - interval '2 minutes'")
        await worker.janitor.read_limits()
        assert world.one("select count(*) as n from vidgen.slots")["n"] == 6


async def test_a_request_frozen_for_another_model_does_not_run_hot(world: World) -> None:
    """The claim sees a slot of the configured model, the request needs one of its own."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, visual_prompt="[[busy x99]] it moves"))
    async with world.worker(VIDGEN_RETRY_BACKOFF="1m"):
        await until_true(
            world, "select count(*) = 1 from vidgen.submissions"
            " where stage = 'video' and answer = 'refused'",
        )  # fmt: skip
        await world.until(task, "pending")
    world.sql("update vidgen.limits set max_generations = 0, asked_at = now()")
    world.sql("delete from vidgen.slots")
    world.sql("update video_generation_tasks set run_after = now() where id = %s", task)
    before = world.task(task)["attempt"]
    async with (
        hearing(events.TaskRequeued) as waits,
        world.worker(VIDGEN_VIDEO_MODEL="gen4.5", VIDGEN_QUEUE_POLL="1h"),
    ):
        await asyncio.wait_for(waits.wait(), 30)
        row = await world.until(task, "pending", attempt=before + 1)
        assert row["message"] == "Waiting for a place at the provider"
        assert row["run_after"] > row["updated_at"], "not at once again"
        await world.beats(2)
    assert world.task(task)["attempt"] == before + 1


async def test_a_worker_learns_the_limits_of_its_tier(world: World) -> None:
    """And learns of an upgrade: the account is read again and again."""
    world.runway.set(tier=1)
    with recorded() as heard:
        async with hearing(events.LimitRead) as known, world.worker() as worker:
            await asyncio.wait_for(known.wait(), 20)
            world.runway.set(tier=3)
            world.sql("update vidgen.limits set asked_at = now() - interval '2 minutes'")
            await worker.janitor.read_limits()
    read = [(event.model, event.slots) for event in heard if isinstance(event, events.LimitRead)]
    assert read == [(IMAGE, 2), (VIDEO, 1), (IMAGE, 5), (VIDEO, 5)]
    limits = world.sql("select model, max_generations as slots from vidgen.limits order by model")
    assert limits == [{"model": IMAGE, "slots": 5}, {"model": VIDEO, "slots": 5}]


async def test_one_worker_of_the_fleet_reads_the_account(world: World) -> None:
    watch(world)
    with recorded() as heard:
        async with world.worker() as one, world.worker() as other:
            await until_true(
                world, "select count(*) = 2 and bool_and(read_at is not null) from vidgen.limits"
            )
            await one.janitor.read_limits()
            await other.janitor.read_limits()
    read = [event.model for event in heard if isinstance(event, events.LimitRead)]
    assert sorted(read) == [IMAGE, VIDEO]


async def test_a_setting_overrides_the_tier(world: World) -> None:
    world.runway.set(tier=1)
    more = {"VIDGEN_IMAGE_SLOTS": "7", "VIDGEN_VIDEO_SLOTS": "3"}
    async with hearing(events.WorkerStarted) as started, world.worker(**more) as worker:
        await asyncio.wait_for(started.wait(), 20)
        world.sql("update vidgen.limits set asked_at = null")
        await worker.janitor.read_limits()
        limits = world.sql("select model, max_generations as slots from vidgen.limits order by 1")
        assert limits == [{"model": IMAGE, "slots": 7}, {"model": VIDEO, "slots": 3}]


async def test_an_unlimited_account_has_no_slots(world: World) -> None:
    world.runway.set(unlimited=True)
    async with hearing(events.LimitRead) as known, world.worker():
        await asyncio.wait_for(known.wait(), 20)
        user = world.user()
        task = world.order(user, world.scene(user))
        row = await world.until(task)
        assert row["status"] == "completed"
    assert world.sql("select * from vidgen.slots") == []


async def test_while_the_limits_can_t_be_read_one_at_a_time_goes_on(world: World) -> None:
    """Every tier allows one; and it takes one submission to find out what is wrong with a key."""
    world.runway.set(outage=True)
    watch(world)
    with recorded() as heard:
        async with hearing(events.LimitsUnread) as unread, world.worker():
            await asyncio.wait_for(unread.wait(), 30)
            limits = world.sql("select max_generations as slots, read_at from vidgen.limits")
            assert limits == [{"slots": 1, "read_at": None}] * 2
            world.runway.set(outage=False)
            world.sql("update vidgen.limits set asked_at = now() - interval '2 minutes'")
            await until_true(world, "select bool_and(max_generations = 10) from vidgen.limits")
    assert [event.model for event in heard if isinstance(event, events.LimitRead)] == [IMAGE, VIDEO]


async def test_what_waits_for_a_slot_waits_in_the_row_cancellable_and_free(world: World) -> None:
    watch(world)
    user = world.user()
    tasks = []
    for _ in range(3):
        scene = world.scene(user, image_prompt="[[stall]] a bottle")
        tasks.append(world.order(user, scene))
    async with world.worker(VIDGEN_IMAGE_SLOTS="1") as worker:
        await world.until(tasks[0], "processing")
        await until_true(
            world, "select count(*) = 1 from vidgen.submissions where answer = 'generation'"
        )
        await world.beats(3)
        assert [world.task(task)["status"] for task in tasks] == [
            "processing",
            "pending",
            "pending",
        ]
        assert len(worker.process.held.tasks) == 1
        world.as_user(user, "select public.cancel_video_generation_task(%s)", tasks[1])
        assert world.task(tasks[1])["status"] == "cancelled"
        world.as_user(user, "select public.cancel_video_generation_task(%s)", tasks[0])
        await world.until(tasks[0], "cancelled")
        await until_true(
            world, "select count(*) = 2 from vidgen.submissions where answer = 'generation'"
        )
        world.as_user(user, "select public.cancel_video_generation_task(%s)", tasks[2])
        await world.until(tasks[2], "cancelled")
    assert len(world.runway.generations()) == 2, "the one that waited was never paid for"
    assert world.credits(user) == (1000, 0)


async def test_a_task_that_waits_between_image_and_video_goes_on_by_itself(world: World) -> None:
    """One video slot, four tasks: each waits its turn in Postgres, and pays once per stage."""
    world.runway.set(image_seconds=0.05, video_seconds=2.0)
    user = world.user()
    tasks = [world.order(user, world.scene(user)) for _ in range(4)]
    waited: list[str] = []

    def note(event: bus.Event) -> None:
        if isinstance(event, events.TaskRequeued):
            waited.append(event.code)

    with subscribed(note):
        async with world.worker(VIDGEN_VIDEO_SLOTS="1", VIDGEN_IMAGE_SLOTS="4"):
            rows = [await world.until(task) for task in tasks]
    assert [row["status"] for row in rows] == ["completed"] * 4
    assert {row["failures"] for row in rows} == {0}
    assert set(waited) == {"NO_SLOT"}
    assert len(world.runway.generations()) == 8
    assert world.books_balance()
    assert world.sql("select * from vidgen.slots where task_id is not null") == []


@pytest.mark.slow
async def test_four_workers_and_a_kill_never_let_a_generation_wait_at_the_provider(
    world: World, tmp_path: Path
) -> None:
    """The double allows four images and two videos at once and says whether any had to wait.

    A worker is killed while its generations run: their slots stay taken until they are over.
    """
    watch(world)
    world.runway.set(tier=4, concurrency=None, image_seconds=0.4, video_seconds=0.8)
    tasks = []
    for _ in range(8):
        user = world.user()
        tasks += [world.order(user, world.scene(user)) for _ in range(4)]
    more = {
        "VIDGEN_IMAGE_SLOTS": "4", "VIDGEN_VIDEO_SLOTS": "4", "VIDGEN_LEASE": "1s",
        "VIDGEN_SUBMIT_TIMEOUT": "2s",
    }  # fmt: skip
    world.runway.set(concurrency=4)
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    with (
        world.process(logs[0], **more) as first, world.process(logs[1], **more),
        world.process(logs[2], **more), world.process(logs[3], **more),
    ):  # fmt: skip
        await until_true(
            world,
            "select count(*) > 0 from video_generation_tasks as t join vidgen.workers as w"
            "    on w.id = t.worker_id"
            "  join vidgen.checkpoints as c on c.task_id = t.id and c.state = 'generating'"
            " where w.pid = %s", first.pid,
        )  # fmt: skip
        first.send_signal(signal.SIGKILL)
        rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    for kind in BOTH:
        seen = world.runway.generations(kind=kind)
        assert len(seen) >= len(tasks)
        assert max(generation["throttledSeconds"] for generation in seen) == 0, kind
    assert world.books_balance()
