"""Rows in which the others take part: pick-up of one job, and pipelines per second.

Rounds are interleaved, so that the machine's moods meet everybody, and the figures are medians.
"""

import os
import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

from bench.contenders import ALL, CONCURRENCY, Contender
from bench.ground import Ground, Site
from bench.lines import Process, cpu_seconds, family

Result = dict[str, Any]


def pick_up(ground: Ground, jobs: int, rounds: int, who: Iterable[Contender] = ALL) -> Result:
    """Milliseconds from the enqueue call, and from its return, to the start of the work."""
    samples: dict[str, list[tuple[float, float]]] = {one.name: [] for one in who}
    for _ in range(rounds):
        for one in who:
            samples[one.name] += _pick_ups(ground, one, jobs)
    return {
        name: {
            "p50_call": _p(found, 0, 50), "p95_call": _p(found, 0, 95),
            "p50_return": _p(found, 1, 50), "p95_return": _p(found, 1, 95), "n": len(found),
        }
        for name, found in samples.items()
    }  # fmt: skip


def _p(samples: list[tuple[float, float]], which: int, percent: int) -> float:
    values = [sample[which] for sample in samples]
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1000, 2)


def _pick_ups(ground: Ground, one: Contender, jobs: int) -> list[tuple[float, float]]:
    """One job at a time to an idle, warm worker; the first few don't count."""
    warm_up = 3
    with ground.site() as site:
        scenes = [str(scene) for scene in site.scenes(jobs + warm_up, site.users(5))]
        with one.start("enqueue", site, os.environ) as producer:
            producer.until("ready")
            with one.start("work", site, os.environ, BENCH_BODY="nothing") as worker:
                worker.until("ready")
                found = [_one_job(producer, worker, scene) for scene in scenes]
    return found[warm_up:]


def _one_job(producer: Process, worker: Process, scene: str) -> tuple[float, float]:
    producer.ask({"ids": [scene]})
    enqueued = producer.until("enqueued")[0]
    started = worker.until("started")[0]["at"]
    worker.until("ended")
    # Whoever polls must not fall into step with us.
    time.sleep(random.uniform(0.02, 0.06))  # noqa: S311
    return started - enqueued["before"], started - enqueued["at"]


def pipelines(ground: Ground, tasks: int, rounds: int, who: Iterable[Contender] = ALL) -> Result:
    """Whole pipelines per second in one process, with doubles that answer at once."""
    found: dict[str, list[Result]] = {one.name: [] for one in who}
    for _ in range(rounds):
        for one in who:
            with ground.site() as site:
                found[one.name].append(_drain(site, one, tasks))
    return {
        name: {
            "per_second": round(statistics.median(r["per_second"] for r in runs), 2),
            **{
                name: round(statistics.median(r[name] for r in runs), 1)
                for name in ("cpu_ms", "postgres_cpu_ms", "doubles_cpu_ms")
            },
            "statements": round(statistics.median(r["statements"] for r in runs), 2),
            "runs": runs,
        }
        for name, runs in found.items()
    }


def _cpu_seconds(site: Site, worker: Process) -> dict[str, float]:
    """CPU time so far of whoever takes part; the doubles live in this very process."""
    return {
        "cpu_ms": worker.cpu_seconds(),
        "postgres_cpu_ms": sum(map(cpu_seconds, family(site.ground.postgres.pid))),
        "doubles_cpu_ms": time.process_time(),
    }


def _drain(site: Site, one: Contender, tasks: int) -> Result:
    """All tasks are there before the worker starts; the first third warms it up."""
    scenes = [str(scene) for scene in site.scenes(tasks, site.users(10))]
    with one.start("enqueue", site, os.environ) as producer:
        producer.until("ready")
        producer.ask({"ids": scenes})
        producer.until("enqueued")
    site.forget_statements()
    more = {"VIDGEN_CONCURRENCY": str(CONCURRENCY), "BENCH_CONCURRENCY": str(CONCURRENCY),
            "BENCH_STAGES": "no"}  # fmt: skip
    with one.start("work", site, os.environ, **more) as worker:
        warm = tasks // 3
        first = worker.until("ended", warm)[-1]["at"]
        before = _cpu_seconds(site, worker)
        last = worker.until("ended", tasks - warm)[-1]["at"]
        after = _cpu_seconds(site, worker)
        statements = site.statements()
    counted = tasks - warm
    return {
        "per_second": counted / (last - first),
        **{name: (after[name] - before[name]) / counted * 1000 for name in before},
        "statements": sum(row["calls"] for row in statements) / tasks,
        "wal_bytes": sum(int(row["wal_bytes"]) for row in statements) / tasks,
        "by_statement": [
            {
                "name": row["name"], "calls_per_task": round(row["calls"] / tasks, 3),
                "mean_ms": round(row["seconds"] / row["calls"] * 1000, 3),
            }
            for row in statements[:20]
        ],
    }  # fmt: skip
