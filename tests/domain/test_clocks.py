"""Clocks: every time on a row is the database's, and no step of it kills or keeps anybody."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

import vidgen_worker
from tests.support.hands import Ground
from tests.support.world import World, hearing
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.queue.leases import Heartbeat
from vidgen_worker.telemetry.events import WorkerDeclaredDead
from vidgen_worker.worker.lease import Observer

PACKAGE = Path(vidgen_worker.__file__).parent
LEASE = 15.0
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
WORKER = UUID(int=1)


def seen(beat: datetime, age: float = 0.0, worker: UUID = WORKER) -> Heartbeat:
    return Heartbeat(worker, beat, age, LEASE)


def silent(observer: Observer) -> list[UUID]:
    return [heartbeat.worker_id for heartbeat in observer.silent()]


# An observer, by its own clock: looks of so many seconds ago.


def looked(*looks: tuple[float, datetime, float]) -> Observer:
    """Looks at one worker: how many seconds ago, what its heartbeat was, and how old it seemed."""
    observer, now = Observer(), boot_time()
    for ago, beat, age in looks:
        observer.look([seen(beat, age)], now - ago, now - ago)
    return observer


def test_a_heartbeat_that_does_not_change_for_a_lease_is_silence() -> None:
    assert silent(looked((16, NOON, 0), (8, NOON, 8), (0, NOON, 16))) == [WORKER]
    assert silent(looked((14, NOON, 0), (0, NOON, 14))) == []


def test_silence_counts_from_the_heartbeat_and_not_from_the_look_that_found_it() -> None:
    """Without the event it would be found two seconds late, at the pace of the queue's polls."""
    assert silent(looked((16, NOON, 4), (14, NOON + timedelta(seconds=3), 1.5))) == [WORKER]


def test_a_clock_that_steps_forward_kills_nobody() -> None:
    """The heartbeat is an hour old by the database's clock, and two seconds by ours."""
    assert silent(looked((4, NOON, 0), (2, NOON + timedelta(seconds=2), 3600))) == []


def test_a_clock_that_steps_back_keeps_nobody_alive() -> None:
    """The heartbeat is of the future by the database's clock, and stays there."""
    assert silent(looked((18, NOON, 0), (16, NOON + HOUR, -3600), (0, NOON + HOUR, -3580))) == [
        WORKER
    ]


def test_a_heartbeat_that_goes_back_is_a_heartbeat() -> None:
    """The clock has stepped back, and its worker lives."""
    assert silent(looked((20, NOON, 0), (2, NOON - HOUR, 0))) == []


def test_at_its_first_look_an_observer_believes_no_age() -> None:
    assert silent(looked((1, NOON, 3600))) == []


def test_a_worker_that_has_left_is_forgotten() -> None:
    observer = looked((16, NOON, 0))
    assert silent(observer) == [WORKER]
    observer.look([], boot_time(), boot_time())
    assert silent(observer) == []


# The verdict.


def test_a_verdict_holds_only_for_the_heartbeat_that_was_seen(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    ground.silent(hand.worker_id)
    observed = other.observed()
    assert observed["silent_ids"] == [hand.worker_id]
    hand("heartbeat", task_ids=[held.id], attempts=[held.attempt])
    assert other("take_over", **observed) == []
    assert ground.none("select from vidgen.workers where dead_at is not null")


@pytest.mark.parametrize("away", ["- interval '1 hour'", "+ interval '1 hour'"])
def test_a_verdict_asks_no_clock(ground: Ground, away: str) -> None:
    """This worker's own observation counts, even if the database's clock has stepped."""
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    ground.sql(
        f"update vidgen.workers set heartbeat_at = now() {away} where id = %s", hand.worker_id
    )
    (row,) = [row for row in other("heartbeats") if row["id"] == hand.worker_id]
    taken = other("take_over", silent_ids=[row["id"]], silent_beats=[row["heartbeat_at"]])
    assert [row["id"] for row in taken] == [held.id]


async def test_workers_with_heartbeats_an_hour_old_by_the_clock_are_alive(world: World) -> None:
    """The clock has stepped forward: every heartbeat looks old, and each of them changes."""
    world.sql(
        "create function public.an_hour_ago() returns trigger language plpgsql as"
        " $$ begin new.heartbeat_at := now() - interval '1 hour'; return new; end $$"
    )
    world.sql(
        "create trigger an_hour_ago before insert or update of heartbeat_at on vidgen.workers"
        " for each row execute function public.an_hour_ago()"
    )
    async with (
        hearing(WorkerDeclaredDead) as declared,
        world.worker(VIDGEN_LEASE="1s"),
        world.worker(VIDGEN_LEASE="1s"),
    ):
        # Both are steady after one lease, which is four beats of each.
        await world.beats(24)
        assert not declared.is_set()
        assert world.sql("select id from vidgen.workers where dead_at is not null") == []


# Times on rows.


def test_nothing_that_writes_or_shows_a_time_reads_the_calendar_of_its_machine() -> None:
    """`check` compares it with the database's; a `Retry-After` names a time of its sender's."""
    calendar = re.compile(r"datetime\.(now|utcnow|today)\(|time\.time\(|date\.today\(")
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if calendar.search(path.read_text()) and "sandbox" not in path.parts
    }
    assert readers == {
        "cli/check_database.py", "providers/runway/answers.py", "webhooks/sender.py",
    }  # fmt: skip


def test_a_signed_url_is_valid_from_the_database_s_present_time_on(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.prepared(hand, "complete")
    hand.about(held, "complete", good_for=timedelta(minutes=50))
    assert ground.one(
        "select video_url_expires_at - completed_at as good_for"
        "  from public.video_generation_tasks where id = %s",
        held.id,
    ) == {"good_for": timedelta(minutes=50)}


def test_limits_read_at_a_future_time_are_read_again(ground: Ground) -> None:
    """The clock has stepped back since."""
    hand = ground.worker()
    hand("expect_limit")
    assert {row["mine"] for row in hand("ask_limits")} == {True}
    ground.sql("update vidgen.limits set asked_at = now() + interval '1 hour', read_at = now()")
    assert len(hand("ask_limits")) == 2
