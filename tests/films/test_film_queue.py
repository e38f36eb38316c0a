"""Films in the queue's statements: ordered, held, claimed, taken over, deleted and pruned."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from tests.support.hands import Ground, Hand, Held, aged, completed, let_go, refuse
from vidgen_worker.client.database import QUERIES

TASKS = "public.video_generation_tasks"
PRICE = 30


def order(hand: Hand, film: Held) -> tuple[str | None, str | None]:
    (row,) = hand.about(film, "order_parts")
    return row["refused"], row["said"]


def test_five_hundred_parts_are_one_order_and_one_cancel(ground: Ground) -> None:
    """In the order of the film, each with its credits held; their owner's other tasks count too."""
    hand, user = ground.worker(), ground.user(500 * PRICE)
    film = ground.held_film(hand, user_id=user, parts=500)
    assert order(hand, film) == (None, None)
    assert len(ground.parts(film.id)) == 500
    assert ground.credits(user) == (500 * PRICE, 500 * PRICE)
    first = [held.id for held in hand.claim(20)]
    assert first == [part["id"] for part in ground.parts(film.id)[:20]]
    assert not hand.about(film, "wait_for_parts")[0]["cancel"]
    ground.sql("select public.cancel_video_generation_task(%s)", film.id)
    assert ground.one(
        f"select count(*) as n from {TASKS} where film_id = %s and status = 'cancelled'"
        " or cancel_requested_at is not null and status = 'processing'", film.id,
    ) == {"n": 500}  # fmt: skip
    assert ground.credits(user) == (500 * PRICE, 20 * PRICE)
    assert ground.books_balance()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("max_unfinished_per_user = 3", "limit reached: 3 unfinished tasks"),
        ("max_inserts_per_hour = 2", "limit reached: 2 new tasks an hour"),
        ("max_tasks_per_scene = 1", "has 1 tasks. Make a copy of the scene"),
    ],
)
def test_an_order_beyond_a_limit_begins_nothing(ground: Ground, limit: str, said: str) -> None:
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, user_id=user, parts=3)
    scene = ground.one(f"select cut -> 'parts' -> 0 ->> 'scene' as id from {TASKS}")["id"]
    ground.sql(f"insert into {TASKS} (user_id, scene_id) values (%s, %s)", user, scene)
    ground.sql(f"update vidgen.settings set {limit}")
    code, message = order(hand, film)
    assert code == "USER_LIMIT"
    assert said in str(message)
    assert ground.one(f"select count(*) as n from {TASKS}") == {"n": 2}
    assert ground.credits(user) == (1000, 0)


def test_without_a_price_or_with_credits_of_its_own(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user(0)
    film = ground.held_film(hand, user_id=user)
    assert hand.about(film, "order_parts", credits=False)[0]["refused"] is None
    assert ground.none("select from vidgen.holds")
    another = ground.held_film(hand, user_id=user)
    ground.sql("delete from public.credit_prices where action = 'generate_scene'")
    assert order(hand, another)[0] == "PRICE_MISSING"


def test_a_part_keeps_the_hold_that_its_film_has_opened(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user(2 * PRICE)
    ground.held_film(hand, "order_parts", user_id=user)
    ground.sql("update public.credit_prices set credits = 500")
    for held in hand.claim():
        assert hand.about(held, "start_task")[0]["funding"] == "held"
    assert ground.credits(user) == (2 * PRICE, 2 * PRICE)


def test_a_hold_for_a_waiting_task_is_its_film_s_only(ground: Ground) -> None:
    """Whoever has the worker's role holds nothing for a task that nobody orders as a part."""
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, "order_parts", user_id=user)
    part = ground.parts(film.id)[0]["id"]
    alone = ground.order(user)
    prices = '{"image": 5, "video": 25}'
    ask = "select vidgen.hold_credits(%s, %s, %s::jsonb)"
    with pytest.raises(psycopg.Error, match="no worker is at work"):
        ground.sql(ask, alone, user, prices)
    hand.about(film, "wait_for_parts")
    ground.sql("update vidgen.holds set closed_at = now(), amount = 0 where task_id = %s", part)
    with pytest.raises(psycopg.Error, match="no worker is at work"):
        ground.sql(ask, part, user, prices)


def test_a_scene_that_is_named_twice_is_ordered_once(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user(PRICE)
    scene = {"scene": str(ground.scene(user))}
    film = ground.held_film(hand, "order_parts", user_id=user, cut={"parts": [scene, scene]})
    first, second = ground.parts(film.id)
    assert first["id"] == second["id"]
    assert ground.credits(user) == (PRICE, PRICE)


def test_a_retry_orders_again_what_is_gone_and_nothing_else(ground: Ground) -> None:
    """One part is completed, one failed, one was deleted; the scene of the first is gone."""
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, "order_parts", user_id=user, parts=3)
    one, two, three = (part["id"] for part in ground.parts(film.id))
    hand.about(film, "wait_for_parts")
    held = {taken.id: taken for taken in hand.claim()}
    for stage in ("image", "video"):
        hand.walk(held[one], *(("start_task",) if stage == "image" else ()), stage=stage)
    ground.sql(
        f"update {TASKS} set status = 'completed', progress = 100, worker_id = null,"
        " completed_at = now(), video_path = 'video-files/' || user_id || '/a.mp4' where id = %s",
        one,
    )  # fmt: skip
    ground.sql("select vidgen.release_credits(%s)", one)
    hand.about(held[two], "fail")
    ground.sql(f"delete from {TASKS} where id = %s", three)
    ground.sql(
        "delete from public.video_scenes where id = (select scene_id from"
        f" {TASKS} where id = %s)", one,
    )  # fmt: skip
    hand("wake_films")
    (film,) = hand.claim_films()
    (loaded,) = hand.about(film, "load_film")
    assert (loaded["unfinished"], loaded["completed"], loaded["bad_position"]) == (0, 1, 2)
    hand.about(film, "fail")
    ground.sql("select public.retry_video_generation_task(%s)", film.id)
    (film,) = hand.claim_films()
    assert order(hand, film) == (None, None)
    parts = ground.parts(film.id)
    assert [part["id"] for part in parts[:2]] == [one, two]
    assert parts[2]["id"] not in (one, two, three)
    assert [part["status"] for part in parts] == ["completed", "pending", "pending"]
    assert ground.books_balance()


def test_a_part_that_is_deleted_while_it_waits_is_told(ground: Ground) -> None:
    hand = ground.worker()
    film = ground.held_film(hand, "order_parts", "wait_for_parts", parts=1)
    ground.sql(f"delete from {TASKS} where film_id = %s", film.id)
    hand("wake_films")
    (film,) = hand.claim_films()
    (loaded,) = hand.about(film, "load_film")
    assert (loaded["unfinished"], loaded["bad_position"], loaded["bad_code"]) == (0, 1, "DELETED")


def test_a_film_that_is_deleted_leaves_its_parts_as_tasks(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, "order_parts", "wait_for_parts", user_id=user)
    parts = [part["id"] for part in ground.parts(film.id)]
    (done, _) = hand.claim()
    hand.about(done, "fail")
    ground.sql(f"delete from {TASKS} where id = %s", film.id)
    assert {ground.task(part)["film_id"] for part in parts} == {None}
    assert ground.none("select from vidgen.parts")
    assert ground.none("select from vidgen.films")
    hand("wake_films")
    assert ground.none("select from vidgen.endings")
    assert ground.credits(user)[1] == PRICE


def test_films_take_turns_and_no_claim_of_tasks_meets_them(ground: Ground) -> None:
    hand, crowd, other = ground.worker(), ground.user(100_000), ground.user()
    films = [ground.film(crowd) for _ in range(30)]
    mine = ground.film(other)
    later = ground.film(other)
    ground.sql(f"update {TASKS} set run_after = now() + interval '1 hour' where id = %s", later)
    assert hand.claim() == []
    taken = [held.id for held in hand.claim_films()]
    assert mine in taken
    assert len(taken) == 5  # four of one user at the most
    while more := hand.claim_films():
        taken += [held.id for held in more]
    assert sorted(taken) == sorted([*films, mine])
    turn = ground.one("select * from vidgen.turns where user_id = %s and lane = 0", other)
    assert turn["waiting_since"] is None
    assert turn["due_at"] == ground.task(later)["run_after"]


def test_a_film_of_a_dead_worker_waits_for_its_own_claim(ground: Ground) -> None:
    """Then for an idle worker, on which it runs alone; the third death ends it."""
    for deaths in (1, 2, 3):
        dead, other = ground.worker(), ground.worker()
        film = ground.held_film(dead) if deaths == 1 else taken(dead)
        ground.silent(dead.worker_id)
        rows = other("take_over")
        assert [row["kind"] for row in rows] == (["lost"] if deaths == 3 else [])
        row = ground.task(film.id)
        assert row["status"] == ("failed" if deaths == 3 else "pending")
        if deaths == 2:
            ground.film(ground.user())
            assert [held.id for held in other.claim_films(idle=False)] != [film.id]
            # A task of lane 1 keeps its slot.
            ground.order()
            assert len(other.claim(1)) == 1
            hand_back(ground, other)
    assert row["error_code"] == "WORKER_LOST"


def taken(hand: Hand) -> Held:
    """The suspect, alone."""
    found = hand.claim_films()
    assert len(found) == 1
    return found[0]


def hand_back(ground: Ground, hand: Hand) -> None:
    hand("hand_back", task_ids=None)
    ground.sql(f"update {TASKS} set run_after = now() + interval '1 day' where lane > 0")


def test_a_film_takes_no_place_of_its_user_and_each_part_takes_one(ground: Ground) -> None:
    """At VIDGEN_MAX_RUNNING_PER_USER; at the limit of unfinished tasks each row counts."""
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, "order_parts", user_id=user, parts=3)
    assert len(hand.claim(max_running_per_user=2)) == 2
    assert hand.claim(max_running_per_user=2) == []
    another = ground.held_film(hand, user_id=user, parts=1)
    ground.sql("update vidgen.settings set max_unfinished_per_user = 5")
    assert "5 unfinished tasks" in str(order(hand, another)[1])
    ground.sql("update vidgen.settings set max_unfinished_per_user = 6")
    assert order(hand, another) == (None, None)
    assert hand.about(film, "wait_for_parts")


TO_COME = {"parts": [{"task": "00000000-0000-4000-8000-00000000000A"}]}


def test_what_a_film_tries_again_counts_as_its_user_s_retries(ground: Ground) -> None:
    """Else a film would be the way around the limit of retries an hour."""
    hand, user = ground.worker(), ground.user()
    tasks = [ground.held(hand, user_id=user) for _ in range(3)]
    for held in tasks:
        hand.about(held, "fail")
    cut = {"parts": [{"task": str(held.id)} for held in tasks]}
    film = ground.held_film(hand, user_id=user, cut=cut)
    ground.sql("update vidgen.settings set max_changes_per_hour = 2")
    code, said = order(hand, film)
    assert (code, ground.task(tasks[0].id)["status"]) == ("USER_LIMIT", "failed")
    assert "2 cancels and retries an hour" in str(said)
    ground.sql("update vidgen.settings set max_changes_per_hour = 3")
    assert order(hand, film) == (None, None)
    assert ground.one("select changes, inserts from vidgen.user_locks") == {
        "changes": 3, "inserts": 0,
    }  # fmt: skip


@pytest.mark.parametrize("act", ["retry_refused", "unpaused"])
def test_a_film_that_comes_back_into_the_line_wakes_the_claim_of_films(
    ground: Ground, act: str
) -> None:
    hand, listener, user = ground.worker(), ground.hand(), ground.user()
    film = ground.film(user)
    if act == "retry_refused":
        refuse(ground, film)
        assert hand.claim_films() == []
        let_go(ground)
        ground.sql("update vidgen.refusals set until = now()")
    else:
        hand("line_up")
        ground.sql("select vidgen.lock_limits(%s)", user)
        ground.sql("select vidgen.pause_user(%s, now() + interval '1 hour', 'slowly')", user)
    listener.conn.execute("listen vidgen_tasks")
    if act == "retry_refused":
        assert [row["became"] for row in hand("retry_refused")] == ["pending"]
    else:
        ground.sql("select vidgen.unpause_user(%s)", user)
    words = {notify.payload for notify in listener.conn.notifies(timeout=1, stop_after=1)}
    words |= {notify.payload for notify in listener.conn.notifies(timeout=0)}
    assert "film" in words


@pytest.mark.parametrize("named", ["waiting", "for later", "at work"])
def test_a_task_that_a_film_names_is_not_pruned_before_it_is_ordered(
    ground: Ground, named: str
) -> None:
    """By its owner's film only; and whatever else stands in a cut, prune goes on."""
    hand, user, stranger = ground.worker(), ground.user(), ground.user()
    tasks = [completed(ground, hand, user).id for _ in range(3)]
    aged(ground)
    ground.film(stranger, cut={"parts": [{"task": str(tasks[0])}]})
    for odd in ({}, {"parts": {"task": 3}}, {"parts": [7, {"task": "-" * 36}, {"task": None}]}):
        ground.film(stranger, cut=odd)
    cut = {"parts": [{"task": str(tasks[1]).upper()}]}
    if named == "at work":
        film = ground.held_film(hand, user_id=user, cut=cut)
    else:
        film_id = ground.film(user, cut=cut)
        if named == "for later":
            ground.sql(f"update {TASKS} set run_after = '9999-01-01' where id = %s", film_id)
    assert pruned(ground) == {tasks[0], tasks[2]}
    if named == "at work":
        assert order(hand, film) == (None, None)
        hand.about(film, "complete")
        assert pruned(ground) == {tasks[1]}


def test_a_film_whose_named_task_is_gone_says_so(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, user_id=user, cut=TO_COME)
    code, said = order(hand, film)
    assert code == "INVALID_REQUEST"
    assert str(said).startswith("/parts/0/task: there is no task 00000000-0000-4000-8000-")


def pruned(ground: Ground) -> set[UUID]:
    """What a batch of `prune` removes."""
    before = {row["id"] for row in ground.sql(f"select id from {TASKS}")}
    values = {"before": datetime.now(UTC) - timedelta(days=1), "batch": 10, "left": []}
    ground.admin.execute(QUERIES["prune_tasks"], values)
    return before - {row["id"] for row in ground.sql(f"select id from {TASKS}")}


def test_a_task_that_an_unfinished_film_needs_is_not_pruned(ground: Ground) -> None:
    hand = ground.worker()
    film = ground.held_film(hand, "order_parts", parts=2)
    for held in hand.claim():
        hand.walk(held, "start_task", "begin_submission")
        hand.about(held, "fail")
    aged(ground)
    hand.about(film, "wait_for_parts")
    (row,) = hand("forget_tasks")
    assert row["tasks"] == 0
    hand("wake_films")
    (film,) = hand.claim_films()
    hand.about(film, "fail")
    (row,) = hand("forget_tasks")
    assert row["tasks"] == 2
