"""Growth: private rows of old tasks go by themselves, what must be known for ever stays."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.hands import IMAGE_PRICE, STAGE, Ground, Hand, Held, aged, completed
from tests.support.world import PATIENCE, World, hearing, told, vidgen
from vidgen_worker.telemetry.events import BooksDisagree

TASKS = "public.video_generation_tasks"
PRIVATE = ("submissions", "checkpoints", "holds", "charges", "budgets")
KEEP = timedelta(days=90)


def ended(ground: Ground, hand: Hand, user: UUID, end: str) -> Held:
    held = ground.held(hand, "start_task", *STAGE, user_id=user)
    hand.about(held, end)
    return held


def forget(hand: Hand, *, keep: timedelta = KEEP, batch: int = 1000) -> tuple[int, int]:
    """Do the janitor's work: (tasks, holds)."""
    tasks, holds, after = 0, 0, None
    while True:
        (row,) = hand("forget_tasks", keep=keep, after=after, batch=batch)
        tasks, after = tasks + row["tasks"], row["through"]
        gone = hand("forget_holds", keep=keep, batch=batch)[0]["holds"]
        holds += gone
        if after is None and gone < batch:
            return tasks, holds


def counts(ground: Ground) -> dict[str, int]:
    return {
        table: ground.one(f"select count(*) as rows from vidgen.{table}")["rows"]
        for table in PRIVATE
    }


NONE = dict.fromkeys(PRIVATE, 0)


def test_private_rows_of_old_tasks_go_and_task_balance_and_ledger_stay(ground: Ground) -> None:
    user, hand = ground.user(500), ground.worker()
    completed(ground, hand, user)
    ended(ground, hand, user, "fail")
    ended(ground, hand, user, "cancel")
    ground.sql(f"insert into vidgen.budgets (task_id) select id from {TASKS}")
    aged(ground)
    books = "select to_jsonb(e) as entry from public.credit_entries as e order by id"
    before = (
        ground.sql(books),
        ground.credits(user),
        ground.sql(f"select * from {TASKS} order by id"),
    )
    assert forget(hand) == (3, 3)
    assert counts(ground) == NONE
    after = (
        ground.sql(books),
        ground.credits(user),
        ground.sql(f"select * from {TASKS} order by id"),
    )
    assert after == before
    assert ground.books_balance()
    assert forget(hand) == (0, 0)


def test_batches_of_any_size_remove_all_old_rows(ground: Ground) -> None:
    user, hand = ground.user(500), ground.worker()
    for _ in range(5):
        completed(ground, hand, user)
    aged(ground)
    assert forget(hand, batch=3) == (5, 5)
    assert counts(ground) == NONE


def test_rows_of_young_running_and_waiting_tasks_are_kept(ground: Ground) -> None:
    user, hand = ground.user(500), ground.worker()
    running = ground.held(hand, "start_task", *STAGE[:2], user_id=user)
    waiting = ground.held(hand, "start_task", *STAGE, user_id=user)
    hand.about(waiting, "requeue", delay=timedelta(days=200))
    aged(ground)
    young = completed(ground, hand, user)
    assert forget(hand) == (0, 0)
    rows = ground.sql("select distinct task_id from vidgen.submissions")
    assert {row["task_id"] for row in rows} == {waiting.id, running.id, young.id}


def test_rows_that_the_views_still_read_are_not_forgotten(ground: Ground) -> None:
    """For every caller and every age."""
    hand = ground.worker()
    completed(ground, hand, ground.user())
    aged(ground, days=31)
    assert forget(hand, keep=timedelta(0)) == (0, 0)
    aged(ground, days=2)
    assert forget(hand, keep=timedelta(0)) == (1, 1)


def test_a_deleted_task_s_rows_go_too(ground: Ground) -> None:
    hand = ground.worker()
    held = completed(ground, hand, ground.user())
    ground.sql(f"delete from {TASKS} where id = %s", held.id)
    aged(ground)
    assert forget(hand) == (1, 1)
    assert counts(ground) == NONE


@pytest.mark.parametrize("deleted", [True, False])
def test_a_forgotten_id_is_never_used_or_charged_again(ground: Ground, *, deleted: bool) -> None:
    user, hand = ground.user(500), ground.worker()
    held = ended(ground, hand, user, "fail")
    if deleted:
        ground.sql(f"delete from {TASKS} where id = %s", held.id)
    aged(ground)
    forget(hand)
    if not deleted:
        with pytest.raises(psycopg.Error, match="too long ago to be retried") as refused:
            ground.sql("select public.retry_video_generation_task(%s)", held.id)
        assert refused.value.sqlstate == "PT409"
        ground.sql(f"delete from {TASKS} where id = %s", held.id)
    with pytest.raises(psycopg.Error, match="pruned or deleted"):
        ground.sql(
            f"insert into {TASKS} (id, user_id, scene_id) values (%s, %s, %s)",
            held.id, user, ground.scene(user),
        )  # fmt: skip
    assert ground.credits(user) == (500 - IMAGE_PRICE, 0)


def test_a_grant_s_reference_is_refused_a_second_time_however_old(ground: Ground) -> None:
    user, hand = uuid4(), ground.worker()
    grant = "select public.grant_video_credits(%s, %s, 'payment 1')"
    ground.sql(grant, user, 100)
    aged(ground, days=4000)
    forget(hand)
    ground.sql(grant, user, 100)
    assert ground.credits(user) == (100, 0)
    with pytest.raises(psycopg.Error, match="another grant"):
        ground.sql(grant, user, 50)


def test_a_retry_that_is_under_way_keeps_its_rows(ground: Ground) -> None:
    user, hand = ground.user(), ground.worker()
    held = ended(ground, hand, user, "fail")
    aged(ground)
    client = ground.hand()
    with client.holding():
        client.conn.execute("select public.retry_video_generation_task(%s)", [held.id])
        assert forget(hand)[0] == 0, "the row is locked: it is passed over"
    assert forget(hand)[0] == 0
    assert ground.task(held.id)["status"] == "pending"
    assert counts(ground)["charges"] == 1


def test_a_clients_advisory_locks_stop_no_forgetting(ground: Ground) -> None:
    """There are none to take: a turn is a row."""
    hand = ground.worker()
    assert hand("take_duty", duty="forget", every=timedelta(minutes=4)) != []
    assert hand("take_duty", duty="forget", every=timedelta(minutes=4)) == []
    ground.sql("update vidgen.duties set began_at = now() - interval '5 minutes'")
    assert hand("take_duty", duty="forget", every=timedelta(minutes=4)) != []
    ground.sql("update vidgen.duties set began_at = now() + interval '1 hour'")
    assert hand("take_duty", duty="forget", every=timedelta(minutes=4)) != [], "the clock stepped"


def test_the_outlay_of_an_account_stays_the_same_for_reconcile(ground: Ground) -> None:
    from vidgen_worker.client.database import QUERIES  # noqa: PLC0415 - the client's, beside the worker's

    hand = ground.worker()
    completed(ground, hand, ground.user())

    def outlay() -> Any:  # noqa: ANN401 - a number of the database's
        cursor = ground.admin.execute(
            QUERIES["outlay_of_account"],
            {"provider": "runway", "account": "default", "key_fingerprint": "key"},
        )
        return cursor.fetchall()[0]["outlay"]

    before = outlay()
    assert before > 0
    aged(ground)
    forget(hand)
    assert outlay() == before
    completed(ground, hand, ground.user())
    assert outlay() == 2 * before


async def test_pruning_a_forgotten_task_still_deletes_its_files(
    world: World, ground: Ground
) -> None:
    user = world.user()
    task = world.order(user, world.scene(user))
    async with world.worker():
        await world.until(task)
    aged(ground)
    assert forget(ground.worker())[0] == 1
    shown = told(world, "tasks", "show", str(task))
    assert shown["task"]["id"] == str(task) if "task" in shown else True
    done = vidgen(world, "prune", "--objects", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert world.storage.objects() == []


# The log.

MOST_BYTES = 1500


async def test_a_completed_task_is_a_line_per_milestone_in_the_log(
    world: World, tmp_path: Path
) -> None:
    """At ten thousand tasks a day a year of them is five gigabytes, before anything is packed."""
    user, log = world.user(), tmp_path / "worker.log"
    with world.process(log):
        task = world.order(user, world.scene(user))
        assert (await world.until(task))["status"] == "completed"
    lines = [line for line in log.read_text().splitlines() if str(task) in line]
    assert [json.loads(line)["event"] for line in lines] == [
        "Video generation started", "Submitted image", "Stored image in Supabase",
        "Submitted video", "Stored video in Supabase", "Video generation completed",
    ]  # fmt: skip
    assert sum(len(line.encode()) + 1 for line in lines) < MOST_BYTES


# The audit.


def audit(hand: Hand, *, entries: int = 1000, users: int = 1000) -> int:
    """Do the janitor's work; return the number of users who disagree."""
    while hand("audit_entries", batch=entries)[0]["entries"] == entries:
        pass
    found, after = 0, None
    while True:
        (row,) = hand("audit_users", after=after, batch=users)
        found, after = found + int(row["discrepancies"]), row["through"]
        if after is None:
            return found


def agreed(ground: Ground, hand: Hand, **sizes: int) -> int:
    """The result of the audit, which must equal that of the whole ledger."""
    whole = ground.one("select count(*) as users from vidgen.credit_discrepancies")["users"]
    found = audit(hand, **sizes)
    assert found == whole
    return found


def moved(ground: Ground) -> list[UUID]:
    """Users with some history, part of it older than an hour."""
    hand, users = ground.worker(), [ground.user(200) for _ in range(5)]
    for user in users:
        completed(ground, hand, user)
    aged(ground, days=1)
    for user in users[:2]:
        ended(ground, hand, user, "fail")
    ground.held(hand, "start_task", user_id=users[0])
    return users


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_the_audit_in_parts_finds_what_the_whole_ledger_says(ground: Ground, size: int) -> None:
    users, hand = moved(ground), ground.worker()
    assert agreed(ground, hand, entries=size, users=size) == 0
    ground.sql("update public.user_credits set balance = balance + 1 where user_id = %s", users[0])
    assert agreed(ground, hand, entries=size, users=size) == 1
    ground.sql("update public.user_credits set held = held + 1 where user_id = %s", users[1])
    ground.sql("delete from public.user_credits where user_id = %s", users[3])
    ground.sql(
        "insert into vidgen.holds (task_id, user_id, prices, amount)"
        """ values (%s, %s, '{"image": 5, "video": 25}', 30)""",
        uuid4(), uuid4(),
    )  # fmt: skip
    assert agreed(ground, hand, entries=size, users=size) == 4


def test_each_entry_is_read_once(ground: Ground) -> None:
    moved(ground)
    hand = ground.worker()
    assert hand("audit_entries", batch=1000)[0]["entries"] == 15
    assert hand("audit_entries", batch=1000)[0]["entries"] == 0, "the last hour is still young"
    aged(ground, days=1)
    assert hand("audit_entries", batch=1000)[0]["entries"] == 2
    assert agreed(ground, hand) == 0


def test_an_entry_that_commits_late_under_a_lower_number_is_found(ground: Ground) -> None:
    """Its transaction was open for longer than an hour: the total lacks it, its user is summed."""
    user, hand = ground.user(100), ground.worker()
    aged(ground, days=1)
    audit(hand)
    ground.sql("update vidgen.audited set through_id = through_id + 1")
    ground.sql("select public.grant_video_credits(%s, 10, 'late')", user)
    assert agreed(ground, hand) == 0
    assert agreed(ground, hand) == 0


def test_a_user_who_never_agrees_is_not_summed_at_every_audit(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    ground.sql("update public.user_credits set balance = 7 where user_id = %s", user)
    assert audit(hand) == 1
    first = ground.one("select summed_at from vidgen.audited_totals")
    assert audit(hand) == 1
    assert ground.one("select summed_at from vidgen.audited_totals") == first


def test_two_audits_at_once_add_no_entry_twice(ground: Ground) -> None:
    moved(ground)
    hand, other = ground.worker(), ground.worker()
    with hand.holding():
        assert hand("audit_entries", batch=3)[0]["entries"] == 3
        assert other("audit_entries", batch=3)[0]["entries"] == 0
    assert agreed(ground, other) == 0


async def test_a_worker_says_that_the_books_disagree(world: World, ground: Ground) -> None:
    ground.sql("update public.user_credits set balance = 7 where user_id = %s", world.user(100))
    async with hearing(BooksDisagree) as said, world.worker():
        await asyncio.wait_for(said.wait(), PATIENCE)
    assert ground.one("select discrepancies from vidgen.audited") == {"discrepancies": 1}
