"""What another user's order takes beside held locks: `python -m bench.locks`, some six minutes.

One worker of the default settings, and a user who orders: once while nobody else has anything, then
while another user's four tasks, whose generations run, are locked; in turns. The four are ordered
anew for each round. A ratio is that of the medians; docs/benchmark.md has the figures.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg

from bench.contenders import OURS
from bench.ground import Ground, Site
from bench.lines import BrokenError

ROUNDS = 7
TASKS = 4
PATIENCE = 120.0
"""Seconds after which an order has not ended: only ever reached when something broke."""

# Accounts whose deletion deletes what is theirs, as in a project of Supabase's; short pauses.
APPLICATION: LiteralString = """
insert into auth.users (id) select user_id from public.user_credits on conflict do nothing;
alter table public.video_scenes add foreign key (user_id) references auth.users on delete cascade;
alter table public.user_credits add foreign key (user_id) references auth.users on delete cascade;
update vidgen.settings set refusal_pause = '100 milliseconds';
"""

WAITING = "a suspect and a clip that wait, at a tier of one"

LOCKS: Mapping[str, LiteralString] = MappingProxyType({
    "one scene": "select from video_scenes where user_id = %(user)s limit 1 for update",
    "all his scenes": (
        "update video_scenes set visual_prompt = visual_prompt where user_id = %(user)s"
    ),
    "his tasks": "select from video_generation_tasks where user_id = %(user)s for update",
    "his balance": "select from user_credits where user_id = %(user)s for update",
    "cancels that are not committed": (
        "select public.cancel_video_generation_task(id) from video_generation_tasks"
        " where user_id = %(user)s and status = 'processing'"
    ),
    "an order that is not committed": (
        "insert into video_generation_tasks (user_id, scene_id)"
        " select user_id, id from video_scenes where user_id = %(user)s limit 1"
    ),
    "the deletion of his scenes": "delete from video_scenes where user_id = %(user)s",
    "the deletion of his account": "delete from auth.users where id = %(user)s",
    "the table of scenes, against writes": (
        "lock table video_scenes in share row exclusive mode"
    ),
    WAITING: (
        "select from video_generation_tasks where user_id = %(user)s for update"
    ),
})  # fmt: skip
"""What an open transaction holds."""


ORDER: LiteralString = """
insert into public.video_generation_tasks (id, scene_id, user_id)
select s.id, s.id, s.user_id from public.video_scenes as s where s.id = any (%s::uuid[])
"""


def until(what: str, look: Callable[[], bool]) -> None:
    """Look every few milliseconds. Raises BrokenError."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise BrokenError(f"{what} has not happened")
        time.sleep(0.005)


def seconds_of_order(site: Site, scene: UUID) -> float:
    """From the INSERT of an order to its end, as its owner sees it."""
    with psycopg.connect(site.admin_url, autocommit=True) as conn:
        began = time.monotonic()
        conn.execute(ORDER, ([scene],))
        query = "select from public.video_generation_tasks where id = %s and status = 'completed'"
        until("the order's end", lambda: conn.execute(query, (scene,)).rowcount > 0)
        return time.monotonic() - began


def begin(site: Site, lock: str) -> UUID:
    """A new user with four tasks whose generations run, or with three that wait to go on."""
    user = uuid4()
    site.sql("insert into auth.users (id) values (%s)", user)
    site.sql("select public.grant_video_credits(%s, 1000, %s)", user, str(user))
    if lock == WAITING:
        site.sql(
            "with made as ("
            "  insert into public.video_generation_tasks (scene_id, user_id)"
            "  select s, %s from unnest(%s::uuid[]) as s returning id, user_id"
            "), waits as ("
            "  insert into vidgen.resumes (task_id, user_id, lane, stage, resume_at)"
            "  select id, user_id, 1, 'video', now() + interval '1 hour' from made"
            ")"
            " insert into vidgen.budgets (task_id, crashes, suspect)"
            " select id, 2, true from made limit 1",
            user, site.scenes(TASKS - 1, [user]),
        )  # fmt: skip
        return user
    site.sql(ORDER, site.scenes(TASKS, [user], " [[slow 400ms]]"))
    sent = (
        "select from vidgen.submissions where user_id = %s and answer is not null"
        " having count(distinct task_id) = 4"
    )
    until("his last submission", lambda: is_so(site, sent, user))
    return user


def is_so(site: Site, query: LiteralString, user: UUID) -> bool:
    """Whether a query about a user finds anything."""
    with psycopg.connect(site.admin_url, autocommit=True) as conn:
        return conn.execute(query, (user,)).rowcount > 0


@contextmanager
def held(site: Site, lock: str, user: UUID) -> Iterator[None]:
    """Hold what this lock names, until the block ends; nothing of it is kept."""
    with psycopg.connect(site.admin_url) as conn:
        conn.execute(LOCKS[lock], {"user": user})
        # What waits is due from here on: its rows are held before anybody can begin it.
        site.sql("update vidgen.resumes set resume_at = now() where user_id = %s", user)
        yield
        conn.rollback()


def round_of(site: Site, lock: str, other: UUID) -> tuple[float, float]:
    """Two orders of the other user, in seconds: alone, and while this lock is held."""
    first, second = site.scenes(2, [other])
    alone = seconds_of_order(site, first)
    user = begin(site, lock)
    with held(site, lock, user):
        beside = seconds_of_order(site, second)
    # What waits has never begun: no change of its status takes these away.
    site.sql("delete from vidgen.resumes where user_id = %s", user)
    site.sql(
        "select public.cancel_video_generation_task(id) from public.video_generation_tasks"
        " where user_id = %s and status in ('pending', 'processing')", user,
    )  # fmt: skip
    left = (
        "select from public.video_generation_tasks"
        " where user_id = %s and status in ('pending', 'processing')"
    )
    until("the end of his tasks", lambda: not is_so(site, left, user))
    return alone, beside


def measure(ground: Ground, lock: str, rounds: int) -> dict[str, float]:
    """The medians alone and beside the lock, their ratio, and the slowest beside it."""
    more = {"VIDGEN_IMAGE_SLOTS": "1", "VIDGEN_VIDEO_SLOTS": "1"} if lock == WAITING else {}
    with ground.site() as site, OURS.start("work", site, os.environ, **more) as worker:
        worker.until("ready")
        other = site.users(1)[0]
        site.sql(APPLICATION)
        seconds_of_order(site, site.scenes(1, [other])[0])  # the first one warms it up
        pairs = [round_of(site, lock, other) for _ in range(rounds)]
    alone, beside = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "alone": alone, "beside": beside, "ratio": beside / alone,
        "slowest": max(late for _, late in pairs),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", default=[], help="locks whose names hold these words")
    asked = parser.parse_args()
    with Ground.start() as ground:
        for lock in LOCKS:
            if asked.only and not any(word in lock for word in asked.only):
                continue
            found = measure(ground, lock, asked.rounds)
            sys.stdout.write(
                f"{lock:50} alone {found['alone'] * 1000:6.0f} ms,"
                f" beside it {found['beside'] * 1000:6.0f} ms: {found['ratio']:.2f} times,"
                f" the slowest {found['slowest'] * 1000:.0f} ms\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
