"""What operators read, at a million finished tasks: `python -m bench.views`, some three minutes.

Fills a PostgreSQL of its own with tasks that ended in the last 90 days (or `--days`), two
submissions, two charges and a closed hold each, and a queue that waits; then times every view, the
verb `stats` and the first look at each page of the dashboard. The figures stand in
docs/operations.md. Checkpoints are left out: nothing that is timed here reads those of ended tasks.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psycopg
from pydantic import SecretStr

from bench.ground import Ground
from vidgen_worker.cli.dashboard import running_dashboard
from vidgen_worker.client.database import QUERIES as READ
from vidgen_worker.client.database import ClientSettings
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.domain.faults import USERS_OWN

ROUNDS = 7
USERS = 10_000
PENDING = 10_000

# Constraints hold; triggers and foreign keys are off while it is filled, for speed.
FILL = (
    """
    create temporary table seeded as
    select n, gen_random_uuid() as id,
           md5('user' || n %% %(users)s)::uuid as user_id,
           now() - make_interval(days => %(days)s) * (1 - n::float / %(tasks)s) as started_at,
           case when n %% 20 = 0 then 'failed' else 'completed' end as status
      from generate_series(1, %(tasks)s) as n
    """,
    """
    insert into public.video_generation_tasks (
      id, user_id, status, attempt, progress, error_code, error_message, error, resolution,
      video_ratio, image_ratio, image_path, image_url, video_path, video_url, created_at,
      updated_at, run_after, started_at, completed_at
    )
    select id, user_id, status, 1, case status when 'completed' then 100 else 35 end,
           case status when 'failed' then 'CONTENT_REJECTED' end,
           case status when 'failed' then 'The provider refused the scene.' end,
           case status when 'failed' then '{}'::jsonb end,
           '1280:720', '1280:720', '1920:1080',
           'generated_images/' || user_id || '/' || id || '.png',
           'https://project.supabase.co/storage/v1/object/public/generated-content/' || id,
           'video-files/' || user_id || '/' || id || '.mp4',
           'https://project.supabase.co/storage/v1/object/sign/video-files/' || repeat('x', 200),
           started_at - interval '3 seconds', started_at + interval '90 seconds',
           started_at - interval '3 seconds', started_at,
           least(started_at + make_interval(secs => 60 + n %% 60), now())
      from seeded order by n
    """,
    """
    insert into vidgen.submissions (
      id, task_id, user_id, stage, attempt, worker_id, provider, key_fingerprint, model,
      fingerprint, sent_at, answer, answered_at, generation_id, estimated_cost, ended_state,
      ended_at, cost
    )
    select gen_random_uuid(), id, user_id, stage, 1, md5('worker')::uuid, 'runway', 'key',
           case stage when 'image' then 'gen4_image' else 'gen4_turbo' end, md5(id::text),
           started_at + later, 'generation', started_at + later, gen_random_uuid(), 25,
           case when status = 'failed' and stage = 'video' then 'failed' else 'succeeded' end,
           started_at + later + interval '30 seconds', 25
      from seeded
     cross join (values ('image', interval '1 second'), ('video', interval '35 seconds'))
        as stages (stage, later)
     order by n, stage
    """,
    """
    insert into vidgen.charges (task_id, stage, user_id, charged_at)
    select id, stage, user_id, started_at
      from seeded cross join (values ('image'), ('video')) as stages (stage)
    """,
    """
    insert into public.credit_entries (user_id, kind, amount, task_id, stage, reference, created_at)
    select md5('user' || n)::uuid, 'grant', 1000000, null, null, 'seed ' || n,
           now() - make_interval(days => %(days)s)
      from generate_series(0, %(users)s - 1) as n
    """,
    """
    insert into public.credit_entries (user_id, kind, amount, task_id, stage, created_at)
    select user_id, 'charge', case stage when 'image' then -5 else -25 end, id, stage,
           started_at + interval '60 seconds'
      from seeded cross join (values ('image'), ('video')) as stages (stage)
     order by n, stage
    """,
    """
    insert into vidgen.holds (
      task_id, user_id, prices, amount, opened_at, closed_at
    )
    select id, user_id, '{"image": 5, "video": 25}', 0, started_at,
           started_at + interval '90 seconds'
      from seeded
    """,
    """
    insert into public.user_credits (user_id, balance)
    select user_id, sum(amount) from public.credit_entries group by user_id
    """,
    """
    insert into public.video_generation_tasks (user_id, run_after)
    select md5('user' || n %% %(users)s)::uuid, now() - make_interval(secs => n %% 600)
      from generate_series(1, %(pending)s) as n
    """,
)

READ_BY_USER = "select * from vidgen.consumption_by_user where user_id = md5('user7')::uuid"


PARAMETERS = {"users_own": sorted(USERS_OWN)}
PAGES = ("/", "/tasks", "/tasks?status=failed", "/users", "/numbers", "/numbers?span=7d")


def pages(url: str) -> Iterator[tuple[str, float]]:
    """Each page and the seconds until a dashboard has answered that kept only what is over."""
    settings = ClientSettings(database_url=SecretStr(url))
    for page in PAGES:
        took = []
        for _ in range(ROUNDS):
            with running_dashboard(settings) as dashboard, httpx.Client(timeout=60) as client:
                client.get(
                    dashboard.link.replace("/?", "/nowhere?")
                )  # the cookie, and no page of rows
                dashboard.has_read_ahead.wait(60)
                answer = client.get(dashboard.link.partition("/?")[0] + page)
            answer.raise_for_status()
            took.append(answer.elapsed.total_seconds())
        yield page, statistics.median(took)


def questions() -> Iterator[tuple[str, str]]:
    """What is timed: its name, and the statement, with `PARAMETERS` where it has any."""
    yield "queue_health", "select * from vidgen.queue_health"
    yield "fleet, every 15 s", QUERIES["fleet"]
    day = "select * from vidgen.stats_hourly where hour > now() - interval '1 day'"
    yield "stats_hourly, a day", day
    yield "stats_hourly", "select * from vidgen.stats_hourly"
    yield "consumption_by_model", "select * from vidgen.consumption_by_model"
    yield "consumption_by_user, one user", READ_BY_USER
    dearest = "select * from vidgen.consumption_by_user order by provider_cost desc limit 20"
    yield "consumption_by_user, all", dearest
    yield "failures_by_code", READ["failures_by_code"]
    yield "throughput", READ["throughput"]
    yield "credit_audit, the whole ledger", READ["credit_audit"]


def fill(admin: str, **numbers: int) -> None:
    """Fill the tables and let statistics and visibility be as autovacuum leaves them."""
    with psycopg.connect(admin, autocommit=True) as conn:
        conn.execute("set session_replication_role = replica")
        conn.execute("set synchronous_commit = off")
        for statement in FILL:
            conn.execute(statement, numbers)
        conn.execute("drop table seeded")
        conn.execute("vacuum (analyze)")


def say(name: str, seconds: float) -> None:
    """Write one line."""
    sys.stdout.write(f"{name:38}{1000 * seconds:10.1f} ms\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=90, help="how far back the oldest has ended")
    parser.add_argument("--pending", type=int, default=PENDING)
    parser.add_argument("--explain", action="store_true", help="print the plans too")
    asked = parser.parse_args()
    with Ground.start() as ground, ground.site() as site:
        began = time.monotonic()
        fill(site.admin_url, tasks=asked.tasks, days=asked.days, users=USERS, pending=asked.pending)
        say("filled", time.monotonic() - began)
        measure(site.url, explain=asked.explain)


def measure(url: str, *, explain: bool = False) -> None:
    """Time everything that is read, on a database that is full, and print it."""
    with psycopg.connect(url, autocommit=True) as conn:
        for name, statement in questions():
            asked = statement.encode(), PARAMETERS if "%(" in statement else None
            took = []
            for _ in range(ROUNDS):
                began = time.monotonic()
                conn.execute(*asked).fetchall()
                took.append(time.monotonic() - began)
            say(name, statistics.median(took))
            if explain:
                plan = conn.execute(b"explain (analyze, buffers) " + asked[0], asked[1])
                sys.stdout.write("".join(f"{line}\n" for (line,) in plan.fetchall()))
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "vidgen_worker", "stats"],
        env={**os.environ, "DATABASE_URL": url}, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    say("vidgen-worker stats, the process", time.monotonic() - began)
    for page, seconds in pages(url):
        say(f"dashboard {page}", seconds)


if __name__ == "__main__":
    main()
