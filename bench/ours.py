"""Our worker as a contender: the product's own `assemble`, telling some of its events as lines."""

import json
import os
import sys
import time

import psycopg

from bench.lines import say
from vidgen_worker.config import load
from vidgen_worker.domain.task import Outcome
from vidgen_worker.pipeline import attempt as product
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.telemetry.bus import Event, subscribe
from vidgen_worker.telemetry.events import (
    GenerationEnded,
    ListenChanged,
    SubmissionRecorded,
    TaskCompleted,
    TaskFailed,
    TaskRequeued,
    WorkerStopped,
)
from vidgen_worker.telemetry.log import configure
from vidgen_worker.worker import attempts
from vidgen_worker.worker.serve import assemble

INSERT = """
insert into public.video_generation_tasks (id, scene_id, user_id)
select s.id, s.id, s.user_id from public.video_scenes as s where s.id = any (%s::uuid[])
"""


STAGES = os.environ.get("BENCH_STAGES") != "no"
"""Whether the stages are told too; beside the others, only what they tell is told."""


def tell(event: Event) -> None:
    """Say what the bench waits for. A task has the id of its scene."""
    match event:
        case ListenChanged(listening=True):
            say("ready")
        case SubmissionRecorded() if STAGES:
            say("submitted", id=str(event.fence.task_id), stage=event.stage)
        case GenerationEnded() if STAGES:
            say("generated", id=str(event.fence.task_id), stage=event.stage)
        case TaskCompleted():
            say("ended", id=str(event.fence.task_id))
        case TaskFailed():
            say("failed", id=str(event.fence.task_id), code=event.code, details=event.details)
        case TaskRequeued():
            say("requeued", id=str(event.fence.task_id), code=event.code, details=event.details)
        case WorkerStopped():
            say("stopped")
        case _:
            pass


async def attempt(tools: Tools, run: Run) -> Outcome:
    """Run an attempt; it starts where a handler of the others starts, in its first line."""
    say("started", id=str(run.task.id), attempt=run.task.fence.attempt)
    return await product.attempt(tools, run)


def work() -> int:
    """Run the worker until SIGTERM."""
    attempts.attempt = attempt  # type: ignore[attr-defined]
    settings = load()
    configure(settings.vidgen_log_level, "json")
    subscribe(tell)
    with assemble(settings) as (loop, worker):
        return loop.run(worker.run())


def enqueue() -> int:
    """Insert tasks as they are asked for: one statement per line."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        say("ready")
        for line in sys.stdin:
            ids = json.loads(line)["ids"]
            before = time.monotonic()
            conn.execute(INSERT, (ids,))
            say("enqueued", before=before, ids=ids)
    return 0


if __name__ == "__main__":
    sys.exit({"work": work, "enqueue": enqueue}[sys.argv[1]]())
