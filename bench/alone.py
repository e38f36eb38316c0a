"""Rows that only this worker runs: what holding costs, how level the claim is, what deaths cost.

Processes are real, the database is durable, the settings are the defaults unless a row says so.
"""

import os
import signal
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import accumulate
from types import MappingProxyType
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row

from bench.contenders import OURS
from bench.drain import Hand, fence_of
from bench.ground import Ground, Site
from bench.lines import BrokenError, Process
from vidgen_worker.database.pool import PLANNED_ONCE, QUERIES

Result = dict[str, Any]

PROGRESS = ("report",)
"""Statements of progress, which the goal leaves out."""
LEASE_SECONDS = 15.0

# What a worker of the defaults sends with line_up and claim.
_USUAL: Mapping[str, object] = MappingProxyType({
    "host": "bench", "pid": 1, "version": "0", "concurrency": 20, "renders": 0,
    "lease": timedelta(seconds=LEASE_SECONDS), "provider": "runway", "key_fingerprint": "key",
    "account": "default", "scopes": ["*", "default", "key:key"],
    "image_model": "gen4_image", "video_model": "gen4_turbo", "slots": 20, "idle": True,
    "image_stage": "image", "video_stage": "video",
    "resumed": False, "max_crashes": 3, "max_running_per_user": None, "lane": 1,
})  # fmt: skip


def _enqueue(site: Site, count: int, users: int = 5) -> None:
    with OURS.start("enqueue", site, os.environ) as producer:
        producer.until("ready")
        scenes = [str(scene) for scene in site.scenes(count, site.users(users))]
        producer.ask({"ids": scenes})
        producer.until("enqueued")


# Holding.


def in_flight(ground: Ground, tasks: int, seconds: float, poll: str) -> Result:
    """So many tasks whose generations run: statements, memory and CPU of one process."""
    with ground.site(image_seconds=86_400) as site:
        more = {"VIDGEN_CONCURRENCY": str(tasks), "VIDGEN_POLL_INTERVAL": poll}
        with OURS.start("work", site, os.environ, **more) as worker:
            worker.until("ready")
            time.sleep(3)
            idle = worker.resident_bytes()
            _enqueue(site, tasks, users=50)
            began = worker.until("submitted")[0]["at"]
            full = worker.until("submitted", tasks - 1)[-1]["at"] - began
            # Every generation has been polled once, and progress has settled.
            time.sleep(8)
            site.forget_statements()
            cpu, since = worker.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            window = time.monotonic() - since
            cpu = worker.cpu_seconds() - cpu
            statements = site.statements()
            held = worker.resident_bytes()
            requeued = sum(line["what"] == "requeued" for line in worker.heard)
    beyond = sum(row["calls"] for row in statements if row["name"] not in PROGRESS)
    return {
        "tasks": tasks, "poll": poll, "requeued": requeued, "all_submitted_seconds": round(full, 1),
        "statements_per_second": round(beyond / window, 2),
        "progress_statements_per_second": round(
            sum(row["calls"] for row in statements if row["name"] in PROGRESS) / window, 2
        ),
        "by_statement": {row["name"]: round(row["calls"] / window, 2) for row in statements},
        "idle_mb": round(idle / 1e6, 1), "held_mb": round(held / 1e6, 1),
        "kb_per_task": round((held - idle) / tasks / 1000, 1),
        "cpu_percent": round(cpu / window * 100, 1),
    }  # fmt: skip


# The provider's limit.


def limit(ground: Ground, tasks: int, slots: int, workers: int) -> Result:
    """So many workers race for a tier that allows so many generations of a model at once.

    The limit is what they read of the account; one of them is killed on the way. The double says of
    each generation how long it had to wait there because too many ran.
    """
    seconds = {"image": 0.4, "video": 0.8}
    runway: dict[str, Any] = {f"{kind}_seconds": value for kind, value in seconds.items()}
    with ground.site(unlimited=False, concurrency=slots, **runway) as site, ExitStack() as stack:
        more = {"VIDGEN_LEASE": "2s", "VIDGEN_SUBMIT_TIMEOUT": "5s"}
        running = [
            stack.enter_context(OURS.start("work", site, os.environ, **more))
            for _ in range(workers)
        ]
        for worker in running:
            worker.until("ready")
        _enqueue(site, tasks, users=5)
        running[0].until("submitted")
        os.kill(running[0].pid, signal.SIGKILL)
        _until(site, "select not exists (select from video_generation_tasks"
                     " where status in ('pending', 'processing')) as done")  # fmt: skip
        seen = site.runway.generations()
        tasks_ended = site.sql("select count(*) as n from video_generation_tasks"
                               " where status = 'completed'")[0]["n"]  # fmt: skip
    return {
        "slots": slots, "workers": workers, "completed": tasks_ended, "generations": len(seen),
        "waited": sum(one["throttledSeconds"] > 0 for one in seen),
        "most_at_once": max(_most_at_once(seen, kind, life) for kind, life in seconds.items()),
    }  # fmt: skip


def _most_at_once(seen: list[dict[str, Any]], kind: str, seconds: float) -> int:
    began = [
        datetime.fromisoformat(one["createdAt"]).timestamp() for one in seen if one["kind"] == kind
    ]
    steps = sorted([(at, 1) for at in began] + [(at + seconds, -1) for at in began])
    return max(accumulate(step for _, step in steps))


def _until(site: Site, condition: LiteralString) -> None:
    deadline = time.monotonic() + 120
    while not site.sql(condition)[0]["done"]:
        if time.monotonic() > deadline:
            raise BrokenError("the tasks have not ended within two minutes")
        time.sleep(0.1)


# The claim, on tables of all sizes.


class _Claims:
    """One connection that claims as a worker does, and rolls back."""

    def __init__(self, site: Site) -> None:
        self.conn = psycopg.connect(site.url, autocommit=True, row_factory=dict_row)
        self.conn.prepare_threshold = 0
        self.conn.execute(PLANNED_ONCE)
        self.parameters = {**_USUAL, "worker_id": uuid4()}
        self.conn.execute(QUERIES["register_worker"], self.parameters)

    def line_up(self) -> None:
        self.conn.execute(QUERIES["line_up"], self.parameters)

    def seconds(self) -> float:
        """One claim, undone again."""
        with self.conn.transaction(force_rollback=True):
            began = time.perf_counter()
            self.conn.execute(QUERIES["claim"], self.parameters).fetchall()
            return time.perf_counter() - began

    def close(self) -> None:
        self.conn.close()


def level(ground: Ground, finished: int, backlog: int, later: int, claims: int) -> Result:
    """A claim's milliseconds on a small table and on a full one, in turns.

    The full one has stale statistics first (autovacuum is off), then new ones.
    """
    with ground.site() as small, ground.site() as full:
        for site in (small, full):
            _waiting(site, 100, users=20)
            site.sql("vacuum analyze")
            site.sql("alter table public.video_generation_tasks set (autovacuum_enabled = false)")
        _finished(full, finished)
        _waiting(full, backlog, users=1)
        _waiting(full, later, users=1, after="1 day")
        stale = _in_turns(small, full, claims)
        full.sql("vacuum analyze")
        fresh = _in_turns(small, full, claims)
    return {
        "finished": finished, "backlog": backlog, "later": later,
        "stale_small_ms": stale[0], "stale_ms": stale[1],
        "stale_ratio": round(stale[1] / stale[0], 2),
        "small_ms": fresh[0], "full_ms": fresh[1], "full_ratio": round(fresh[1] / fresh[0], 2),
    }  # fmt: skip


def _in_turns(small: Site, full: Site, claims: int) -> tuple[float, float]:
    """Medians of a claim of 20 rows on either, in milliseconds, undone again each time."""
    hands = (_Claims(small), _Claims(full))
    found: tuple[list[float], list[float]] = ([], [])
    for hand in hands:
        hand.line_up()
    warm_up = 12  # until it is prepared and its plan is chosen
    for turn in range(warm_up + claims):
        for hand, times in zip(hands, found, strict=True):
            seconds = hand.seconds()
            if turn >= warm_up:
                times.append(seconds)
    for hand in hands:
        hand.close()
    return (
        round(statistics.median(found[0]) * 1000, 3),
        round(statistics.median(found[1]) * 1000, 3),
    )


HELD_PACE = 10.0
"""Tasks a second that end while a snapshot is held: thirty times the provider's highest tier."""


def held_snapshot(ground: Ground, seconds: float, claims: int) -> Result:
    """A claim's milliseconds where another session has held its snapshot for so long.

    Meanwhile tasks are ordered, claimed and ended at a steady pace; what is dead stays where it is.
    In turns with a claim on a database where nothing has happened.
    """
    with ground.site() as quiet, ground.site() as site:
        for one in (quiet, site):
            _waiting(one, 100, users=20)
            one.sql("vacuum analyze")
        worker = Hand(site.url)
        with psycopg.connect(site.url) as reader:
            reader.execute("set transaction isolation level repeatable read")
            reader.execute("select from vidgen.turns")
            began, tasks = time.monotonic(), 0
            while (past := time.monotonic() - began) < seconds:
                if tasks > past * HELD_PACE:
                    time.sleep(tasks / HELD_PACE - past)
                _waiting(site, 5, users=5)
                worker.mail = True
                for row in worker.claim(5)[0]:
                    worker.task(fence_of(row), whole=False)
                    tasks += 1
            before, after = _in_turns(quiet, site, claims)
        worker.conn.close()
    return {
        "seconds": seconds, "tasks": tasks, "before_ms": before, "after_ms": after,
        "ratio": round(after / before, 2),
    }  # fmt: skip


def turns(ground: Ground, backlog: int) -> Result:
    """How many rows are claimed, one by one, before the first of a second user."""
    with ground.site() as site:
        _waiting(site, backlog, users=1)
        return {"backlog": backlog, "place": _place_of_second_user(site)}


def _waiting(site: Site, count: int, *, users: int, after: str = "0") -> float:
    """Insert waiting rows in one statement; returns its seconds."""
    ids = [uuid4() for _ in range(users)]
    with psycopg.connect(site.url, autocommit=True) as conn:
        began = time.perf_counter()
        conn.execute(
            "insert into public.video_generation_tasks (user_id, run_after)"
            " select (%s::uuid[])[1 + n %% %s], now() + %s::interval"
            " from generate_series(1, %s) as n",
            (ids, users, after, count),
        )
        return time.perf_counter() - began


def _finished(site: Site, count: int) -> None:
    """Rows that ended, written past the triggers: none of them is ever born so."""
    with psycopg.connect(site.admin_url, autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")
        conn.execute(
            "insert into public.video_generation_tasks (user_id, status, attempt, progress,"
            " started_at, completed_at, video_path, created_at, run_after)"
            " select u.ids[1 + n %% 1000], 'completed', 1, 100, now(), now(), 'video-files/x',"
            " now() - n * interval '1 second', now() - n * interval '1 second'"
            " from generate_series(1, %s) as n,"
            " (select array_agg(gen_random_uuid()) as ids from generate_series(1, 1000)) as u",
            (count,),
        )


def _place_of_second_user(site: Site) -> int:
    """How many rows are claimed, one by one, before the newcomer's."""
    newcomer = uuid4()
    site.sql("insert into public.video_generation_tasks (user_id) values (%s)", newcomer)
    hand = _Claims(site)
    place = 0
    try:
        while place < 1000:  # noqa: PLR2004 - it would be unfair long before
            hand.line_up()
            claimed = hand.conn.execute(QUERIES["claim"], {**hand.parameters, "slots": 1})
            for row in claimed.fetchall():
                if row["user_id"] == newcomer:
                    return place
                place += 1
    finally:
        hand.close()
    return place


def bulk_insert(ground: Ground, rows: int, rounds: int) -> Result:
    """One INSERT of many rows, with our triggers and without."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for kind, found in seconds.items():
            with ground.site() as site:
                if kind == "without":
                    site.sql("alter table public.video_generation_tasks disable trigger user")
                found.append(_waiting(site, rows, users=10))
    ours, bare = (statistics.median(seconds[kind]) for kind in ("with", "without"))
    return {
        "rows": rows,
        "with_seconds": round(ours, 2),
        "without_seconds": round(bare, 2),
        "ratio": round(ours / bare, 2),
    }


# Deaths.


def deaths(ground: Ground, tasks: int) -> Result:
    """Seconds from SIGTERM, and from kill -9, until another worker runs all tasks of the first."""
    with ground.site(image_seconds=86_400) as site:
        _enqueue(site, tasks)
        # Polled as by default; a slot for each task wherever they go.
        more = {"VIDGEN_CONCURRENCY": str(tasks), "VIDGEN_POLL_INTERVAL": "6s"}

        def worker() -> Process:
            return OURS.start("work", site, os.environ, **more)

        with worker() as first:
            first.until("submitted", tasks)
            with worker() as second:
                second.until("ready")
                handed = _moved(first, second, signal.SIGTERM, tasks)
                with worker() as third:
                    third.until("ready")
                    # It may declare nobody dead before it has been steady for a lease.
                    time.sleep(LEASE_SECONDS + 5)
                    taken = _moved(second, third, signal.SIGKILL, tasks)
        paid = len(site.runway.generations())
    return {
        "tasks": tasks, "lease_seconds": LEASE_SECONDS,
        "sigterm_seconds": round(handed, 2), "kill_seconds": round(taken, 2),
        "generations_per_stage_begun": round(paid / tasks, 3),
    }  # fmt: skip


def _moved(one: Process, other: Process, number: signal.Signals, tasks: int) -> float:
    began = time.monotonic()
    os.kill(one.pid, number)
    return float(other.until("started", tasks, patience=120)[-1]["at"]) - began


def outage(ground: Ground, tasks: int, seconds: float) -> Result:
    """PostgreSQL is killed while the tasks' clips end, and comes back."""
    clip = 5.0
    with ground.site(video_seconds=clip) as site:
        _enqueue(site, tasks)
        with OURS.start(
            "work", site, os.environ, VIDGEN_CONCURRENCY=str(tasks), VIDGEN_POLL_INTERVAL="500ms"
        ) as worker:
            submitted = 0
            while submitted < tasks:
                submitted += worker.until("submitted")[0]["stage"] == "video"
            ground.postgres.kill()
            began = time.monotonic()
            time.sleep(seconds)
            ground.postgres.restart()
            back = time.monotonic()
            done = sum(line["what"] == "ended" for line in worker.heard)
            worker.until("ended", tasks - done, patience=120)
            after = time.monotonic() - back
        completed = site.sql(
            "select count(*) as n from public.video_generation_tasks where status = 'completed'"
        )[0]["n"]
        videos = len(site.runway.generations(kind="video"))
    return {
        "tasks": tasks, "away_seconds": round(back - began, 1), "ended_before": done,
        "completed": completed, "paid_again": videos - tasks, "stuck": tasks - completed,
        "all_written_seconds_after": round(after, 1),
    }  # fmt: skip
