"""How long generations take: learnt once each, by the whole fleet, and shown as `expected_at`."""

from datetime import timedelta

import psycopg
import pytest

from tests.support.hands import STAGE, Ground, Hand, Held, completed

TASKS = "public.video_generation_tasks"
TIMES = "select model, seconds, ended_after, ended_by from vidgen.generation_times order by model"


def generating(ground: Ground, hand: Hand) -> Held:
    return ground.held(hand, "start_task", *STAGE[:2])


def test_an_end_enters_the_history_once_and_the_last_24_are_kept(ground: Ground) -> None:
    hand = ground.worker()
    held = generating(ground, hand)
    for _ in range(2):
        hand.about(held, "end_generation", ended_after=30.0, ended_by=36.5)
    assert ground.sql(TIMES) == [
        {"model": "gen4_image", "seconds": 0, "ended_after": [30.0], "ended_by": [36.5]}
    ]
    for number in range(25):
        hand.about(generating(ground, hand), "end_generation", ended_by=50.0 + number)
    hand.about(generating(ground, hand), "end_generation", ended_by=None)
    (row,) = hand("generation_times")
    assert row["ended_by"] == [74.0 - number for number in range(24)]


def test_two_ends_of_one_kind_do_not_wait_for_each_other(ground: Ground) -> None:
    hand, other = ground.worker(), ground.worker()
    hand.about(generating(ground, hand), "end_generation")
    mine, theirs = generating(ground, hand), generating(ground, other)
    with other.holding():
        other.about(theirs, "end_generation", ended_by=40.0)
        late = hand.later(lambda: hand.about(mine, "end_generation", ended_by=50.0))
        assert not ground.waits(late)
    assert ground.sql(TIMES)[0]["ended_by"] == [40.0, 36.0]
    stored = "select count(*) as n from vidgen.checkpoints where state = 'storing'"
    assert ground.one(stored)["n"] == 3


def left(ground: Ground, held: Held) -> float | None:
    """Seconds from now to `expected_at`, by the database's clock."""
    (row,) = ground.sql(
        f"select extract(epoch from expected_at - now())::float as seconds from {TASKS}"
        " where id = %s",
        held.id,
    )
    seconds: float | None = row["seconds"]
    return seconds


def test_expected_at_moves_by_a_tenth_of_the_time_left_at_the_most(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    hand.about(held, "begin_submission", seconds_left=100.0)
    assert left(ground, held) == pytest.approx(100, abs=2)
    hand.about(held, "report", seconds_left=[300.0])
    assert left(ground, held) == pytest.approx(110, abs=3)
    hand.about(held, "report", seconds_left=[10.0])
    assert left(ground, held) == pytest.approx(99, abs=3)
    hand.about(held, "report", seconds_left=[None])
    assert left(ground, held) is None


def test_an_expected_time_that_has_passed_is_unknown_until_the_next_write(ground: Ground) -> None:
    hand = ground.worker()
    held = generating(ground, hand)
    ground.sql("set session_replication_role = replica")
    ground.sql(f"update {TASKS} set expected_at = now() - interval '1 second'")
    ground.sql("reset session_replication_role")
    hand.about(held, "report", seconds_left=[20.0])
    assert left(ground, held) is None
    hand.about(held, "report", seconds_left=[20.0])
    assert left(ground, held) == pytest.approx(20, abs=2)


def test_a_stolen_worker_adds_no_kinds_without_end(ground: Ground) -> None:
    """Nor does the end of a generation fail once there are too many."""
    hand = ground.worker()
    held = generating(ground, hand)
    add = (
        "insert into vidgen.generation_times (provider, model, seconds, ended_after, ended_by)"
        " select 'runway', {model}, mod(n, 100), array[1], array[2]"
        " from generate_series(1, 5000) as n"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        ground.sql(add.format(model="repeat('m', 1000)"))
    ground.sql(add.format(model="'of ' || n"))
    assert ground.one("select count(*) as n from vidgen.generation_times")["n"] == 200
    assert hand.about(held, "end_generation")
    assert ground.none("select from vidgen.generation_times where model = 'gen4_image'")


@pytest.mark.parametrize("end", ["requeue", "fail", "cancel"])
def test_a_task_that_does_not_run_has_no_expected_end(ground: Ground, end: str) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:1])
    assert left(ground, held) is not None
    hand.about(held, end, delay=timedelta(hours=1))
    assert left(ground, held) is None
    completed(ground, hand, ground.user(500))
    assert ground.one(f"select count(expected_at) as n from {TASKS}")["n"] == 0
    with pytest.raises(psycopg.errors.CheckViolation):
        ground.sql(f"insert into {TASKS} (user_id, expected_at) values (gen_random_uuid(), now())")
