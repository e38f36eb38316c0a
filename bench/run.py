"""`make bench` and `make bench-quick`: measure, keep the JSON, print the table."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import (
    alone,
    commands,
    film_queue,
    films,
    fleet,
    looks,
    races,
    waits,
    webhooks,
)
from bench.contenders import ALL
from bench.ground import ROOT, Ground
from bench.lines import BrokenError
from bench.table import table

RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    jobs: int
    job_rounds: int
    pipelines: int
    pipeline_rounds: int
    in_flight: int
    window_seconds: float
    finished: int
    backlog: int
    claims: int
    insert_rounds: int
    deaths: int
    death_rounds: int
    outage_seconds: float
    limited: int
    processes: list[int]
    queue_tasks: int
    database_tasks: int
    disk_tasks: int
    fleet_tasks: int
    flat_tasks: int
    held_seconds: float
    waits: int
    real_waits: int
    videos: int
    video_bytes: int
    clip_seconds: int
    command_rounds: int
    film_rounds: int
    film_targets: tuple[str, ...]
    film_sizes: int
    queue_films: int
    queue_kills: int
    film_ends: int
    events: int
    undelivered: int


FULL = Sizes(
    jobs=50, job_rounds=3, pipelines=300, pipeline_rounds=3, in_flight=1000, window_seconds=20,
    finished=1_000_000, backlog=100_000, claims=60, insert_rounds=3, deaths=50, death_rounds=2,
    outage_seconds=45, limited=60, processes=[1, 2, 4, 8], queue_tasks=10_000, database_tasks=1_000,
    disk_tasks=100_000, fleet_tasks=40, flat_tasks=1_000, held_seconds=60, waits=1000,
    real_waits=20, videos=8, video_bytes=100_000_000, clip_seconds=10, command_rounds=9,
    film_rounds=3, film_targets=("best", "good", "small"), film_sizes=1, queue_films=1_000,
    queue_kills=8, film_ends=100,
    events=200, undelivered=10_000,
)  # fmt: skip
QUICK = Sizes(
    jobs=8, job_rounds=1, pipelines=30, pipeline_rounds=1, in_flight=50, window_seconds=3,
    finished=20_000, backlog=10_000, claims=20, insert_rounds=1, deaths=20, death_rounds=1,
    outage_seconds=5, limited=12, processes=[1, 2], queue_tasks=300, database_tasks=60,
    disk_tasks=5_000, fleet_tasks=8, flat_tasks=40, held_seconds=3, waits=200, real_waits=0,
    videos=8, video_bytes=20_000_000, clip_seconds=2, command_rounds=1, events=20, undelivered=500,
    film_rounds=0, film_targets=(), film_sizes=0, queue_films=40, queue_kills=1, film_ends=20,
)  # fmt: skip


def rows(ground: Ground, sizes: Sizes) -> dict[str, Callable[[], Any]]:
    """What is measured, in order."""
    return {
        "waits": lambda: {
            "simulated": waits.simulated(sizes.waits),
            "real": waits.real(ground, sizes.real_waits, rounds=2) if sizes.real_waits else None,
        },
        "pick_up": lambda: races.pick_up(ground, sizes.jobs, sizes.job_rounds),
        "pipelines": lambda: races.pipelines(ground, sizes.pipelines, sizes.pipeline_rounds),
        "in_flight": lambda: alone.in_flight(
            ground, sizes.in_flight, sizes.window_seconds, poll="6s"
        ),
        "in_flight_unpolled": lambda: alone.in_flight(
            ground, sizes.in_flight, sizes.window_seconds, poll="1h"
        ),
        "level": lambda: alone.level(
            ground, sizes.finished, sizes.backlog, sizes.backlog, sizes.claims
        ),
        "held_snapshot": lambda: alone.held_snapshot(ground, sizes.held_seconds, sizes.claims),
        "turns": lambda: alone.turns(ground, sizes.backlog),
        "bulk_insert": lambda: alone.bulk_insert(ground, sizes.backlog, sizes.insert_rounds),
        "limit": lambda: alone.limit(ground, sizes.limited, slots=4, workers=4),
        "queue": lambda: fleet.queue(ground, sizes.queue_tasks, sizes.processes),
        "database": lambda: fleet.database(ground, sizes.database_tasks, sizes.processes),
        "disk": lambda: fleet.disk(ground, sizes.disk_tasks),
        "fleet": lambda: fleet.pipelines(ground, sizes.fleet_tasks, sizes.processes),
        "flat": lambda: fleet.flat(ground, sizes.flat_tasks, sizes.flat_tasks // 20),
        "streams": lambda: fleet.streams(ground, sizes.videos, sizes.video_bytes),
        "clip_memory": lambda: looks.clip_memory(1920, 1080, sizes.clip_seconds),
        "deaths": lambda: [alone.deaths(ground, sizes.deaths) for _ in range(sizes.death_rounds)],
        "outage": lambda: alone.outage(ground, 50, sizes.outage_seconds),
        "film_cpu": lambda: films.cpu(sizes.film_rounds) if sizes.film_rounds else None,
        "film_memory": lambda: films.memory() if sizes.film_rounds else None,
        "film_sizes": lambda: films.sizes(sizes.film_sizes) if sizes.film_sizes else None,
        "film_targets": lambda: films.targets(sizes.film_targets) if sizes.film_targets else None,
        "film_queue": lambda: film_queue.drained(
            ground,
            sizes.queue_films,
            film_queue.PARTS,
            sizes.queue_kills,
            connections=film_queue.CONNECTIONS if sizes.film_rounds else 4,
        ),
        "film_statements": lambda: film_queue.statements(ground, sizes.film_ends),
        "webhooks": lambda: webhooks.webhooks(ground, sizes.events, sizes.undelivered),
        "command_line": lambda: commands.command_line(ground, sizes.command_rounds),
    }


def revision() -> str:
    """Which state of the checkout is measured."""
    git = shutil.which("git")
    if git is None:
        return "an unknown revision"
    said = subprocess.run(  # noqa: S603 - our own words
        [git, "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return said.stdout.strip() or "an unknown revision"


def machine(ground: Ground) -> dict[str, Any]:
    """What it ran on."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with ground.site() as site:
        version = site.sql("select current_setting('server_version') as v")[0]["v"]
        durable = site.sql(
            "select name, setting from pg_settings"
            " where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers')"
        )
    return {
        "cpu": model[0] if model else platform.machine(), "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9), "python": platform.python_version(),
        "postgres": version, "settings": {row["name"]: row["setting"] for row in durable},
        "load_before": os.getloadavg()[0],
    }  # fmt: skip


def measure(sizes: Sizes, form: str, only: list[str]) -> dict[str, Any]:
    """Run the rows. One that breaks is reported in its place, and the others go on."""
    for one in ALL:
        one.install()
    with Ground.start() as ground:
        found: dict[str, Any] = {
            "form": form, "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": revision(), "machine": machine(ground),
            "contenders": {
                one.name: {"requirements": one.requirements, "settings": one.settings}
                for one in ALL
            },
            "rows": {},
        }  # fmt: skip
        for name, row in rows(ground, sizes).items():
            if only and name not in only:
                continue
            began = time.monotonic()
            sys.stderr.write(f"{name} … ")
            sys.stderr.flush()
            try:
                found["rows"][name] = row()
            except BrokenError as error:
                found["rows"][name] = {"broken": str(error)}
            sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")
        found["machine"]["load_after"] = os.getloadavg()[0]
    return found


def main() -> int:
    """Measure and print; exit status 1 when a row broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under 3 minutes")
    parser.add_argument("--only", nargs="*", default=[], help="these rows")
    given = parser.parse_args()
    form = "quick" if given.quick else "full"
    found = measure(QUICK if given.quick else FULL, form, given.only)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{form}.json"
    if given.only and file.exists():
        found["rows"] = {**json.loads(file.read_text())["rows"], **found["rows"]}
        found["again"] = given.only
    file.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found))
    return int(any(isinstance(row, dict) and "broken" in row for row in found["rows"].values()))


if __name__ == "__main__":
    sys.exit(main())
