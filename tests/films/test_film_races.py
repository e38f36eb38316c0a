"""No film waits for ever, and none is woken before its time, whatever meets what.

The orders of commits that break the obvious design are played one by one; at the end many
connections do everything at once. `FILMS=300 ROUNDS=4` lets that last longer.
"""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from psycopg import errors

from tests.support.hands import Ground, Hand, Held

TASKS = "public.video_generation_tasks"
Act = Callable[[Hand], object]


def due(ground: Ground, film: UUID) -> bool:
    row = ground.one(f"select status, run_after <= now() as due from {TASKS} where id = %s", film)
    assert row["status"] == "pending"
    return bool(row["due"])


def wake(hand: Hand) -> bool:
    """Take the mail there is; whether there is more."""
    return bool(hand("wake_films")[-1]["more"])


def of_task(held: Held) -> dict[str, Any]:
    return {"parts": [{"task": str(held.id)}]}


def ordered(ground: Ground, hand: Hand) -> tuple[Held, Held]:
    """A film at work whose only part is at work too."""
    film = ground.held_film(hand, "order_parts", parts=1)
    (part,) = hand.claim()
    return film, part


def test_race_of_a_part_that_ends_while_its_film_begins_to_wait(ground: Ground) -> None:
    """The film looked before the end was committed; the end's own mail is there after it."""
    worker, other = ground.worker(), ground.worker()
    film, part = ordered(ground, worker)
    with other.holding():
        other("cancel", task_id=part.id, attempt=part.attempt, worker_id=part.worker_id)
        assert worker.about(film, "wait_for_parts")
        assert not wake(ground.worker())
        assert not due(ground, film.id)
    wake(worker)
    assert due(ground, film.id)


def test_race_of_a_film_that_begins_to_wait_while_its_part_ends(ground: Ground) -> None:
    """The end's mail finds the film's row locked: it stays. Or the film at work: it is dropped."""
    worker, other, third = ground.worker(), ground.worker(), ground.worker()
    film, part = ordered(ground, worker)
    with worker.holding():
        worker.about(film, "wait_for_parts")
        other("cancel", task_id=part.id, attempt=part.attempt, worker_id=part.worker_id)
        wake(third)
        assert not ground.none("select from vidgen.endings"), "mail of a held row must stay"
    wake(third)
    assert due(ground, film.id)

    film, part = ordered(ground, worker)
    worker.about(part, "cancel")
    assert not wake(third)
    assert ground.none("select from vidgen.endings")
    worker.about(film, "wait_for_parts")
    wake(third)
    assert due(ground, film.id)


def test_race_of_two_that_wake_one_film(ground: Ground) -> None:
    """The one that comes second leaves its mail; the first can't have seen what that is about."""
    worker, first, second = ground.worker(), ground.worker(), ground.worker()
    film = ground.held_film(worker, "order_parts", "wait_for_parts")
    parts = worker.claim()
    worker.about(parts[0], "cancel")
    with first.holding():
        assert not wake(first)
        worker.about(parts[1], "cancel")
        wake(second)
        assert not ground.none("select from vidgen.endings")
    assert not due(ground, film.id)
    wake(second)
    assert due(ground, film.id)


def test_race_of_a_task_that_ends_while_a_film_takes_it_as_its_part(ground: Ground) -> None:
    """Its end doesn't see the film yet: so the film's order waits for it, or it for the order."""
    worker, other = ground.worker(), ground.worker()
    user = ground.user()
    part = ground.held(worker, user_id=user)
    film = ground.held_film(worker, user_id=user, cut=of_task(part))
    with worker.holding():
        worker.about(part, "fail")
        with pytest.raises(errors.LockNotAvailable):
            other("order_parts", task_id=film.id, attempt=film.attempt, worker_id=film.worker_id)
    assert worker.about(film, "load_film")[0]["parts"] == 0

    another = ground.held(worker, user_id=user)
    film = ground.held_film(worker, user_id=user, cut=of_task(another))
    with other.holding():
        other("order_parts", task_id=film.id, attempt=film.attempt, worker_id=film.worker_id)
        late = worker.later(lambda: worker.about(another, "fail"))
        assert ground.waits(late)
    assert late.result()
    assert ground.sql("select film_id from vidgen.endings") == [{"film_id": film.id}]


@pytest.mark.parametrize("first", ["cancel", "order"])
def test_race_of_a_cancel_and_an_order_of_one_film(ground: Ground, first: str) -> None:
    """Whichever comes first, the parts are cancelled or never there, and neither deadlocks."""
    worker = ground.worker()
    user = ground.user()
    film = ground.held_film(worker, user_id=user)
    client = ground.hand()
    cancel = f"select public.cancel_video_generation_task('{film.id}')".encode()
    if first == "cancel":
        with client.holding():
            client.conn.execute(cancel)
            with pytest.raises(errors.LockNotAvailable):
                worker.about(film, "order_parts")
        assert worker.about(film, "order_parts")[0]["refused"] == "CANCELLED"
    else:
        with worker.holding():
            worker.about(film, "order_parts")
            late = client.later(lambda: client.conn.execute(cancel))
            assert ground.waits(late)
        late.result()
        assert {part["status"] for part in ground.parts(film.id)} == {"cancelled"}
    assert ground.credits(user)[1] == 0
    assert worker.about(film, "wait_for_parts")[0]["cancel"]


def test_race_of_a_cancel_and_the_order_of_another_film_that_takes_its_part(ground: Ground) -> None:
    """An operator takes no lock of the user: his cancel asks who needs a part once it holds it."""
    worker, user = ground.worker(), ground.user()
    first = ground.held_film(worker, "order_parts", "wait_for_parts", user_id=user, parts=2)
    own, shared = (part["id"] for part in ground.parts(first.id))
    second = ground.held_film(worker, user_id=user, cut={"parts": [{"task": str(shared)}]})
    client = ground.hand()
    cancel = "select vidgen.cancel_task(%s)"
    with worker.holding():
        worker.about(second, "order_parts")
        late = client.later(lambda: client.conn.execute(cancel, [first.id]))
        assert ground.waits(late)
    late.result()
    assert ground.task(first.id)["status"] == ground.task(own)["status"] == "cancelled"
    assert ground.task(shared)["status"] == "pending"
    worker.about(second, "wait_for_parts")
    client.conn.execute(cancel, [second.id])
    assert ground.task(shared)["status"] == "cancelled"


def test_race_of_the_cancels_of_two_films_with_one_part(ground: Ground) -> None:
    """Each still sees the other film at work: the second asks again, and takes the part along."""
    worker, user = ground.worker(), ground.user()
    first = ground.held_film(worker, "order_parts", "wait_for_parts", user_id=user, parts=1)
    (shared,) = (part["id"] for part in ground.parts(first.id))
    cut = {"parts": [{"task": str(shared)}]}
    second = ground.held_film(worker, "order_parts", "wait_for_parts", user_id=user, cut=cut)
    one, other = ground.hand(), ground.hand()
    cancel = "select vidgen.cancel_task(%s)"
    with one.holding():
        one.conn.execute(cancel, [first.id])
        late = other.later(lambda: other.conn.execute(cancel, [second.id]))
        assert ground.waits(late)
    late.result()
    assert ground.task(shared)["status"] == "cancelled"


def test_no_wake_up_is_lost_and_nothing_deadlocks(ground: Ground) -> None:
    """Films begin to wait while their last parts end; each second film has a part of another one.

    16 connections, in any order. After each round every film is due.
    """
    films, rounds = int(os.environ.get("FILMS", "40")), int(os.environ.get("ROUNDS", "2"))
    order = random.Random(7)
    worker = ground.worker()
    users = [ground.user(100_000) for _ in range(8)]
    ground.sql("update vidgen.settings set max_retries = 1000")
    held = [ground.held_film(worker, "order_parts", user_id=users[n % 8]) for n in range(films)]
    ground.sql(
        "insert into vidgen.parts (film_id, position, task_id)"
        " select second.id, 3, p.task_id from unnest(%s::uuid[], %s::uuid[]) as second (id, other)"
        "   join vidgen.parts as p on p.film_id = second.other and p.position = 1",
        [one.id for one in held[1::2]], [one.id for one in held[0::2]],
    )  # fmt: skip
    for _ in range(rounds):
        running = worker.claim(10_000)
        assert len(running) == 2 * films
        acts: list[Act] = [partial(again, held=one, name="wait_for_parts") for one in held]
        acts += [partial(again, held=one, name="fail") for one in running]
        acts += [wake] * films
        order.shuffle(acts)
        with ThreadPoolExecutor(16) as threads:
            list(
                threads.map(
                    partial(play, ground, worker.worker_id), (acts[n::16] for n in range(16))
                )
            )
        while wake(worker):
            pass
        assert ground.none(f"select from {TASKS} where lane = 0 and run_after > now()")
        assert ground.none("select from vidgen.endings")
        ground.sql(f"select vidgen.retry_task(id) from {TASKS} where lane > 0")
        held = []
        while taken := worker.claim_films():
            held += taken
        assert len(held) == films
    assert ground.books_balance()


def play(ground: Ground, worker_id: UUID, acts: list[Act]) -> None:
    """Do all of these on one connection; a deadlock is an error."""
    with Hand(ground.database.url, worker_id) as hand:
        hand.conn.execute("set lock_timeout = '200ms'")
        for act in acts:
            act(hand)


def again(hand: Hand, held: Held, name: str) -> None:
    """A fenced write, sent again while it meets a lock."""
    while True:
        try:
            assert hand.about(held, name), f"{name} found nothing of its own"
        except errors.LockNotAvailable:
            continue
        return
