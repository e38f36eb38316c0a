"""A worker's statements without its HTTP: what the database alone carries. One process.

`python -m bench.drain queue` claims tasks and completes them; `whole` sends everything that a task
of two stages costs, from the claim to its end, in the pipeline's order. One connection, the real
named queries, each of them durable. It begins when a line comes in, and ends when nothing is left.
"""

import os
import sys
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from bench.lines import say
from vidgen_worker.database.pool import PLANNED_ONCE, QUERIES

SLOTS = 20
ADDRESS = "https://project.supabase.co/storage/v1/object/sign/video-files/"
PROMPT = "A glass bottle stands on a wet stone by the sea, in the light of the late afternoon. "

# What a worker of the defaults sends; addresses and prompts are as long as real ones.
USUAL: dict[str, Any] = {
    "host": "bench", "pid": os.getpid(), "version": "0", "concurrency": SLOTS, "renders": 0,
    "lease": timedelta(minutes=10), "provider": "runway", "key_fingerprint": "key",
    "account": "default", "scopes": ["*", "default", "key:key"],
    "image_model": "gen4_image", "video_model": "gen4_turbo", "slots": SLOTS, "idle": True,
    "image_stage": "image", "video_stage": "video",
    "resumed": False, "lane": 1, "made_from": None,
    "max_crashes": 3, "max_running_per_user": None, "max_submissions": 2, "credits": True,
    "scene_updates": True, "resolution": "1280:720", "video_ratio": "1280:720",
    "image_ratio": "1920:1080", "message": "At work",
    "current_step": "Generating scene image with AI", "fingerprint": "0123456789abcdef",
    "inputs": "0" * 32, "request": Jsonb({"promptText": PROMPT * 3, "ratio": "1920:1080"}),
    "digest": "0" * 64, "rejected": False, "seconds_left": 60.0,
    "clip_seconds": 0, "ended_after": 30.0, "ended_by": 36.0, "probe": timedelta(seconds=30),
    "answer": "generation", "estimated_cost": 5, "details": "", "ended_state": "succeeded",
    "verdict": None, "show": True, "follow": True, "cost": 5, "size": 2_000_000, "sha256": "0" * 64,
    "failures": 0, "good_for": timedelta(hours=1),
}  # fmt: skip
SIGNED = ADDRESS + "x" * 400
STAGES: dict[str, dict[str, Any]] = {
    "image": {
        "stage": "image", "model": "gen4_image", "progress": 35.0, "bucket": "generated-content",
        "media_type": "image/png", "video_path": None, "signed_url": None,
    },
    "video": {
        "stage": "video", "model": "gen4_turbo", "progress": 70.0, "bucket": "video-files",
        "media_type": "video/mp4", "image_url": None, "image_path": None, "signed_url": SIGNED,
    },
}  # fmt: skip
STEPS = ("begin_submission", "answer_submission", "end_generation", "finish_stage")


class Hand:
    """One connection as one worker."""

    def __init__(self, url: str) -> None:
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.conn.prepare_threshold = 0
        self.conn.execute(PLANNED_ONCE)
        self.usual = {**USUAL, "worker_id": uuid4()}
        self.mail = True
        """Whether there is something to line up: a worker also hears of it by NOTIFY."""
        self("register_worker")

    def __call__(self, name: str, **parameters: object) -> list[dict[str, Any]]:
        """Run a named query."""
        cursor = self.conn.execute(QUERIES[name], {**self.usual, **parameters})
        return cursor.fetchall() if cursor.description else []

    def claim(self, slots: int = SLOTS) -> tuple[list[dict[str, Any]], bool]:
        """Claim as the worker does: what was taken, and whether to ask again.

        Where there is mail, it is lined up before that, in the same round trip.
        """
        with self.conn.pipeline():
            if self.mail:
                self.conn.execute(QUERIES["line_up"])
            cursor = self.conn.execute(QUERIES["claim"], {**self.usual, "slots": slots})
        rows = cursor.fetchall()
        self.mail = rows[0]["mail"]
        return [row for row in rows if row["id"]], rows[0]["waiting"]

    def task(self, fence: dict[str, Any], *, whole: bool) -> None:
        """One task, from its claim to its end."""
        if whole:
            self("start_task", **fence)
            for stage in STAGES:
                self.stage(fence, stage)
        else:
            path = f"video-files/{fence['user_id']}/{uuid4()}.mp4"
            video = {**STAGES["video"], "video_path": path, "path": path}
            self.finish(fence, "finish_stage", **video, upload_id=uuid4())

    def finish(self, fence: dict[str, Any], step: str, **parameters: object) -> None:
        """A statement of a task that is this worker's."""
        if not self(step, **fence, **parameters):
            raise RuntimeError(f"task {fence['task_id']} was not ours any more")

    def stage(self, fence: dict[str, Any], stage: str) -> None:
        """One stage, from the submission's row to the charge."""
        ids = {"submission_id": uuid4(), "generation_id": uuid4(), "upload_id": uuid4()}
        if stage == "image":
            path = f"generated_images/{fence['user_id']}/{ids['upload_id']}.png"
            more: dict[str, Any] = {"path": path, "image_path": path, "image_url": ADDRESS + path}
        else:
            path = f"video-files/{fence['user_id']}/{ids['upload_id']}.mp4"
            more = {"path": path, "video_path": path}
        for step in STEPS:
            self.finish(fence, step, **ids, **{**STAGES[stage], **more})


def fence_of(row: dict[str, Any]) -> dict[str, Any]:
    """The fence of a claimed row, as the queries name it, and whose it is."""
    return {
        "task_id": row["id"], "attempt": row["attempt"], "worker_id": row["worker_id"],
        "user_id": row["user_id"],
    }  # fmt: skip


def drain(*, whole: bool) -> None:
    """Claim and end tasks until nothing is left; tell what was claimed."""
    hand = Hand(os.environ["DATABASE_URL"])
    say("ready")
    sys.stdin.readline()
    tasks = 0
    while True:
        rows, waiting = hand.claim()
        if not rows:
            if not waiting:
                break
            continue
        say("claimed", ids=[str(row["id"]) for row in rows])
        for row in rows:
            hand.task(fence_of(row), whole=whole)
            tasks += 1
    say("drained", tasks=tasks)


if __name__ == "__main__":
    drain(whole={"queue": False, "whole": True}[sys.argv[1]])
