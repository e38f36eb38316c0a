"""Films in the queue alone: `python -m bench.film_queue`, 10,000 films of six parts each.

Processes with one connection each wake, claim, order and end by the worker's own statements,
without HTTP and media, while some of them are killed and others begin in their place. Prints how
fast they were, what was left over ("stuck"), and what happened twice.
"""

import argparse
import os
import random
import select
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, LiteralString
from uuid import UUID

from psycopg import errors

from bench.drain import Hand, fence_of
from bench.ground import ROOT, Ground, Row, Site
from bench.lines import Process, say
from vidgen_worker.database.pool import LOCK_TIMEOUT
from vidgen_worker.queue.films import Lane

Result = dict[str, Any]

FILMS, PARTS, CONNECTIONS, KILLS = 10_000, 6, 16, 16
MANY = 100
"""Parts of the film whose order and cancel are timed."""
PATIENCE = 120.0
"""Seconds without the end of any film after which what is left is stuck."""
PAUSE = 0.05
"""Seconds between two looks of a hand that finds nothing to do."""
LOST = "The worker was lost."

ORDER: LiteralString = """
insert into public.video_generation_tasks (user_id, cut)
select min(n.user_id::text)::uuid,
       jsonb_build_object('parts', jsonb_agg(jsonb_build_object('scene', n.scene)))
  from unnest(%s::uuid[], %s::uuid[]) with ordinality as n (scene, user_id, place)
 group by (n.place - 1) / %s
"""


CANCEL: LiteralString = "select public.cancel_video_generation_task(%s)"


class FilmHand(Hand):
    """One connection as one worker, which also does what is due about films."""

    def __init__(self, url: str) -> None:
        self.deadlocks = 0
        super().__init__(url)
        self.conn.execute("select set_config('lock_timeout', %s, false)",
                          [f"{LOCK_TIMEOUT.total_seconds() * 1000:.0f}ms"])  # fmt: skip

    def __call__(self, name: str, **parameters: object) -> list[Row]:
        """Run a named query, again where it met a lock."""
        while True:
            try:
                return super().__call__(name, **parameters)
            except errors.LockNotAvailable:
                continue
            except errors.DeadlockDetected:
                self.deadlocks += 1

    def parts(self) -> list[Row]:
        """Claim tasks as the worker does: what has begun before goes first."""
        rows, waiting = self.claim()
        if not rows:
            rows = self("resume")
        if not rows and waiting:
            self("clear_line", lane=1)
        return rows

    def films(self) -> list[Row]:
        """Take the mail of films, and claim those that are due."""
        self("wake_films")
        self("line_up")
        return [row for row in self("claim_films", lane=Lane.BATCHES, most=20) if row["id"]]

    def film(self, fence: Row) -> bool:
        """An attempt at a film; whether it ended it."""
        (found,) = self("load_film", **fence)
        if not found["ordered"]:
            (ordered,) = self("order_parts", **fence)
            if ordered["refused"] is not None:
                raise RuntimeError(f"film {fence['task_id']} was refused: {ordered}")
            (found,) = self("load_film", **fence)
        if found["unfinished"]:
            self.finish(fence, "wait_for_parts")
            return False
        self.finish(fence, "complete", video_url=None)
        return True

    def turn(self) -> bool:
        """Do what there is to do once; whether there was anything."""
        films, parts = self.films(), self.parts()
        say("claimed", ids=[f"{row['id']} {row['attempt']}" for row in films + parts])
        ended = [row["id"] for row in films if self.film(fence_of(row))]
        for row in parts:
            self.task(fence_of(row), whole=False)
            ended.append(row["id"])
        say("ended", ids=list(map(str, ended)))
        return bool(films or parts)


def work() -> None:
    """Be one of the processes, until a line comes in."""
    hand = FilmHand(os.environ["DATABASE_URL"])
    say("ready", worker_id=str(hand.usual["worker_id"]))
    pause = 0.0
    while not select.select([sys.stdin], [], [], pause)[0]:
        pause = 0.0 if hand.turn() else PAUSE
    say("stopped", deadlocks=hand.deadlocks)


class Crew:
    """The processes, those that were killed among them, and the one that takes over from these."""

    def __init__(self, site: Site, connections: int, stack: ExitStack) -> None:
        self.site, self.stack = site, stack
        self.heir = FilmHand(site.url)
        stack.enter_context(self.heir.conn)
        self.all: list[Process] = []
        self.alive = [self.another() for _ in range(connections)]
        self.killed: list[UUID] = []
        self.taken_over = 0

    def another(self) -> Process:
        """Start one more."""
        hand = self.stack.enter_context(Process(
            [sys.executable, "-m", "bench.film_queue", "--work"],
            {**os.environ, "DATABASE_URL": self.site.url},
            self.site.folder / f"hand-{len(self.all)}.log", ROOT,
        ))  # fmt: skip
        self.all.append(hand)
        return hand

    def ready(self, hand: Process) -> UUID:
        """Wait until it works; its worker's id."""
        for line in hand.heard:
            if line["what"] == "ready":
                return UUID(line["worker_id"])
        return UUID(hand.until("ready")[0]["worker_id"])

    def kill(self, place: int) -> None:
        """Kill one with SIGKILL, and let another begin."""
        hand = self.alive[place]
        self.killed.append(self.ready(hand))
        hand.popen.kill()
        hand.popen.wait()
        self.alive[place] = self.another()

    def take_over(self) -> None:
        """Take over what the killed have held; what their servers still lock is left for later."""
        silent = self.site.sql(
            "select id, heartbeat_at from vidgen.workers where id = any (%s)", self.killed
        )
        self.taken_over += self.site.sql(
            "select count(*) as n from public.video_generation_tasks"
            " where worker_id = any (%s) and status = 'processing'",
            self.killed,
        )[0]["n"]  # fmt: skip
        self.heir(
            "take_over", steady=True, slots=0, idle=False, lost_message=LOST,
            silent_ids=[row["id"] for row in silent],
            silent_beats=[row["heartbeat_at"] for row in silent],
        )  # fmt: skip

    def stop(self) -> int:
        """Let all end; how many deadlocks they have met."""
        for hand in self.alive:
            hand.ask({})
        return sum(hand.until("stopped")[0]["deadlocks"] for hand in self.alive)


def drained(ground: Ground, films: int, parts: int, kills: int, *, connections: int) -> Result:
    """Let so many connections drain so many films, with so many deaths; what came of it."""
    dice = random.Random(films)  # noqa: S311 - the same each time
    with ground.site() as site, ExitStack() as stack:
        users = site.users(50)
        scenes = site.scenes(films * parts, users)
        owners = [users[number // parts % len(users)] for number in range(len(scenes))]
        site.sql(
            "update public.video_scenes as s set user_id = n.user_id"
            "  from unnest(%s::uuid[], %s::uuid[]) as n (id, user_id) where n.id = s.id",
            scenes, owners,
        )  # fmt: skip
        crew = Crew(site, connections, stack)
        for hand in crew.alive:
            crew.ready(hand)
        site.sql("vacuum analyze")
        began = time.monotonic()
        site.sql(ORDER, scenes, owners, parts)
        for left in _progress(site):
            deaths = len(crew.killed)
            if deaths < kills and films - left >= films * deaths / (kills + 1):
                crew.kill(dice.randrange(connections))
            crew.take_over()
        seconds = time.monotonic() - began
        return {
            "films": films, "parts": parts, "connections": connections,
            "kills": len(crew.killed), "taken_over": crew.taken_over,
            "seconds": round(seconds, 1), "films_per_second": round(films / seconds, 1),
            "deadlocks": crew.stop(), **_counted(site, crew, films * parts),
        }  # fmt: skip


def _progress(site: Site) -> Iterator[int]:
    """Yield how many films are unfinished, until it is none, or none has ended for long."""
    last, since = -1, time.monotonic()
    while True:
        left = site.sql(
            "select count(*) as n from public.video_generation_tasks"
            " where lane = 0 and status in ('pending', 'processing')"
        )[0]["n"]
        if left != last:
            last, since = left, time.monotonic()
        if not left or time.monotonic() - since > PATIENCE:
            return
        sys.stderr.write(f"\r{left} films left ")
        yield left
        time.sleep(0.5)


def _counted(site: Site, crew: Crew, wanted: int) -> Result:
    """Count what is stuck, and what was claimed, ordered, ended or charged twice."""
    told: dict[str, Counter[str]] = {"claimed": Counter(), "ended": Counter()}
    for hand in crew.all:
        for line in [*hand.heard, *hand.rest()]:
            if line["what"] in told:
                told[line["what"]].update(line["ids"])
    (found,) = site.sql(
        "select count(*) filter (where lane > 0) as parts,"
        "       count(*) filter (where status in ('pending', 'processing')) as stuck,"
        "       count(*) filter (where status = 'failed') as failed"
        "  from public.video_generation_tasks"
    )
    (held,) = site.sql("select coalesce(sum(held), 0) as held from public.user_credits")
    return {
        "stuck": found["stuck"], "failed": found["failed"],
        "ordered_twice": found["parts"] - wanted, "credits_held": int(held["held"]),
        **{f"{what}_twice": sum(n > 1 for n in ids.values()) for what, ids in told.items()},
    }  # fmt: skip


# What single statements take.


def statements(ground: Ground, rounds: int) -> Result:
    """Milliseconds (medians): order and cancel of many parts, the end of a part and of a task."""
    with ground.site() as site, ExitStack() as stack:
        (user,) = site.users(1)
        hand = FilmHand(site.url)
        stack.enter_context(hand.conn)
        ordered, cancelled = [], []
        for _ in range(max(3, rounds // 20)):
            film = _film(site, hand, user, MANY)
            ordered.append(_milliseconds(partial(hand, "order_parts", **film)))
            cancelled.append(_milliseconds(partial(site.sql, CANCEL, film["task_id"])))
        return {
            "many": MANY, "order_ms": _median(ordered), "cancel_ms": _median(cancelled),
            **_ends(site, hand, user, rounds),
        }  # fmt: skip


def _ends(site: Site, hand: FilmHand, user: UUID, rounds: int) -> Result:
    """The end of a task and of a film's part, in turns, while nobody else does anything."""
    ends: dict[str, list[float]] = {"task": [], "part": []}
    film = _film(site, hand, user, min(rounds, MANY))
    hand("order_parts", **film)
    hand.finish(film, "wait_for_parts")
    site.sql(
        "insert into public.video_generation_tasks (user_id, scene_id)"
        " select %s, s from unnest(%s::uuid[]) as s",
        user, site.scenes(min(rounds, MANY), [user]),
    )  # fmt: skip
    while rows := hand.parts():
        for row in rows:
            fence = fence_of(row)
            hand("start_task", **fence)
            (of,) = site.sql(
                "select film_id from public.video_generation_tasks where id = %s", row["id"]
            )
            took = _milliseconds(partial(hand.task, fence, whole=False))
            ends["part" if of["film_id"] else "task"].append(took)
    task, part = _median(ends["task"]), _median(ends["part"])
    return {
        "ends": len(ends["part"]),
        "task_ms": task,
        "part_ms": part,
        "more_ms": round(part - task, 2),
    }


def _film(site: Site, hand: FilmHand, user: UUID, parts: int) -> Row:
    """Order a film of new scenes and claim it; its fence."""
    scenes = site.scenes(parts, [user])
    site.sql(ORDER, scenes, [user] * parts, parts)
    (row,) = hand.films()
    return fence_of(row)


def _milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def main() -> int:
    """Measure and print; exit status 1 where anything is stuck or happened twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return 0
    with Ground.start() as ground:
        found = drained(
            ground, given.films, given.parts, given.kills, connections=given.connections
        )
        found |= statements(ground, MANY)
    for name, value in found.items():
        sys.stdout.write(f"{name:18}{value}\n")
    return int(not whole(found))


def whole(found: Result) -> bool:
    """Whether every film ended once, and nothing is left."""
    wrong = ("stuck", "failed", "ordered_twice", "claimed_twice", "ended_twice", "credits_held")
    return not any(found[name] for name in wrong)


if __name__ == "__main__":
    sys.exit(main())
